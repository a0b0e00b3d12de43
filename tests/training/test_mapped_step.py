"""The step under pmap and shard_map: the same numbers as one program with the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from awp_jax import mapped, models, objectives, training
from awp_jax.training import TrainingAttack, WeightPerturbation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BATCH, STEPS = 16, 2


class DenseNet(models.Network):
    """A dense network with BatchNorm and dropout: quick to compile."""

    def __init__(self, make, dropout=0.0):
        self.activation = make.activate()
        self.dropout_rate = dropout
        self.hidden = make.dense(16, 8)
        self.bn = make.batch_norm(8)
        self.linear = make.dense(8, 3, classifies=True)

    def features(self, images, context):
        x = self.hidden(images.reshape(images.shape[0], -1))
        x = self.activation(self.bn(x, context))
        return context.dropout(x, self.dropout_rate)

    def classify(self, features, context):
        return self.linear(features)


def classifier_of(axis_name, groups=1, dropout=0.0):
    return models.from_network(
        functools.partial(DenseNet, dropout=dropout),
        name="dense",
        image_shape=(4, 4, 1),
        num_classes=3,
        batch_norm_groups=groups,
        axis_name=axis_name,
    )


def optimizer():
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.5, 0.9))


@functools.cache
def data_and_weights():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(STEPS, BATCH, 4, 4, 1))
    labels = rng.integers(0, 3, (STEPS, BATCH)).astype(np.int32)
    return images, labels, rng.uniform(0.2, 2.0, (STEPS, BATCH))


# All with weighted examples. Also K2 = 2, a range of the loss that half of the examples are in, and
# dropout; RWP with c_min in their midst, the released BatchNorm and early stops; groups on devices;
# the shared backward pass.
CASES = {
    "at-awp": (
        {
            "objective": objectives.at(),
            "weights": WeightPerturbation("awp", 0.1, steps=2, loss_range=(0.0, 1.2)),
        },
        {"groups": 1, "dropout": 0.4},
    ),
    "at-awp, shared backward": (
        {
            "objective": objectives.at(),
            "weights": WeightPerturbation("awp", 0.1, shared_backward=True),
        },
        {"groups": 4},
    ),
    "rwp": (
        {
            "objective": objectives.at(),
            "weights": WeightPerturbation("rwp", 0.1, steps=2, c_min=1.1),
            "attack": TrainingAttack(
                0.1, 3, "linf", step_size=0.05, batch_norm="released", early_stop=1
            ),
        },
        {"groups": 1},
    ),
    "trades-awp": (
        {"objective": objectives.trades(6.0), "weights": WeightPerturbation("awp", 0.1)},
        {"groups": 4},
    ),
    "ikl-awp, gradients aligned": (
        {
            "objective": objectives.create("ikl", gradient_alignment=0.5),
            "weights": WeightPerturbation("awp", 0.1),
            "steps_per_epoch": 2,
        },
        {"groups": 1},
    ),
}


def step_of(case, axis_name):
    settings, model = CASES[case]
    return training.make_train_step(
        classifier_of(axis_name, **model),
        optimizer=optimizer(),
        axis_name=axis_name,
        unroll=False,  # as on GPU and TPU, and quick to compile
        **({"attack": TrainingAttack(0.1, 2, "linf", step_size=0.05)} | settings),
    )


@functools.cache
def first_state(class_means):
    """Random numbers of numpy in float64, for the shapes that every case has."""
    init = functools.partial(
        training.init_state, classifier_of(None), optimizer(), class_means=class_means
    )
    rng = np.random.default_rng(1)

    def filled(leaf):
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return np.zeros((), np.int32) if whole else rng.uniform(-0.5, 1.0, leaf.shape)

    state = jax.tree.map(filled, jax.eval_shape(init, jax.random.key(0)))
    return state._replace(batch_stats=jax.tree.map(np.abs, state.batch_stats))


def run(case, step):
    """The state and the metrics after a few steps."""
    state = first_state(CASES[case][0]["objective"].class_temperature is not None)
    for images, labels, weights in zip(*data_and_weights(), strict=True):
        # From the host each time: one placement, one compilation.
        state = jax.tree.map(np.asarray, state)
        state, metrics = step(state, images, labels, jax.random.key(2), weights)
    return jax.tree.map(np.asarray, (state, metrics))


def positional(step):
    return lambda state, images, labels, key, weights: step(
        state, images, labels, key, example_weights=weights
    )


@functools.cache
def whole(case):
    return run(case, jax.jit(positional(step_of(case, None))))


def by_shard_map(step, devices):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split = P("data")
    specs = (P(), split, split, P(), split)
    return jax.jit(jax.shard_map(positional(step), mesh=mesh, in_specs=specs, out_specs=P()))


def by_pmap(step, devices):
    together = jax.pmap(
        positional(step),
        axis_name="data",
        in_axes=(None, 0, 0, None, 0),
        devices=jax.devices()[:devices],
    )

    def call(state, images, labels, key, weights):
        images, labels, weights = (
            a.reshape(devices, -1, *a.shape[1:]) for a in (images, labels, weights)
        )
        found = together(state, images, labels, key, weights)
        for leaf in jax.tree.leaves(found):  # no device has gone its own way
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), found)

    return call


def difference(case, step):
    found = jax.tree.leaves(run(case, step))
    return max(
        np.abs(np.float64(a) - b).max() / max(np.abs(np.float64(b)).max(), 1.0)
        for a, b in zip(found, jax.tree.leaves(whole(case)), strict=True)
    )


@pytest.mark.parametrize(
    ("case", "mapping", "devices"),
    [
        ("at-awp", by_shard_map, 4),
        ("at-awp", by_pmap, 2),
        ("at-awp, shared backward", by_shard_map, 2),
        ("rwp", by_shard_map, 2),
        ("trades-awp", by_pmap, 4),
        ("ikl-awp, gradients aligned", by_shard_map, 2),
        ("ikl-awp, gradients aligned", by_pmap, 2),
    ],
)
def test_a_mapped_step_gives_the_numbers_of_the_whole_batch(x64, case, mapping, devices):
    assert difference(case, mapping(step_of(case, "data"), devices)) < 1e-9


def test_without_marking_the_weights_as_varying_it_would_not(x64, monkeypatch):
    monkeypatch.setattr(mapped, "vary", lambda tree, axis_name: tree)
    step = by_shard_map(step_of("at-awp, shared backward", "data"), 2)
    assert difference("at-awp, shared backward", step) > 1e-3


def test_batch_norm_that_does_not_know_the_axis_is_one_sentence(x64):
    step = training.make_train_step(
        classifier_of(None), objectives.at(), optimizer(), axis_name="data"
    )
    with pytest.raises(ValueError, match="axis_name is 'data', but BatchNorm of dense has None"):
        run("trades-awp", positional(step))
