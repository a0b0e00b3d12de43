"""FGSM and PGD: optima of linear models, peers, keys, compilation, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from awp_jax.attacks import FGSM, PGD, AttackResult, autoattack, kl_divergence
from awp_jax.attacks._result import Ranked, worse
from awp_jax.balls import input_norms

KEY = jax.random.key(0)
WEIGHTS = np.array([[3.0, -1.0, 0.5], [-2.0, 0.0, 0.25]])
NORMS = ("linf", "l2", "l1")


def linear(images):
    """Logits (0, w.x): for label 0 the margin is w.x."""
    scores = jnp.sum(images[..., 0] * WEIGHTS.astype(images.dtype)[None], axis=(1, 2))
    return jnp.stack([jnp.zeros_like(scores), scores], axis=1)


def waves(scale, images):
    """A model with many local maxima."""
    flat = images.reshape(images.shape[0], -1)
    return jnp.stack([jnp.sin(scale * flat).sum(1), jnp.cos(scale * flat).sum(1)], axis=1)


wavy = functools.partial(waves, 40.0)
GREY = jnp.full((2, 2, 3, 1), 0.5)
LABELS = jnp.array([0, 1])
SIGNS = np.array([1.0, -1.0])[:, None, None, None]  # label 1 descends w.x
NOISE = jax.random.uniform(jax.random.key(9), (4, 2, 3, 1))
NOISE_LABELS = jnp.array([0, 1, 0, 1])


@pytest.mark.core
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("start", ["none", "uniform", "gaussian"])
@pytest.mark.parametrize("norm", NORMS)
def test_reaches_the_optimum_of_a_linear_model(norm, start, loss):
    dual = {"linf": np.abs(WEIGHTS).sum(), "l2": np.sqrt((WEIGHTS**2).sum()), "l1": 3.0}[norm]
    attack = PGD(epsilon=0.1, steps=20, step_size=0.1, norm=norm, loss=loss, start=start)
    found = attack(linear, KEY, GREY, LABELS).images
    gain = np.asarray(linear(found) - linear(GREY))[:, 1]
    np.testing.assert_allclose(gain, [0.1 * dual, -0.1 * dual], rtol=1e-4)


@pytest.mark.parametrize("start", ["none", "uniform"])
def test_reaches_the_optimum_of_the_box(start):
    centre = jnp.asarray(np.linspace(0, 1, 12).reshape(2, 2, 3, 1), jnp.float32)
    attack = PGD(epsilon=0.3, steps=10, step_size=0.1, start=start)
    found = attack(linear, KEY, centre, LABELS).images
    expected = np.clip(centre + 0.3 * np.sign(WEIGHTS)[None, ..., None] * SIGNS, 0, 1)
    moves = np.broadcast_to((WEIGHTS != 0)[None, ..., None], centre.shape)
    np.testing.assert_allclose(np.asarray(found)[moves], expected[moves], atol=1e-6)


@pytest.mark.core
def test_fgsm_in_closed_form():
    direction = WEIGHTS[None, ..., None] * SIGNS
    found = FGSM("51/255")(linear, KEY, GREY, LABELS)
    np.testing.assert_allclose(found.images, 0.5 + 0.2 * np.sign(direction), rtol=1e-6)
    found = FGSM(0.2, norm="l2")(linear, KEY, GREY, LABELS)
    length = np.sqrt((WEIGHTS**2).sum())
    np.testing.assert_allclose(found.images, 0.5 + 0.2 * direction / length, rtol=1e-6)
    bright = jnp.full((2, 2, 3, 1), 0.9)
    found = FGSM(0.2)(linear, KEY, bright, LABELS)
    np.testing.assert_allclose(
        found.images, np.clip(0.9 + 0.2 * np.sign(direction), 0, 1), rtol=1e-6
    )


def test_the_verdict_is_a_forward_pass():
    found = PGD(0.1, steps=2)(linear, KEY, GREY, LABELS)
    logits = np.asarray(linear(found.images), np.float64)
    np.testing.assert_array_equal(found.success, logits.argmax(1) != LABELS)
    expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1], [0, 1]]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert found.images.dtype == GREY.dtype and found.steps is None


# --- peers ------------------------------------------------------------------------------------


@pytest.fixture
def twin_models(x64):
    """The same small network for PyTorch and JAX, in float64, with images and labels."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    w1, b1, w2 = random.normal(size=(12, 16)), random.normal(size=16), random.normal(size=(16, 3))
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
    ).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor(w1.T))
        network[1].bias.copy_(torch.tensor(b1))
        network[3].weight.copy_(torch.tensor(w2.T))
        network[3].bias.zero_()
    images = random.uniform(size=(6, 3, 4, 1))

    def logits_fn(images):
        hidden = jnp.tanh(images.reshape(-1, 12) @ w1 + jnp.asarray(b1)[None])
        return hidden @ w2

    labels = np.array([0, 1, 2, 0, 1, 2])
    return network.eval(), logits_fn, images, labels


CASES = {
    "fgsm linf": ("linf", 0.1, 1, 0.1),
    "fgsm l2": ("l2", 0.5, 1, 0.5),
    "pgd linf": ("linf", 0.1, 10, 0.03),
    "pgd l2": ("l2", 0.5, 10, 0.1),
}


def _ours(case, logits_fn, images, labels):
    norm, epsilon, steps, size = CASES[case]
    if case.startswith("fgsm"):
        attack = FGSM(epsilon, norm=norm)
    else:
        attack = PGD(epsilon, steps, step_size=size, norm=norm, start="none")
    return attack(logits_fn, KEY, jnp.asarray(images), jnp.asarray(labels))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_equals_foolbox_image_by_image(case, twin_models):
    network, logits_fn, images, labels = twin_models
    foolbox = pytest.importorskip("foolbox")
    torch = pytest.importorskip("torch")
    norm, epsilon, steps, size = CASES[case]
    attacks = foolbox.attacks
    peer = {
        "fgsm linf": lambda: attacks.LinfFastGradientAttack(random_start=False),
        "fgsm l2": lambda: attacks.L2FastGradientAttack(random_start=False),
        "pgd linf": lambda: attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False),
        "pgd l2": lambda: attacks.L2PGD(abs_stepsize=size, steps=steps, random_start=False),
    }[case]()
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    theirs = peer.run(
        model,
        torch.tensor(images.transpose(0, 3, 1, 2)),
        foolbox.criteria.Misclassification(torch.tensor(labels)),
        epsilon=epsilon,
    )
    ours = _ours(case, logits_fn, images, labels).images
    assert not np.allclose(ours, images)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", ["fgsm linf", "pgd linf", "pgd l2"])
def test_equals_torchattacks_image_by_image(case, twin_models):
    network, logits_fn, images, labels = twin_models
    torchattacks = pytest.importorskip("torchattacks", exc_type=ImportError)
    torch = pytest.importorskip("torch")
    _, epsilon, steps, size = CASES[case]
    peer = {
        "fgsm linf": lambda: torchattacks.FGSM(network, eps=epsilon),
        "pgd linf": lambda: torchattacks.PGD(network, epsilon, size, steps, random_start=False),
        "pgd l2": lambda: torchattacks.PGDL2(network, epsilon, size, steps, random_start=False),
    }[case]()
    theirs = peer(torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels))
    ours = _ours(case, logits_fn, images, labels).images
    np.testing.assert_allclose(
        ours, theirs.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-7
    )


# --- restarts and keys ------------------------------------------------------------------------


def test_worse_by_hand():
    def result(images, success, loss, ascended, margin):
        shape = jnp.array(images, jnp.float32).reshape(-1, 1)
        found = AttackResult(shape, jnp.array(success), jnp.array(loss, jnp.float32))
        return Ranked(found, jnp.array(ascended), jnp.array(margin))

    yes = [True, False, True, False, True, False]
    first = result([1, 2, 3, 4, 5, 6], yes, [1, 9, 1, 2, 3, 0], [5, 9, 1, 2, 3, 0], [0] * 6)
    yes = [False, True, True, False, True, False]
    second = [-1, -2, -3, -4, -5, -6], yes, [7, 1, 2, 1, 3, 0], [9, 1, 2, 1, 3, 0]
    both, ascended, *_ = worse(first, result(*second, [0, 0, 0, 9, 0, 1]))
    # A misclassified image wins whatever the losses; else the higher loss that is ascended, and the
    # margin where that ties; the first where both do.
    np.testing.assert_array_equal(both.images[:, 0], [1, -2, -3, 4, 5, -6])
    np.testing.assert_array_equal(both.success, [True, True, True, False, True, False])
    np.testing.assert_array_equal(both.loss, [7, 9, 2, 2, 3, 0])
    np.testing.assert_array_equal(ascended, [5, 1, 2, 2, 3, 0])


@pytest.mark.core
def test_restarts_keep_the_worst():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    runs = []
    for restart in range(3):
        keys_now = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
        runs.append(PGD(0.1, steps=3)(wavy, keys_now, NOISE, NOISE_LABELS))
    found = PGD(0.1, steps=3, restarts=3)(wavy, KEY, NOISE, NOISE_LABELS)
    losses = np.stack([run.loss for run in runs])
    assert np.ptp(losses, axis=0).min() > 1e-3  # the restarts really differ
    np.testing.assert_allclose(found.loss, losses.max(0), rtol=1e-6)
    np.testing.assert_array_equal(found.success, np.any([run.success for run in runs], axis=0))
    for example in range(4):
        among = [
            run.images[example] for run in runs if run.success[example] == found.success[example]
        ]
        assert any(np.allclose(found.images[example], image) for image in among)


@pytest.mark.core
@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_batch_split(norm):
    attack = PGD(0.1, steps=3, norm=norm, restarts=2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    whole = attack(wavy, KEY, NOISE, NOISE_LABELS)
    again = attack(wavy, keys, NOISE, NOISE_LABELS)
    parts = [
        attack(wavy, keys[part], NOISE[part], NOISE_LABELS[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_array_equal(whole.images, again.images)
    joined = jnp.concatenate([part.images for part in parts])
    np.testing.assert_allclose(whole.images, joined, rtol=0, atol=1e-6)


def test_keys_matter_only_for_random_starts():
    other = jax.random.key(1)
    attack = PGD(0.1, steps=2)
    assert not np.allclose(
        attack(wavy, KEY, NOISE, NOISE_LABELS).images,
        attack(wavy, other, NOISE, NOISE_LABELS).images,
    )
    attack = PGD(0.1, steps=2, start="none")
    np.testing.assert_array_equal(
        attack(wavy, KEY, NOISE, NOISE_LABELS).images,
        attack(wavy, other, NOISE, NOISE_LABELS).images,
    )


# --- compilation ------------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [None, True, False])
def test_jit_gives_the_same(unroll):
    attack = PGD(0.1, steps=3, restarts=2, unroll=unroll)
    eager = PGD(0.1, steps=3, restarts=2)(wavy, KEY, NOISE, NOISE_LABELS)
    jitted = jax.jit(functools.partial(attack, wavy))(KEY, NOISE, NOISE_LABELS)
    for a, b in zip(eager[:3], jitted[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.core
def test_compiled_once_for_all_parameters():
    traces = []

    def apply(scale, images):
        traces.append(1)
        return waves(scale, images)

    def attacked(scale):
        attack = PGD(0.1, steps=3, start="none")  # made anew: equal attacks share compilations
        return attack(Partial(apply, jnp.float32(scale)), KEY, NOISE, NOISE_LABELS)

    first = attacked(40.0)
    compiled = len(traces)
    second = attacked(10.0)
    assert len(traces) == compiled
    assert not np.allclose(first.images, second.images)


def test_epsilon_may_be_traced():
    @jax.jit
    def gain(epsilon):
        attack = PGD(epsilon, steps=2, step_size=epsilon, start="none")
        return linear(attack(linear, KEY, GREY, LABELS).images)[0, 1]

    start = float(linear(GREY)[0, 1])
    for epsilon in (0.1, 0.2):
        expected = start + epsilon * np.abs(WEIGHTS).sum()
        np.testing.assert_allclose(gain(epsilon), expected, rtol=1e-5)


def test_under_vmap_and_shard_map():
    attack = PGD(0.1, steps=2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(4))
    expected = attack(wavy, KEY, NOISE, NOISE_LABELS)
    run = functools.partial(attack, wavy)
    pairs = [array.reshape(2, 2, *array.shape[1:]) for array in (NOISE, NOISE_LABELS)]
    mapped = jax.jit(jax.vmap(run))(keys.reshape(2, 2), *pairs)
    np.testing.assert_allclose(mapped.images.reshape(NOISE.shape), expected.images, atol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(
        keys, NOISE, NOISE_LABELS
    )
    np.testing.assert_allclose(sharded.images, expected.images, atol=1e-6)
    np.testing.assert_array_equal(sharded.success, expected.success)


@pytest.mark.parametrize("unroll", [True, False])
def test_models_that_close_over_tracers_do_not_leak(unroll):
    @jax.jit
    def run(scale):
        attack = PGD(0.1, steps=2, start="none", unroll=unroll)
        return attack(lambda images: waves(scale, images), KEY, NOISE, NOISE_LABELS).loss

    with jax.checking_leaks():
        run(40.0)


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_zero_returns_the_clean_images(norm, start):
    for steps in (0, 2):
        found = PGD(0, steps=steps, norm=norm, start=start)(wavy, KEY, NOISE, NOISE_LABELS)
        np.testing.assert_array_equal(found.images, NOISE)


def test_no_steps_give_the_projected_start():
    black = jnp.zeros_like(NOISE)
    found = PGD(0.1, steps=0, start="gaussian")(wavy, KEY, black, NOISE_LABELS).images
    assert 0 == float(found.min()) < float(found.max()) < 0.01


def test_radii_as_text_and_the_default_step():
    assert PGD("8/255", step_size="2/255") == PGD(8 / 255, step_size=2 / 255)
    assert PGD(0.1, steps=10).size == pytest.approx(0.025)
    assert hash(PGD("8/255")) == hash(PGD(8 / 255))


def test_float64_arrays_of_numpy_are_accepted():
    images = np.asarray(NOISE, np.float64)
    for start in ("uniform", "gaussian", "none"):
        found = PGD(0.1, steps=1, start=start)(wavy, KEY, images, np.asarray(NOISE_LABELS))
        assert found.images.dtype == jnp.float32


def test_images_of_half_precision_move_in_float32():
    for dtype in (jnp.bfloat16, jnp.float16):
        images = NOISE.astype(dtype)
        for norm in NORMS:
            attack = jax.jit(functools.partial(PGD(0.1, steps=1, norm=norm), wavy))
            found = attack(KEY, images, NOISE_LABELS).images
            assert found.dtype == jnp.float32
            wide = images.astype(jnp.float32)
            assert float(input_norms(found - wide, norm).max()) <= 0.1 * (1 + 1e-5)
            assert 0 <= float(found.min()) and float(found.max()) <= 1


@pytest.mark.parametrize("name", ["apgd-ce", "square", "fab"])
def test_bounds_are_not_rounded_to_half_precision(name):
    """An image 1.058 epsilon away would be misclassified; in bfloat16 that is the nearest."""

    def logits_fn(images):
        return (images.astype(jnp.float32).mean((1, 2)) - 0.5225) @ jnp.array([[1.0, -1.0]])

    images = jnp.full((1, 2, 2, 1), 251 / 512, jnp.bfloat16)
    found = autoattack(
        logits_fn, KEY, images, jnp.array([1]), epsilon="8/255", version="custom", attacks=[name]
    )
    assert found.accuracy == 1.0
    assert abs(found.images - np.asarray(images, np.float32)).max() <= 8 / 255 + 1e-7


def test_any_loss_can_be_ascended():
    clean = linear(GREY)

    def divergence(logits, labels):
        return kl_divergence(clean, logits)

    found = PGD(0.1, steps=4, loss=divergence)(linear, KEY, GREY, LABELS).images
    uphill = kl_divergence(clean, linear(found))
    assert float(uphill.min()) > float(kl_divergence(clean, linear(GREY)).max())


def test_a_constant_model_moves_nothing():
    def constant(images):
        return jnp.zeros((images.shape[0], 2)) + 0 * images.sum()

    for norm in NORMS:
        found = PGD(0.1, steps=2, norm=norm, start="none")(constant, KEY, NOISE, NOISE_LABELS)
        np.testing.assert_array_equal(found.images, NOISE)


BAD_CALLS = {
    "above 1": (lambda x, y: (KEY, x * 255, y), r"images hold \[.*expected"),
    "below 0": (lambda x, y: (KEY, x - 1, y), r"images hold \[-.*expected"),
    "NaN": (lambda x, y: (KEY, x.at[0].set(jnp.nan), y), "images hold NaN"),
    "integers": (lambda x, y: (KEY, (x * 255).astype(jnp.uint8), y), "dtype uint8"),
    "float labels": (lambda x, y: (KEY, x, y * 1.0), "labels have dtype float32"),
    "labels too high": (lambda x, y: (KEY, x, y + 1), r"labels lie in \[1, 2\].* below 2"),
    "negative labels": (lambda x, y: (KEY, x, y - 1), r"labels lie in \[-1, 0\]"),
    "fewer labels": (lambda x, y: (KEY, x, y[:1]), r"labels \(1,\)"),
    "no images": (lambda x, y: (KEY, x[:0], y[:0]), "The batch is empty"),
    "raw key": (lambda x, y: (jax.random.PRNGKey(0), x, y), r"jax.random.key\(seed\)"),
    "seed": (lambda x, y: (0, x, y), r"key is int, .*jax.random.key\(seed\)"),
    "too many keys": (lambda x, y: (jax.random.split(KEY, 5), x, y), r"shape \(5,\)"),
    "order": (lambda x, y: (x, y, KEY), r"the order is attack\(logits_fn, key, images, labels\)"),
}


@pytest.mark.core
@pytest.mark.parametrize("case", BAD_CALLS)
@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, restarts=2)], ids=["FGSM", "PGD"])
def test_bad_calls_say_so_in_one_sentence(case, attack):
    arguments, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message) as error:
        attack(linear, *arguments(GREY, LABELS))
    assert "\n" not in str(error.value)


def test_models_without_logits_are_refused():
    with pytest.raises(ValueError, match=r"logits_fn returned \(2,\) for 2 images"):
        PGD(0.1)(lambda images: images.sum((1, 2, 3)), KEY, GREY, LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"epsilon": "8:255"}, "epsilon is '8:255'"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"step_size": -1}, "step_size is -1"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"restarts": 0}, "restarts is 0"),
        ({"norm": "Linf"}, "Unknown norm 'Linf'.*Did you mean 'linf'"),
        ({"loss": "crossentropy"}, "Unknown loss 'crossentropy'.*Did you mean 'cross_entropy'"),
        ({"start": "random"}, "Unknown start 'random'; known: uniform, gaussian, none"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message) as error:
        PGD(**options)
    assert "\n" not in str(error.value)


def test_epsilon_of_8_is_refused():
    with pytest.raises(ValueError, match="8/255 meant"):
        PGD(8)
