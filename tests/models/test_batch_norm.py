"""BatchNorm against PyTorch, in groups, masked and over mapped devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from awp_jax.models import BatchNorm, Context, normalised

CHANNELS = 3


@functools.cache
def forward(groups=1, axis_name=None, dtype=None):
    """``apply(variables, inputs, mode, mask) -> (outputs, variables)`` and first variables."""
    module = BatchNorm(CHANNELS, groups=groups, axis_name=axis_name)
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    start = {
        "scale": rng.uniform(0.5, 1.5, CHANNELS),
        "bias": rng.standard_normal(CHANNELS),
        "mean": rng.standard_normal(CHANNELS),
        "var": rng.uniform(0.5, 1.5, CHANNELS),
    }
    start = {name: value.astype(dtype or np.float32) for name, value in start.items()}

    def apply(variables, inputs, mode, mask=None):
        # Leaves of a NNX state come sorted by name.
        filled_params = jax.tree.unflatten(
            jax.tree.structure(params), [variables["bias"], variables["scale"]]
        )
        filled_stats = jax.tree.unflatten(
            jax.tree.structure(stats), [variables["mean"], variables["var"]]
        )
        merged = nnx.merge(graphdef, filled_params, filled_stats)
        outputs = merged(inputs, Context(mode, mask=mask))
        mean, var = jax.tree.leaves(nnx.state(merged, nnx.BatchStat))
        return outputs, {**variables, "mean": mean, "var": var}

    return apply, start


def inputs_of(batch, seed=1, dtype=np.float32, mean=2.0):
    rng = np.random.default_rng(seed)
    return (mean + rng.standard_normal((batch, 4, 5, CHANNELS))).astype(dtype)


def torch_norm(torch, start):
    module = torch.nn.BatchNorm2d(CHANNELS).to(torch.tensor(start["scale"]).dtype)
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    module.load_state_dict(
        {names[name]: torch.tensor(value) for name, value in start.items()}
        | {"num_batches_tracked": torch.tensor(0)}
    )
    return module


def evaluate(torch, module, inputs):
    outputs = module(torch.tensor(inputs.transpose(0, 3, 1, 2).copy()))
    return outputs.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.core
def test_several_steps_equal_pytorch(x64):
    torch = pytest.importorskip("torch")
    apply, variables = forward(dtype=np.float64)
    module = torch_norm(torch, variables)
    for seed in range(4):
        inputs = inputs_of(7, seed, np.float64, mean=seed)
        outputs, variables = apply(variables, inputs, "update")
        expected = evaluate(torch, module, inputs)
        np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(variables["mean"], module.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(variables["var"], module.running_var.numpy(), rtol=1e-12)
    module.eval()
    outputs, unchanged = apply(variables, inputs, "running")
    expected = evaluate(torch, module, inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
    assert unchanged["var"] is variables["var"]


def test_mode_batch_leaves_running_statistics_alone():
    apply, start = forward()
    inputs = inputs_of(4)
    batch, unchanged = apply(start, inputs, "batch")
    update, changed = apply(start, inputs, "update")
    np.testing.assert_array_equal(batch, update)
    np.testing.assert_array_equal(unchanged["mean"], start["mean"])
    assert np.all(changed["mean"] != start["mean"])


@pytest.mark.core
def test_variance_survives_a_large_mean():
    """Mean 1000, deviation 0.1: E[x^2] - E[x]^2 has no correct digit in float32."""
    apply, start = forward()
    inputs = inputs_of(32) * np.float32(0.1) + np.float32(1000)
    outputs, _ = apply(start, inputs, "batch")
    wide = inputs.astype(np.float64)
    deviation = np.sqrt(wide.var((0, 1, 2)) + 1e-5)
    expected = (wide - wide.mean((0, 1, 2))) / deviation * start["scale"] + start["bias"]
    np.testing.assert_allclose(outputs, expected, atol=5e-3)


@pytest.mark.parametrize(("distance", "lost"), [(0.0, 1e-6), (3.0, 1e-5), (10.0, 1e-4)])
def test_one_pass_loses_what_it_says(distance, lost):
    """As on a GPU: around a running mean of 0, which the mean is so many deviations away from."""
    inputs = inputs_of(512, mean=distance)
    shift = jnp.zeros(CHANNELS)
    mean, var = normalised._in_one_pass(jnp.asarray(inputs), shift)
    wide = inputs.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=lost)
    # Nothing, once the running mean has followed.
    _, var = normalised._in_one_pass(jnp.asarray(inputs), shift + distance)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=1e-6)


ACTIVATED = {"relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": jax.nn.gelu}


@pytest.mark.parametrize("activation", ACTIVATED)
def test_value_and_gradients_are_those_of_the_plain_definition(x64, activation):
    """In float64, of inputs, scale and bias; the general path, which a mask takes, is the peer."""
    apply, start = forward(dtype=np.float64)
    inputs, weights = inputs_of(6, dtype=np.float64), inputs_of(6, 9, np.float64, mean=0.0)
    act = ACTIVATED[activation]

    def loss(scale, bias, inputs, mask):
        module = BatchNorm(CHANNELS)
        for variable, value in ((module.scale, scale), (module.bias, bias)):
            variable.set_value(value)
        for variable, name in ((module.mean, "mean"), (module.var, "var")):
            variable.set_value(jnp.asarray(start[name]))
        return (module(inputs, Context("batch", mask=mask), act) * weights).sum()

    arguments = [jnp.asarray(a) for a in (start["scale"], start["bias"], inputs)]
    of_all = jax.value_and_grad(loss, argnums=(0, 1, 2))
    found, expected = of_all(*arguments, None), of_all(*arguments, jnp.ones(6, bool))
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-11)

    # Twice, by reverse mode: penalties on gradients do.
    def twice(mask):
        def penalty(*arguments):
            return sum(
                jnp.square(leaf).sum()
                for leaf in jax.grad(loss, argnums=(0, 1, 2))(*arguments, mask)
            )

        return jax.grad(penalty, argnums=(0, 1, 2))(*arguments)

    for ours, plain in zip(twice(None), twice(jnp.ones(6, bool)), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-8, atol=1e-8 * np.abs(plain).max())


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("scale", [-1.5, 0.0, 1.5])
def test_relu_behind_any_scale(x64, scale, bias):
    """Its mask is found from the inputs, on either side of a border that may be infinite."""
    inputs = jnp.asarray(inputs_of(6, dtype=np.float64))
    vectors = [jnp.full(CHANNELS, value) for value in (scale, bias, 1.0)]

    def plain(x, scale, bias):
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        z = (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None]
        return jax.nn.relu(z + bias[None, None, None])

    def fused(x, scale, bias):
        return normalised.normalised(jax.nn.relu, x, scale, bias, vectors[2])[0]

    weights = jnp.asarray(inputs_of(6, 3, np.float64, mean=0.0))
    arguments = inputs, *vectors[:2]
    found, expected = (
        jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), argnums=(0, 1, 2))(*arguments)
        for f in (fused, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_sums_for_a_gpu_are_sums():
    """Its way to the sums, by one reduction with two results, computed on any device."""
    for shape in ((32, 8, 8, 5), (7, 3, 2), (4096, 3), (1, 1)):
        rng = np.random.default_rng(0)
        first, second = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        found = normalised._together(jnp.asarray(first), jnp.asarray(second))
        for ours, given in zip(found, (first, second), strict=True):
            exact = given.astype(np.float64).reshape(-1, shape[-1]).sum(0)
            np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=2e-4)


@pytest.mark.core
def test_groups_equal_separate_batches(x64):
    grouped, start = forward(groups=4, dtype=np.float64)
    single, _ = forward(dtype=np.float64)
    inputs = inputs_of(12, dtype=np.float64)
    outputs, variables = grouped(start, inputs, "update")
    parts = [single(start, part, "update") for part in np.split(inputs, 4)]
    np.testing.assert_allclose(outputs, np.concatenate([part[0] for part in parts]), rtol=1e-12)
    for name in ("mean", "var"):
        expected = np.mean([part[1][name] for part in parts], axis=0)
        np.testing.assert_allclose(variables[name], expected, rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 9, 13])
def test_batch_that_does_not_divide_is_cut_as_pytorch_cuts_it(x64, batch):
    grouped, start = forward(groups=4, dtype=np.float64)
    single, _ = forward(dtype=np.float64)
    inputs = inputs_of(batch, dtype=np.float64)
    outputs, variables = grouped(start, inputs, "update")
    size = -(-batch // 4)  # torch.chunk
    chunks = [inputs[first : first + size] for first in range(0, batch, size)]
    parts = [single(start, chunk, "update") for chunk in chunks]
    expected = np.concatenate([part[0] for part in parts])
    np.testing.assert_allclose(outputs, expected, rtol=1e-11, atol=1e-11)
    expected = np.mean([part[1]["var"] for part in parts], axis=0)
    np.testing.assert_allclose(variables["var"], expected, rtol=1e-11)


@pytest.mark.core
def test_masked_rows_do_not_count(x64):
    apply, start = forward(dtype=np.float64)
    inputs = inputs_of(6, dtype=np.float64)
    mask = np.array([True, False, True, True, False, True])
    soiled = np.where(mask[:, None, None, None], inputs, np.nan)
    outputs, variables = apply(start, soiled, "update", mask)
    expected, expected_variables = apply(start, inputs[mask], "update")
    np.testing.assert_allclose(outputs[mask], expected, rtol=1e-12)
    np.testing.assert_allclose(variables["var"], expected_variables["var"], rtol=1e-12)


def test_gradients_do_not_see_masked_rows():
    apply, start = forward(groups=2)
    mask = np.array([True, True, False, False, False, False])

    def loss(inputs, scale):
        outputs, _ = apply({**start, "scale": scale}, inputs, "batch", mask)
        return jnp.where(mask[:, None, None, None], outputs, 0).var()

    gradients = jax.grad(loss, (0, 1))(inputs_of(6), start["scale"])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.any(gradients[0][~mask])


def test_group_without_valid_rows_uses_running_statistics():
    apply, start = forward(groups=2)
    inputs = inputs_of(4)
    mask = np.array([True, True, False, False])
    outputs, variables = apply(start, inputs, "update", mask)
    running, _ = apply(start, inputs, "running")
    np.testing.assert_allclose(outputs[2:], running[2:], rtol=1e-6)
    _, expected = forward()[0](start, inputs[:2], "update")
    np.testing.assert_allclose(variables["mean"], expected["mean"], rtol=1e-6)


def test_no_valid_row_at_all_changes_nothing():
    apply, start = forward()
    outputs, variables = apply(start, inputs_of(4), "update", np.zeros(4, bool))
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(variables["mean"], start["mean"])
    np.testing.assert_array_equal(variables["var"], start["var"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_mapped_devices_equal_the_whole_batch(x64, groups, masked):
    """Outputs, running statistics and gradients under shard_map are those of one device."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped, start = forward(groups, "data", np.float64)
    whole, _ = forward(groups, None, np.float64)
    inputs = inputs_of(16, dtype=np.float64)
    mask = np.arange(16) % 5 > 0 if masked else np.ones(16, bool)
    weights = np.random.default_rng(3).standard_normal(inputs.shape)

    def run(apply):
        def function(variables, inputs, mask):
            return apply(variables, inputs, "update", mask if masked else None)

        return function

    sharded = jax.jit(
        jax.shard_map(
            run(mapped), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P())
        )
    )

    def loss(function, variables, inputs):
        outputs, variables = function(variables, inputs, mask)
        return (outputs * weights).sum(), (outputs, variables)

    results = [
        jax.grad(functools.partial(loss, function), (0, 1), has_aux=True)(start, inputs)
        for function in (sharded, jax.jit(run(whole)))
    ]
    for found, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_groups_that_do_not_fit_the_mapped_axis():
    apply, start = forward(3, "data")
    with pytest.raises(ValueError, match="groups=3 must be 1 or a multiple of the size 2"):
        jax.vmap(lambda x: apply(start, x, "batch")[0], axis_name="data")(
            np.stack([inputs_of(3)] * 2)
        )


def test_groups_must_be_positive():
    with pytest.raises(ValueError, match="batch_norm_groups"):
        BatchNorm(3, groups=0)


def test_bfloat16_inputs_have_float32_statistics():
    apply, start = forward()
    inputs = inputs_of(64, mean=20.0)
    outputs, variables = apply(start, jnp.asarray(inputs, jnp.bfloat16), "update")
    expected, expected_variables = apply(
        start, np.asarray(jnp.asarray(inputs, jnp.bfloat16), np.float32), "update"
    )
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs, expected.astype(jnp.bfloat16))
    np.testing.assert_allclose(variables["var"], expected_variables["var"], rtol=1e-6)
