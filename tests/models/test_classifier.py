"""The contract every classifier keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_net import TinyNet

from awp_jax import models

SHAPE = (8, 8, 1)


def tiny(**options):
    return models.from_network(TinyNet, name="tiny", image_shape=SHAPE, num_classes=3, **options)


def small(name, **options):
    return models.create(name, image_shape=SHAPE, num_classes=3, **options)


def images_of(batch, shape=SHAPE):
    return jax.random.uniform(jax.random.key(1), (batch, *shape))


@pytest.fixture(scope="module")
def network():
    """A network with BatchNorm, its variables, and its ``apply`` compiled for each mode."""
    classifier = tiny()
    params, batch_stats = jax.jit(classifier.init)(jax.random.key(0))
    return classifier, params, batch_stats, jax.jit(classifier.apply, static_argnames="mode")


def string_keys(tree):
    if not isinstance(tree, dict):
        return isinstance(tree, jax.Array) and tree.dtype == jnp.float32
    return type(tree) is dict and all(
        isinstance(name, str) and string_keys(value) for name, value in tree.items()
    )


def equal(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right))
    )


@pytest.mark.core
def test_init_gives_plain_nested_dicts(network):
    classifier, params, batch_stats, _ = network
    assert string_keys(params) and string_keys(batch_stats)
    assert set(params) == {"conv1", "bn1", "blocks", "bn2", "linear"}
    assert set(params["blocks"]) == {"0"} and set(batch_stats) == {"bn1", "bn2"}
    assert set(batch_stats["bn1"]) == {"mean", "var"}
    abstract = jax.eval_shape(classifier.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, (params, batch_stats)) == jax.tree.map(
        lambda leaf: leaf.shape, abstract
    )


def test_models_without_batch_norm_have_no_statistics():
    assert small("mlp").init(jax.random.key(0))[1] == {}
    assert small("linear").init(jax.random.key(0))[1] == {}


def test_layers_of_other_origin_bring_their_own_initialisers():
    class Mixed(TinyNet):
        def __init__(self, make):
            super().__init__(make)
            self.linear = nnx.Linear(6, 3, kernel_init=nnx.initializers.ones, rngs=make.rngs)

    classifier = models.from_network(Mixed, name="mixed", image_shape=SHAPE, num_classes=3)
    params, batch_stats = classifier.init(jax.random.key(0))
    assert np.all(params["linear"]["kernel"] == 1)
    bound = 9**-0.5
    assert 0.8 * bound < np.abs(params["conv1"]["kernel"]).max() <= bound
    assert np.all(params["bn1"]["scale"] == 1) and np.all(batch_stats["bn1"]["mean"] == 0)


def test_init_depends_on_the_key_alone():
    classifier = small("mlp")
    first, second, other = (classifier.init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert equal(first, second) and not equal(first, other)


@pytest.mark.core
def test_modes(network):
    classifier, params, batch_stats, apply = network
    images = images_of(6)
    outputs = {mode: apply(params, batch_stats, images, mode=mode) for mode in models.MODES}
    assert all(logits.shape == (6, 3) for logits, _ in outputs.values())
    assert equal(outputs["running"][1], batch_stats) and equal(outputs["batch"][1], batch_stats)
    assert not equal(outputs["update"][1], batch_stats)
    np.testing.assert_allclose(outputs["batch"][0], outputs["update"][0], rtol=1e-5)
    assert not np.allclose(outputs["running"][0], outputs["batch"][0])
    # Rows of a pass with running statistics do not see each other.
    alone, _ = apply(params, batch_stats, images[:1], mode="running")
    np.testing.assert_allclose(alone[0], outputs["running"][0][0], rtol=1e-4, atol=1e-6)


def test_apply_is_pure(network):
    """Twice the same, no tracer left behind, and a caller's numpy arrays untouched."""
    classifier, *variables, apply = network
    params, batch_stats = jax.tree.map(np.array, variables)
    before = jax.tree.map(np.copy, (params, batch_stats))
    images = np.asarray(images_of(4))
    with jax.checking_leaks():
        step = jax.jit(lambda *arguments: classifier.apply(*arguments, mode="update"))
        first = step(params, batch_stats, images)
    assert equal(first, step(params, batch_stats, images))
    eager = classifier.apply(params, batch_stats, images, mode="update")
    np.testing.assert_allclose(first[0], eager[0], rtol=1e-4, atol=1e-6)
    for found, expected in zip(*map(jax.tree.leaves, ((params, batch_stats), before)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_mask_reaches_every_batch_norm(network):
    classifier, params, batch_stats, apply = network
    images, mask = images_of(6), jnp.arange(6) < 4
    padded = jnp.where(mask[:, None, None, None], images, 0.3)
    logits, stats = apply(params, batch_stats, padded, mode="update", mask=mask)
    expected_logits, expected_stats = apply(params, batch_stats, images[:4], mode="update")
    np.testing.assert_allclose(logits[:4], expected_logits, rtol=1e-4, atol=1e-5)
    for found, expected in zip(*map(jax.tree.leaves, (stats, expected_stats)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_batch_norm_groups_are_an_option():
    classifier = tiny(batch_norm_groups=2)
    params, batch_stats = classifier.init(jax.random.key(0))
    apply = jax.jit(lambda images: classifier.apply(params, batch_stats, images, mode="batch")[0])
    images = images_of(6)
    alone = tiny()
    half = jax.jit(lambda images: alone.apply(params, batch_stats, images, mode="batch")[0])
    expected = jnp.concatenate([half(images[:3]), half(images[3:])])
    np.testing.assert_allclose(apply(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_float64_parameters_give_float64(x64):
    classifier = small("mlp", width=4, mean=(0.5,), std=(0.25,))
    params, batch_stats = classifier.init(jax.random.key(0))
    assert jax.tree.leaves(params)[0].dtype == jnp.float32
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    images = images_of(2).astype(jnp.float32)
    logits, _ = classifier.apply(params, batch_stats, images, mode="running")
    assert logits.dtype == jnp.float64
    assert classifier.features(params, batch_stats, images).dtype == jnp.float64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_close_and_returns_float32(network, dtype):
    _, params, batch_stats, apply = network
    classifier = tiny(dtype=dtype)
    images = images_of(8)
    logits, stats = jax.jit(classifier.apply, static_argnames="mode")(
        params, batch_stats, images, mode="update"
    )
    expected, expected_stats = apply(params, batch_stats, images, mode="update")
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))
    np.testing.assert_allclose(logits, expected, atol=0.1 * float(jnp.abs(expected).max()))
    assert not np.array_equal(logits, expected)
    np.testing.assert_allclose(stats["bn2"]["var"], expected_stats["bn2"]["var"], rtol=0.05)


@pytest.mark.core
def test_normalisation_is_inside_the_model():
    plain, normalised = small("linear"), small("linear", mean=(0.5,), std=(0.25,))
    params, _ = plain.init(jax.random.key(0))
    images = images_of(3)
    logits, _ = normalised.apply(params, {}, images, mode="running")
    expected, _ = plain.apply(params, {}, (images - 0.5) / 0.25, mode="running")
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_features_come_before_the_last_layer(network):
    classifier, params, batch_stats, apply = network
    images = images_of(3)
    features = jax.jit(classifier.features)(params, batch_stats, images)
    assert features.shape == (3, 6)
    logits = features @ params["linear"]["kernel"] + params["linear"]["bias"][None]
    expected, _ = apply(params, batch_stats, images, mode="running")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key_and_depends_on_it():
    classifier = small("mlp", dropout=0.5)
    params, _ = classifier.init(jax.random.key(0))
    images = images_of(4)

    def logits(mode, key=None):
        return classifier.apply(params, {}, images, mode=mode, key=key)[0]

    with pytest.raises(ValueError, match='mode "update" needs a key'):
        logits("update")
    one, other = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(logits("update", one), logits("batch", one))
    assert not np.allclose(logits("update", one), logits("update", other))
    np.testing.assert_array_equal(logits("batch"), logits("running"))
    np.testing.assert_array_equal(logits("running", one), logits("running"))


def test_dropout_draws_follow_the_example_not_the_batch():
    classifier = small("mlp", dropout=0.5)
    params, _ = classifier.init(jax.random.key(0))
    images, keys = images_of(4), jax.random.split(jax.random.key(3), 4)
    whole, _ = classifier.apply(params, {}, images, mode="update", key=keys)
    part, _ = classifier.apply(params, {}, images[2:], mode="update", key=keys[2:])
    np.testing.assert_allclose(whole[2:], part, rtol=1e-5, atol=1e-7)


def test_dropout_keeps_the_expectation():
    context = models.Context("batch", jax.random.key(0))
    ones = jnp.ones((100, 200))
    dropped = context.dropout(ones, 0.25)
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)
    # Another layer of the same pass draws anew.
    assert not np.array_equal(dropped, context.dropout(ones, 0.25))


@pytest.mark.core
def test_logits_fn_is_a_pytree_that_does_not_recompile():
    classifier = small("mlp", width=4)
    compiled = []

    @jax.jit
    def attack(logits_fn, images):
        compiled.append(images.shape)
        return jax.grad(lambda images: logits_fn(images).sum())(images)

    images = images_of(2)
    for seed in range(3):
        params, batch_stats = classifier.init(jax.random.key(seed))
        attack(classifier.logits_fn(params, batch_stats), images)
    assert len(compiled) == 1
    attack(classifier.logits_fn(params, batch_stats, "batch"), images)
    assert len(compiled) == 2
    assert len(jax.tree.leaves(classifier.logits_fn(params, batch_stats))) == 6
    expected, _ = classifier.apply(params, batch_stats, images, mode="running")
    found = classifier.logits_fn(params, batch_stats)(images)
    np.testing.assert_array_equal(found, expected)


def test_logits_fn_takes_a_key_for_dropout():
    classifier = small("mlp", dropout=0.5)
    params, _ = classifier.init(jax.random.key(0))
    logits_fn = classifier.logits_fn(params, {}, "batch")
    images = images_of(2)
    assert not np.allclose(logits_fn(images, jax.random.key(0)), logits_fn(images))
    with pytest.raises(ValueError, match="'update'"):
        classifier.logits_fn(params, {}, "update")


@pytest.mark.core
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "train"}, "mode 'train'"),
        ({"images": jnp.zeros((2, 9, 8, 1))}, r"\[batch, 8, 8, 1\], got \[2, 9, 8, 1\]"),
        ({"images": jnp.zeros((8, 8, 1))}, r"got \[8, 8, 1\]"),
        ({"images": jnp.zeros((2, 8, 8, 1), jnp.uint8)}, "uint8"),
        ({"mask": jnp.ones((3,), bool)}, r"bool \[2\]"),
        ({"mask": jnp.ones((2,))}, "float32"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"\[3\]"),
        ({"params": {"linear": {"kernel": jnp.zeros((64, 3))}}}, "lacks linear/bias"),
        ({"batch_stats": {"bn": {"mean": jnp.zeros(1)}}}, "unknown bn/mean"),
    ],
)
def test_bad_arguments_are_named_before_tracing(changes, message):
    classifier = small("linear")
    params, _ = classifier.init(jax.random.key(0))
    arguments = {
        "params": params, "batch_stats": {}, "images": jnp.zeros((2, *SHAPE)), "mode": "running",
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        classifier.apply(**arguments)


def test_a_classifier_is_frozen_and_hashable():
    one, other = small("linear"), small("linear")
    assert one == one and one != other and len({one, other}) == 2
    with pytest.raises(AttributeError):
        one.name = "another"
    assert repr(one).startswith("Classifier(name='linear', num_classes=3, image_shape=(8, 8, 1)")


def test_apply_fn_is_a_function_of_parameters_and_compiles_once_for_all_statistics(network):
    classifier, params, batch_stats, apply = network
    images = images_of(2)
    compiled = jax.jit(lambda apply_fn, params: apply_fn(params, images))
    apply_fn = classifier.apply_fn(batch_stats)
    expected = apply(params, batch_stats, images, mode="running")[0]
    np.testing.assert_allclose(compiled(apply_fn, params), expected, rtol=1e-5, atol=1e-6)
    other = jax.tree.map(lambda leaf: leaf + 0.5, batch_stats)
    expected = apply(params, other, images, mode="running")[0]
    np.testing.assert_allclose(
        compiled(classifier.apply_fn(other), params), expected, rtol=1e-5, atol=1e-6
    )
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preact-resnet-10", {"width": 4}),
        ("mlp", {}),
        ("vit-s", {"patch": 4, "width": 48}),
        ("dm-wrn-10-1", {}),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parameters_in_the_compute_dtype_give_the_same_numbers(name, options, dtype):
    classifier = models.create(name, image_shape=(8, 8, 3), num_classes=4, dtype=dtype, **options)
    params, stats = classifier.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    cast = classifier.in_compute_dtype(params)
    if dtype == "float32":
        assert cast is params
        return
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cast)} == {"bfloat16", "float32"}
    found, expected = (classifier.apply(p, stats, images, mode="batch")[0] for p in (cast, params))
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_parametric_noise_is_added_to_kernels_as_they_are():
    classifier = models.create("mlp", image_shape=(4, 4, 1), num_classes=3, dtype="bfloat16")
    noisy = models.with_parametric_noise(classifier)
    params = {"kernel": jnp.ones(3)}
    assert noisy.in_compute_dtype(params) is params
