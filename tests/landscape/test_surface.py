"""Surfaces: closed forms, scale invariance, the centre, stopping and resuming."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import PGD
from awp_jax.evaluation import measure
from awp_jax.landscape import Surface, axis, directions, surface

KEY = jax.random.key(3)
EPSILON = 0.1


def linear(params, images):
    return images.reshape(images.shape[0], -1) @ params["kernel"] + params["bias"][None]


def relu_network(params, images):
    x = images.reshape(images.shape[0], -1)
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return x @ params["out"]["kernel"] + params["out"]["bias"][None]


def batch_norm_network(stats, params, images):
    x = jax.lax.conv_general_dilated(
        images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = (x - stats["mean"]) * jax.lax.rsqrt(stats["var"] + stats["epsilon"])
    x = jax.nn.relu(x * params["scale"].reshape(1, 1, 1, -1))
    return x.mean((1, 2)) @ params["out"]


def tree(seed, shapes):
    rng = np.random.default_rng(seed)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def data(examples=10, classes=3, low=0.3, high=0.7):
    rng = np.random.default_rng(5)
    images = rng.uniform(low, high, (examples, 4, 4, 1)).astype(np.float32)
    return images, rng.integers(0, classes, examples).astype(np.int32)


@pytest.fixture(scope="module")
def network():
    shapes = {
        "hidden": {"kernel": (16, 8), "bias": (8,)},
        "out": {"kernel": (8, 3), "bias": (3,)},
    }
    params = tree(0, shapes)
    return params, directions(KEY, params, 2), *data()


def one(tree_of_two):
    return jax.tree.map(lambda leaf: leaf[:1], tree_of_two)


@pytest.mark.core
def test_two_classes_of_a_linear_model_in_closed_form():
    params = tree(1, {"kernel": (16, 2), "bias": (2,)})
    images, labels = data(classes=2)
    ways = directions(KEY, params)
    # Enough steps to reach every corner of the ball: the optimum of a linear model.
    attack = PGD(EPSILON, steps=4, step_size=EPSILON)
    common = {"axes": [axis(7, 3.0)], "attack": attack, "key": KEY}
    found = {
        how: surface(linear, params, ways, images, labels, adversarial=how, **common)
        for how in ("anew", "centre")
    }
    flat, sign = images.reshape(10, -1).astype(np.float64), np.where(labels == 0, 1, -1)
    kernel, way = (np.asarray(t["kernel"], np.float64) for t in (params, ways))
    bias = np.asarray(params["bias"], np.float64)
    centre = kernel[:, 0] - kernel[:, 1]
    for index, a in enumerate(axis(7, 3.0)):
        w = centre + a * (way[0][:, 0] - way[0][:, 1])
        clean = sign * (flat @ w + bias[0] - bias[1])
        for how, worst in (
            ("anew", np.abs(w).sum()),
            ("centre", (np.sign(centre) * w).sum()),
        ):
            margin = clean - EPSILON * worst
            expected = np.log1p(np.exp(-margin)).mean()
            np.testing.assert_allclose(found[how].loss[index], expected, rtol=1e-5)
            assert found[how].accuracy[index] == np.mean(margin > 0)
    assert (found["centre"].loss <= found["anew"].loss + 1e-6).all()
    assert found["centre"].loss[0] < found["anew"].loss[0] - 0.1, "underestimates far away"


def test_two_directions_span_a_plane():
    params = tree(2, {"kernel": (16, 3), "bias": (3,)})
    images, labels = data()
    ways = directions(KEY, params, 2)
    found = surface(linear, params, ways, images, labels, axes=[axis(3), [0.0, 0.25]], batch_size=4)
    assert found.loss.shape == found.accuracy.shape == (3, 2)
    kernel, way = (np.asarray(t["kernel"], np.float64) for t in (params, ways))
    for i, a in enumerate((-1, 0, 1)):
        for j, b in enumerate((0, 0.25)):
            z = images.reshape(10, -1) @ (kernel + a * way[0] + b * way[1])
            z += np.asarray(params["bias"])
            expected = np.log(np.exp(z).sum(1)) - z[np.arange(10), labels]
            np.testing.assert_allclose(found.loss[i, j], expected.mean(), rtol=1e-5)
            assert found.accuracy[i, j] == pytest.approx((z.argmax(1) == labels).mean())


@pytest.fixture(scope="module")
def curve(network):
    """With a function that counts how often it is traced."""
    params, ways, images, labels = network
    traces = []

    def counted(params, images):
        traces.append(images.shape)
        return relu_network(params, images)

    attack = PGD(EPSILON, steps=2)
    apply_fn = Partial(counted)
    found = surface(
        apply_fn, params, one(ways), images, labels, axes=[axis(5)], attack=attack, key=KEY
    )
    return found, traces, apply_fn, attack


def test_the_centre_is_the_reference_loss_with_the_same_key(network, curve):
    params, _, images, labels = network
    reference = measure(Partial(relu_network, params), images, labels, curve[3], key=KEY)
    assert curve[0].loss[2] == pytest.approx(reference.loss, rel=1e-6)
    assert curve[0].accuracy[2] == reference.accuracy
    assert np.ptp(curve[0].loss) > 0.05, "the curve is no constant"


def test_points_do_not_depend_on_each_other_or_on_batches_or_devices(network, curve):
    params, ways, images, labels = network
    found, traces, apply_fn, attack = curve
    before = len(traces)
    common = {"attack": attack, "key": KEY}
    places = [4, 0, 3]
    few = surface(
        apply_fn, params, one(ways), images, labels, axes=[found.axes[0][places]], **common
    )
    assert len(traces) == before, "other points compile nothing anew"
    np.testing.assert_array_equal(few.loss, found.loss[places])
    batched = surface(
        apply_fn, params, one(ways), images, labels, axes=found.axes, batch_size=4, **common
    )
    np.testing.assert_allclose(batched.loss, found.loss, rtol=1e-5)
    np.testing.assert_array_equal(batched.accuracy, found.accuracy)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    sharded = surface(
        apply_fn,
        *jax.device_put((params, one(ways)), whole),
        *jax.device_put((images, labels), spread),
        axes=found.axes,
        **common,
    )
    np.testing.assert_allclose(sharded.loss, found.loss, rtol=1e-5)


def test_several_points_in_one_compiled_call(network, curve):
    params, ways, images, labels = network
    found, traces, apply_fn, attack = curve
    before, reports = len(traces), []
    compiled = surface(
        apply_fn,
        params,
        one(ways),
        images,
        labels,
        axes=found.axes,
        attack=attack,
        key=KEY,
        points_per_call=2,
        on_points=lambda now, left: reports.append((int(np.isnan(now.loss).sum()), left)),
    )
    np.testing.assert_allclose(compiled.loss, found.loss, rtol=1e-5)
    assert reports == [(3, 3), (1, 1), (0, 0)]
    # Steps of the attack and the verdict, traced once for all points (and once to see shapes).
    assert len(traces) - before <= 4


def test_a_stopped_grid_goes_on_with_the_points_that_are_left(network, curve):
    params, ways, images, labels = network
    found, _, apply_fn, attack = curve
    common = {"axes": found.axes, "attack": attack, "key": KEY}
    kept = {}

    def stop(now, left):
        kept["surface"] = Surface(now.axes, now.loss.copy(), now.accuracy.copy())
        if left == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surface(apply_fn, params, one(ways), images, labels, on_points=stop, **common)
    assert np.isnan(kept["surface"].loss).sum() == 2
    marked = kept["surface"]._replace(loss=kept["surface"].loss.copy())
    marked.loss[0] = 77.0  # were it computed again, this would go
    lefts = []
    rest = surface(
        apply_fn,
        params,
        one(ways),
        images,
        labels,
        start=marked,
        on_points=lambda now, left: lefts.append(left),
        **common,
    )
    assert rest.loss[0] == 77.0 and lefts == [1, 0]
    np.testing.assert_array_equal(rest.loss[1:], found.loss[1:])


def test_points_where_the_model_returns_nan_are_nan_and_not_computed_again():
    def apply_fn(params, images):  # logits 0 and w, not a number beyond w = 1.5
        logits = images.mean((1, 2)) @ params["kernel"]
        return jnp.where(params["kernel"][0, 1] > 1.5, jnp.nan, logits)

    params, images = {"kernel": jnp.array([[0.0, 1.0]])}, jnp.full((3, 2, 2, 1), 0.5)
    ways, labels = {"kernel": jnp.array([[[0.0, 1.0]]])}, jnp.array([0, 1, 1])
    arguments = (apply_fn, params, ways, images, labels)
    with pytest.warns(UserWarning, match=r"NaN at 1 of 3 points of the landscape, first at \(1\)"):
        found = surface(*arguments, axes=[axis(3, 1.0)])
    np.testing.assert_array_equal(np.isnan(found.loss), [False, False, True])
    np.testing.assert_allclose(found.accuracy, [1 / 3, 2 / 3, np.nan], rtol=1e-12)
    assert found.computed.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = surface(*arguments, axes=[axis(3, 1.0)], start=found, on_points=pytest.fail)
    np.testing.assert_array_equal(again.loss, found.loss)


def test_layers_that_change_scale_leave_the_landscape_as_it_is(network, curve):
    params, ways, images, labels = network
    found, _, apply_fn, attack = curve
    scaled = {
        "hidden": jax.tree.map(lambda leaf: 2 * leaf, params["hidden"]),
        "out": {**params["out"], "kernel": params["out"]["kernel"] / 2},
    }
    common = {"axes": found.axes, "attack": attack, "key": KEY}
    again = surface(apply_fn, scaled, directions(KEY, scaled), images, labels, **common)
    np.testing.assert_allclose(again.loss, found.loss, atol=1e-4)
    # Directions that do not follow the scale show another landscape: the test can fail.
    other = surface(apply_fn, scaled, one(ways), images, labels, **common)
    assert np.abs(other.loss - found.loss).max() > 0.01


def test_convolutions_before_batch_norm_that_change_scale_leave_it_as_it_is():
    params = tree(4, {"kernel": (3, 3, 1, 4), "scale": (4,), "out": (4, 3)})
    images, labels = data()
    stats = {
        "mean": jnp.full((1, 1, 1, 4), 0.2),
        "var": jnp.full((1, 1, 1, 4), 0.3),
        "epsilon": jnp.full((1, 1, 1, 1), 0.05),
    }
    curves = []
    for factor in (1, 0.5, 2):
        power = {"mean": 1, "var": 2, "epsilon": 2}
        moved = {name: value * factor ** power[name] for name, value in stats.items()}
        scaled = {**params, "kernel": factor * params["kernel"]}
        apply_fn = Partial(batch_norm_network, moved)
        found = surface(
            apply_fn,
            scaled,
            directions(KEY, scaled),
            images,
            labels,
            axes=[axis(3)],
            attack=PGD(EPSILON, steps=2),
            key=KEY,
        )
        curves.append(found.loss)
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)
    np.testing.assert_allclose(curves[2], curves[0], atol=1e-4)
    assert np.ptp(curves[0]) > 0.01


def test_float64_stays_float64(network, x64):
    params, ways, images, labels = network
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, one(ways)))
    found = surface(relu_network, *wide, images, labels, axes=[[0.0, 1e-9]])
    assert 0 < abs(found.loss[1] - found.loss[0]) < 1e-7, "float32 would see no difference"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": [[0.0], [0.0]]}, r"shape \(1, 16, 8\), but \(2, 16, 8\)|differ|one axis per"),
        ({"axes": []}, "axes is empty"),
        ({"axes": [[0.0, np.nan]]}, "finite coordinates"),
        ({"axes": [[]]}, "finite coordinates"),
        ({"attack": PGD(EPSILON), "key": None}, "key is missing"),
        ({"adversarial": "center"}, "Did you mean 'centre'"),
        ({"directions": {"kernel": jnp.ones((1, 3))}}, "differ in structure"),
        ({"labels": np.full(10, 7, np.int32)}, "labels lie in"),
        ({"images": np.full((10, 4, 4, 1), 2.0, np.float32)}, r"values in \[0, 1\]"),
        ({"images": np.zeros((3, 4, 4, 1), np.float32)}, "same batch"),
        ({"start": Surface((np.zeros(1),), np.zeros(1), np.zeros(1))}, "other axes"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_input(network, changes, message):
    params, ways, images, labels = network
    arguments = {"directions": one(ways), "images": images, "labels": labels, "axes": [axis(3)]}
    with pytest.raises(ValueError, match=message):
        surface(relu_network, params, **{**arguments, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), "points is 4, but an odd number"),
        ((1,), "points is 1"),
        ((5, 0.0), "range is 0.0"),
        ((5, -1.0), "above 0"),
        ((5, float("nan")), "range is nan"),
    ],
)
def test_bad_axes(arguments, message):
    with pytest.raises(ValueError, match=message):
        axis(*arguments)


def test_an_axis_is_symmetric_around_an_exact_zero():
    for points, extent in ((41, 1.0), (7, 0.3), (21, 1 / 3)):
        found = axis(points, extent)
        assert found[points // 2] == 0 and (found == -found[::-1]).all() and found[-1] == extent
