"""DDN and FMN against foolbox and against closed forms of linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits_network import from_torch
from jax.tree_util import Partial

from awp_jax.attacks import DDN, FMN
from awp_jax.balls import input_norms

KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
NORMS = ("linf", "l2", "l1")


def linear(images):
    return images.reshape(images.shape[0], -1) @ jnp.asarray(WEIGHTS)


def linear_case(rows=8):
    images = np.random.default_rng(2).normal(size=(rows, 3, 4, 1)).astype(np.float32)
    logits = images.reshape(rows, -1) @ WEIGHTS
    return jnp.asarray(images), jnp.asarray(logits.argmax(1).astype(np.int32)), logits


def hyperplanes(logits, labels, norm):
    """The distance to each class's hyperplane, in the norm whose dual the weights are taken in."""
    gaps = logits[np.arange(len(labels)), labels][:, None] - logits
    normals = WEIGHTS[:, None, :] - WEIGHTS[:, :, None]  # [features, label, class]
    lengths = np.linalg.norm(normals, DUAL[norm], axis=0)[labels]
    with np.errstate(invalid="ignore", divide="ignore"):
        return gaps / lengths


def attack_of(norm, **options):
    return DDN(**options) if norm == "ddn" else FMN(norm=norm, **options)


@pytest.mark.parametrize("norm", [*NORMS, "ddn"])
def test_without_bounds_the_radius_is_the_distance_to_the_nearest_hyperplane(norm):
    images, labels, logits = linear_case()
    found = attack_of(norm, steps=400, low=None, high=None)(linear, KEY, images, labels)
    kind = "l2" if norm == "ddn" else norm
    exact = np.nanmin(hyperplanes(logits, np.asarray(labels), kind), axis=1)
    ratio = np.asarray(found.radius) / exact
    assert ratio.min() > 1 - 1e-4  # nothing nearer exists
    assert np.median(ratio) < 1.01 and ratio.max() < 1.3
    assert bool((linear(found.images).argmax(1) != labels).all())
    np.testing.assert_allclose(input_norms(found.images - images, kind), found.radius, rtol=1e-6)


@pytest.mark.parametrize("norm", [*NORMS, "ddn"])
def test_targeted_radii_are_distances_to_the_target(norm):
    # Two classes: the set of each is one half space, so the distance is that of its hyperplane.
    images, labels, logits = linear_case()
    two = logits[:, :2]
    labels = two.argmax(1)
    targets = jnp.asarray((1 - labels).astype(np.int32))
    kind = "l2" if norm == "ddn" else norm
    attack = attack_of(norm, steps=400, low=None, high=None, targeted=True)
    found = attack(lambda x: linear(x)[:, :2], KEY, images, targets)
    exact = np.abs(two[:, 0] - two[:, 1])
    exact = exact / np.linalg.norm(WEIGHTS[:, 0] - WEIGHTS[:, 1], DUAL[kind])
    ratio = np.asarray(found.radius) / exact
    assert ratio.min() > 1 - 1e-4 and np.median(ratio) < 1.01
    assert bool((linear(found.images)[:, :2].argmax(1) == targets).all())


@pytest.mark.parametrize("norm", [*NORMS, "ddn"])
def test_misclassified_images_have_radius_0_and_bounds_hold(norm):
    images = jnp.full((3, 2, 2, 1), 0.6)

    def logits_fn(x):
        total = x.sum((1, 2, 3))
        return jnp.stack([total, jnp.full_like(total, 2.0), jnp.full_like(total, -9.0)], axis=1)

    found = attack_of(norm)(logits_fn, KEY, images, jnp.array([0, 1, 0]))
    assert float(found.radius[1]) == 0.0
    np.testing.assert_array_equal(found.images[1], images[1])
    assert 0 <= float(found.images.min()) and float(found.images.max()) <= 1
    # Class 2 is nowhere in the box: the clean image, and an infinite radius.
    never = attack_of(norm, targeted=True)(logits_fn, KEY, images, jnp.array([2, 2, 2]))
    assert bool(jnp.isinf(never.radius).all())
    np.testing.assert_array_equal(never.images, images)


@pytest.mark.parametrize("norm", [*NORMS, "ddn"])
def test_it_may_be_jitted_and_does_not_depend_on_its_batch(norm):
    images, labels, _ = linear_case(4)
    attack = attack_of(norm, steps=15, low=None, high=None)
    keys = jax.random.split(KEY, 4)
    together = attack(linear, keys, images, labels)
    jitted = jax.jit(lambda k, x, y: attack(linear, k, x, y))(keys, images, labels)
    np.testing.assert_allclose(together.radius, jitted.radius, rtol=1e-4)
    alone = attack(linear, keys[2:3], images[2:3], labels[2:3])
    np.testing.assert_allclose(together.radius[2:3], alone.radius, rtol=1e-4)


def test_a_flat_loss_moves_ddn_at_random():
    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 0])

    def logits_fn(x):  # flat around 0.5
        far = jnp.maximum(jnp.abs(x - 0.5).max((1, 2, 3)) - 0.05, 0)
        return jnp.stack([jnp.full_like(far, 0.01), far], axis=1)

    found = DDN()(logits_fn, KEY, images, labels)
    assert bool(jnp.isfinite(found.radius).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDN(steps=0), "steps is 0"),
        (lambda: DDN(gamma=1.0), "gamma is 1.0"),
        (lambda: DDN(epsilon=0.0), "epsilon is 0.0"),
        (lambda: FMN(norm="l0"), "Unknown norm 'l0'"),
        (lambda: FMN(step_size=-1.0), "step_size is -1.0"),
        (lambda: FMN(last_step_size=0.0), "last_step_size is 0.0"),
        (lambda: FMN(as_published=1), "as_published is 1"),
        (lambda: FMN(targeted=1), "targeted is 1"),
        (lambda: FMN(low=1.0, high=0.0), "range of inputs"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def peer_of(name, steps):
    foolbox = pytest.importorskip("foolbox")
    attacks = foolbox.attacks
    if name == "ddn":
        return attacks.DDNAttack(steps=steps)
    if name == "l2":
        # foolbox 3.3.4 projects by norms / norms = 1, so not at all: here as the paper has it.
        class Projected(attacks.L2FMNAttack):
            def project(self, x, x0, epsilon):
                moved = x - x0
                norms = moved.flatten(start=1).norms.l2(axis=-1)
                factor = (epsilon / norms.maximum(1e-12)).minimum(1)
                return x0 + moved * factor.reshape((-1, 1, 1, 1))

        return Projected(steps=steps)
    return {"linf": attacks.LInfFMNAttack, "l1": attacks.L1FMNAttack}[name](steps=steps)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["ddn", *NORMS])
def test_radii_agree_with_foolbox(digits, torch_digits, name):
    foolbox = pytest.importorskip("foolbox")
    module, images, labels = torch_digits
    model = foolbox.PyTorchModel(module, bounds=(0, 1))
    raw, _, _ = peer_of(name, 100)(model, images, labels, epsilons=None)
    norm = "l2" if name == "ddn" else name
    theirs = np.asarray(input_norms(jnp.asarray(from_torch(raw)) - digits.images, norm))
    options = {} if name == "ddn" else {"as_published": True}
    found = attack_of(name, **options)(Partial(digits.logits_fn), KEY, digits.images, digits.labels)
    right = np.array(digits.logits_fn(digits.images).argmax(1) == digits.labels)
    np.testing.assert_array_equal(np.asarray(found.radius)[~right], 0)
    # foolbox returns the clean image where it found nothing.
    found_theirs, found_ours = theirs[right] > 0, np.isfinite(np.asarray(found.radius)[right])
    assert (found_theirs == found_ours).mean() > 0.97
    right[right] = found_theirs & found_ours
    apart = np.abs(np.asarray(found.radius)[right] / theirs[right] - 1)
    assert np.median(apart) < 1e-4
    assert np.quantile(apart, 0.9) < 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_by_default_it_finds_what_the_published_algorithm_stops_short_of(digits, norm):
    given = (digits.logits_fn, KEY, digits.images, digits.labels)
    published, mine = FMN(norm=norm, as_published=True)(*given), FMN(norm=norm)(*given)
    assert bool(jnp.isfinite(mine.radius).all())
    both = np.asarray(jnp.isfinite(published.radius) & (published.radius > 0))
    assert both.mean() > 0.5
    ratio = np.asarray(mine.radius)[both] / np.asarray(published.radius)[both]
    assert np.median(ratio) < 1.001 and ratio.max() < 1.2
