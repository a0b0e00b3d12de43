"""RST: pseudo-labels, mixed batches, weights; fine-tuning from another run; averages in a run."""

import json

import jax
import numpy as np
import pytest

from awp_jax import cli, data, parallel, runs, training
from awp_jax.training._batch import batch_function

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """30 digits without labels, one of them recognisable."""
    images = np.random.default_rng(0).uniform(size=(30, 8, 8, 1)).astype(np.float32)
    path = tmp_path_factory.mktemp("unlabelled") / "images.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="module")
def natural(tmp_path_factory):
    """A naturally trained run that kept an average."""
    workdir = tmp_path_factory.mktemp("natural") / "run"
    settings = {
        "objective.name": "natural",
        "weights.method": "none",
        "model.name": "mlp",
        "data.name": "digits",
        "data.train_examples": 64,
        "data.validation_examples": 32,
        "data.crop_padding": 0,
        "data.flip": False,
        "model.normalize": False,
        "batch_size": 32,
        "epochs": 2,
        "averaging.name": "swa",
        "evaluation.steps": 1,
        "evaluation.train_examples": 0,
        "evaluation.test_examples": 32,
        "evaluation.batch_size": 32,
    }
    config = workdir.parent / "config.py"
    config.write_text(
        "from awp_jax import config as schema\n\n\ndef get_config():\n"
        "    config = schema.default()\n"
        f"    config.update_from_flattened_dict({settings!r})\n"
        "    return config\n"
    )
    assert cli.main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    return workdir


def config_of(workdir, **changes):
    from awp_jax.config import from_dict
    from awp_jax.training import read_config

    config = from_dict(read_config(workdir))
    config.averaging.name = "none"
    config.update_from_flattened_dict(changes)
    return config


def test_the_average_is_a_state_of_its_own(natural, capsys):
    """SWA of two epochs: evaluated, checkpointed, and what `evaluate` restores."""
    run = runs.open(natural, dtype=None)
    last, _ = run.restore("last")
    average, info = run.restore("average")
    assert int(average.step) == int(last.step) == 4
    for kept, params in zip(
        jax.tree.leaves(last.average), jax.tree.leaves(average.params), strict=True
    ):
        np.testing.assert_array_equal(kept, params)
    difference = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(average.params), jax.tree.leaves(last.params), strict=True)
    ]
    assert max(difference) > 0
    records = [r for r in training.read_metrics(natural) if r["kind"] == "evaluation"]
    assert records[-1]["average"]["test"] == info["average"]["test"]
    arguments = ["--checkpoints=last,average", "--sets=test", "--attacks=fgsm", "--examples=32"]
    assert cli.main(["evaluate", f"--workdir={natural}", *arguments]) == 0
    found = json.loads((natural / "evaluation.json").read_text())["checkpoints"]
    clean = {name: found[name]["test"]["clean"]["accuracy"] for name in ("last", "average")}
    assert clean["average"] == pytest.approx(records[-1]["average"]["test"]["clean_accuracy"])
    assert clean["last"] == pytest.approx(records[-1]["test"]["clean_accuracy"])


def label(natural, images, output):
    arguments = [f"--workdir={natural}", f"--images={images}", f"--output={output}"]
    return cli.main(["pseudo-label", *arguments])


def test_pseudo_labels_are_what_the_model_says(natural, unlabelled, tmp_path, capsys):
    assert label(natural, unlabelled, tmp_path / "labels.npz") == 0
    assert "labelled 30 images with the last checkpoint" in capsys.readouterr().out
    run = runs.open(natural, dtype=None)
    state, _ = run.restore("last")
    logits = run.logits_fn(state)(np.load(unlabelled)["images"])
    with np.load(tmp_path / "labels.npz") as found:
        np.testing.assert_array_equal(found["labels"], logits.argmax(axis=1))
        probabilities = np.asarray(jax.nn.softmax(logits)).max(axis=1)
        np.testing.assert_allclose(found["confidence"], probabilities, rtol=1e-5)


def test_training_with_them_and_fine_tuning(natural, unlabelled, tmp_path, capsys):
    """TRADES on mixed batches, begun from the natural run."""
    assert label(natural, unlabelled, tmp_path / "labels.npz") == 0
    config = config_of(
        natural,
        **{
            "objective.name": "trades",
            "attack.steps": 1,
            "data.extra": str(unlabelled),
            "data.extra_labels": str(tmp_path / "labels.npz"),
            "init_from": str(natural),
            "init_checkpoint": "average",
            "epochs": 1,
        },
    )
    experiment = training.build(config)
    assert (experiment.steps_per_epoch, experiment.batch_size_of(0)) == (4, 16)
    assert len(experiment.pool) == 94
    start, _ = runs.open(natural, dtype=None).restore("average")
    for mine, theirs in zip(
        jax.tree.leaves(training.initial_state(experiment).params),
        jax.tree.leaves(start.params),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    outcome = training.train(config, tmp_path / "rst", progress=None)
    assert outcome.finished and int(outcome.state.step) == 4


def test_init_from_another_architecture_is_one_sentence(natural):
    with pytest.raises(ValueError, match="whose model is another: hidden.* differs in more than"):
        training.initial_state(
            training.build(config_of(natural, **{"model.width": 7, "init_from": str(natural)}))
        )


def test_init_from_nowhere_is_one_sentence_before_anything_is_written(natural, tmp_path):
    config = config_of(natural, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="init_from is .*nowhere, but a run to start from"):
        training.train(config, tmp_path / "new", progress=None)
    assert not (tmp_path / "new").exists()


def test_batches_are_labelled_and_unlabelled_shuffled_together(natural):
    config = config_of(
        natural,
        **{"batch_size": 20, "data.original_fraction": 0.4, "data.extra_weight": 0.5},
    )
    _, gather = batch_function(
        config,
        original=20,
        extra=30,
        steps_per_epoch=3,
        original_batch=8,
        num_classes=50,
        mesh=parallel.data_mesh(),
    )
    gather = jax.jit(gather, static_argnames="batch_size")
    images, labels = np.zeros((50, 8, 8, 1), np.uint8), np.arange(50, dtype=np.int32)
    key, order = jax.random.key(0), data.epoch_order(jax.random.key(1), 0, 20)
    seen, unlabelled, places = [], [], []
    for step, size in ((0, 8), (1, 8), (2, 4)):
        batch = gather(np.int32(step), images, labels, order, key, batch_size=size)
        chosen, weights = np.asarray(batch.labels), np.asarray(batch.weights)
        assert len(chosen) == 20  # the last one is filled up as well
        np.testing.assert_array_equal(weights, np.where(chosen < 20, 1.0, 0.5))
        seen += list(chosen[chosen < 20])
        unlabelled += list(chosen[chosen >= 20])
        places += list(np.flatnonzero(chosen < 20))
    assert sorted(seen) == list(range(20))  # every labelled example once an epoch
    assert len(unlabelled) == 40 and len(set(unlabelled)) > 15
    assert max(places) > 12  # and not in front


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(29, np.int32)}, r"shape \(29,\), but .* has 30 images: one label for"),
        ({"labels": np.full(30, 12, np.int32)}, "labels"),
        ({"images": np.zeros((2, 2, 2, 1), np.uint8)}, "has no labels: make some with"),
    ],
)
def test_pseudo_labels_that_do_not_fit_are_one_sentence(
    natural, unlabelled, tmp_path, arrays, message
):
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays)
    files = {"data.extra": str(unlabelled), "data.extra_labels": str(path)}
    with pytest.raises(ValueError, match=message) as error:
        training.build(config_of(natural, **files))
    assert "\n" not in str(error.value)


def test_misuse_of_the_command_is_one_sentence(natural, unlabelled, tmp_path, capsys):
    small = tmp_path / "small.npy"
    np.save(small, np.zeros((2, 4, 4, 1), np.uint8))
    for images, output, message in (
        (small, "labels.npz", "has images of shape (4, 4, 1), but the model"),
        (unlabelled, "labels.txt", "a file name ending in .npz was expected"),
        (tmp_path / "none.npz", "labels.npz", "is not a file"),
    ):
        assert label(natural, images, tmp_path / output) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and len(error.splitlines()) == 1


def test_the_file_of_rst_is_read(tmp_path):
    """Carmon et al. publish a pickle of `data` and `extrapolated_targets`."""
    import pickle

    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    contents = {"data": images, "extrapolated_targets": np.array([0, 1, 2, 1, 0])}
    path = tmp_path / "ti.pickle"
    path.write_bytes(pickle.dumps(contents))
    found = data.open_extra(path, num_classes=3)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, [0, 1, 2, 1, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.extra_labels": "x"}, "data.extra is not"),
        ({"data.extra": "x", "data.mixup": 1.4}, "no weight: switch one off"),
        ({"objective.name": "mart", "data.mixup": 1.4}, "MART compares its probability"),
        (
            {"optimizer.name": "entropy-sgd", "weights.method": "awp"},
            "perturbs the weights itself",
        ),
        (
            {"objective.name": "trades", "weights.method": "awp", "weights.shared_backward": True},
            "weights.shared_backward needs an attack that ascends what the weights ascend",
        ),
        ({"weights.shared_backward": True}, "is of weights.method 'awp', not 'none'"),
        ({"data.autoaugment": True}, "a policy for uint8 colour images, but digits has"),
        ({"data.trivialaugment": True}, "a policy for uint8 colour images, but digits has"),
        ({"data.original_fraction": 1.0}, "data.original_fraction is 1.0"),
        ({"data.label_noise": 1.5}, "data.label_noise is 1.5"),
        ({"averaging.decay": 1.0}, r"averaging.decay is 1.0, but a number in \[0, 1\)"),
    ],
)
def test_senseless_combinations_are_one_sentence(natural, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        training.build(config_of(natural, **changes))
    assert "\n" not in str(error.value)
