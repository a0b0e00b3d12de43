"""MixedNUTS against RobustBench's class, and its numbers against RobustBench's file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from awp_jax.attacks import PGD, MixedNUTS

torch = pytest.importorskip("torch")
import robustbench_peer as peer  # noqa: E402

needs_robustbench = pytest.mark.skipif(peer.ZOO is None, reason="robustbench is not installed")
IMAGES = np.random.default_rng(0).uniform(size=(32, 4, 4, 3))
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


def weights_of(data):
    return [np.random.default_rng(seed).normal(size=(48, CLASSES[data])) for seed in (1, 2)]


def linear(weights):
    return lambda images: images.reshape(images.shape[0], -1) @ weights


def of_torch(settings, accurate, robust):
    """RobustBench's mixture of two linear networks."""
    maps, mixing = peer.architecture("output_maps"), peer.architecture("mixing_net")

    def network(weights):
        layer = torch.nn.Linear(*weights.shape, bias=False).double()
        layer.weight.data = torch.tensor(weights.T)
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    robust_map = maps.LNClampPowerScaleMap(settings.scale, settings.power, settings.bias)
    numbers = {"std_map": maps.HardMaxMap(), "rob_map": robust_map}
    numbers |= {"alpha": settings.alpha, "alpha_diffable": settings.alpha}
    return mixing.NonLinMixedClassifier(network(accurate), network(robust), numbers).eval()


@needs_robustbench
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of how it asks for mixed precision
@pytest.mark.parametrize("data", ["cifar10", "cifar100", "imagenet"])
def test_logits_and_gradients_are_those_of_robustbench(data):
    settings, (accurate, robust) = MixedNUTS.published(data), weights_of(data)
    with jax.enable_x64(True):
        mixed = settings(linear(accurate), linear(robust))
        found = mixed(jnp.asarray(IMAGES))
        gradient = jax.grad(lambda x: mixed(x)[:, 3].sum())(jnp.asarray(IMAGES))
    images = torch.tensor(IMAGES.reshape(32, 48), requires_grad=True)
    expected = of_torch(settings, accurate, robust)(images)  # cast to float32 at its end
    expected[:, 3].sum().backward()
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-5)
    largest = float(images.grad.abs().max())
    assert largest > 1e-3
    gap = np.abs(np.asarray(gradient).reshape(32, 48) - images.grad.numpy()).max()
    assert gap < 1e-6 * largest
    # In float32 as well, where one probability is below 1e-20.
    single = settings(linear(jnp.float32(accurate)), linear(jnp.float32(robust)))
    np.testing.assert_allclose(single(jnp.float32(IMAGES)), found, rtol=1e-3, atol=1e-3)


@needs_robustbench
@pytest.mark.parametrize(
    ("data", "robust"),
    [
        ("cifar10", "Peng2023Robust"),
        ("cifar100", "Wang2023Better_WRN-70-16"),
        ("imagenet", "Liu2023Comprehensive_Swin-L"),
    ],
)
def test_the_published_numbers_are_robustbenchs(data, robust):
    file = peer.ZOO / "architectures" / "optimal_spca.yaml"
    found = yaml.safe_load(file.read_text())[data][robust]["gelu"]
    numbers = found[found["default_beta"]]
    expected = MixedNUTS(numbers["alpha"], numbers["s"], numbers["c"], numbers["p"])
    assert MixedNUTS.published(data) == expected


def test_it_is_attacked_as_any_model():
    mixed = MixedNUTS.published("cifar10")(*map(linear, weights_of("cifar10")))
    images = jnp.float32(IMAGES)
    labels = mixed(images).argmax(1)
    result = PGD("8/255", steps=5)(mixed, jax.random.key(0), images, labels)
    assert 0 < float(result.success.mean()) <= 1
    assert bool(jnp.isfinite(result.loss).all())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"alpha": 1.0}, "alpha is 1.0, but a share between 0 and 1"),
        ({"scale": 0.0}, "scale is 0.0, but a positive number"),
        ({"power": 0.5}, "power is 0.5, but at least 1"),
    ],
)
def test_bad_numbers_are_one_sentence(change, told):
    with pytest.raises(ValueError, match=told):
        MixedNUTS(**{"alpha": 0.5, "scale": 1.0, "bias": 0.0, "power": 2.0} | change)
    with pytest.raises(ValueError, match="data of MixedNUTS 'cifar', did you mean|'cifar10'"):
        MixedNUTS.published("cifar")
