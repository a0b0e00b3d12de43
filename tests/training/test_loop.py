"""The loop: resuming, compiling once, no host traffic, stopping on bad numbers."""

import errno
import json
import math
import os

import jax
import numpy as np
import pytest
from small_run import poison
from small_run import tiny_config as small_config

from awp_jax import cli, runs, training
from awp_jax.training import _records, _selection

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def flat(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def run(config, workdir, **kwargs):
    return training.train(config, workdir, progress=None, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the small config that nothing disturbs, and its directory."""
    workdir = tmp_path_factory.mktemp("whole")
    return run(small_config(), workdir), workdir


# After the first step, and at the end of an epoch; test_resuming... stops in the middle of epochs.
@pytest.mark.core
@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_and_resumed_run_ends_bitwise_equal(whole, tmp_path, tiny_config, stop):
    config, (whole, _) = tiny_config(), whole
    first = run(config, tmp_path / "cut", max_steps=stop)
    assert not first.finished and int(first.state.step) == stop
    second = run(config, tmp_path / "cut")
    assert whole.finished and second.finished
    assert int(second.state.step) == 9
    for a, b in zip(flat(whole.state), flat(second.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.best == second.best


def test_resuming_gives_the_same_records_without_duplicates(whole, tmp_path, tiny_config):
    config, (undisturbed, workdir) = tiny_config(), whole
    for stop in (2, 4, 8, None):
        cut = run(config, tmp_path, max_steps=stop)
    for a, b in zip(flat(undisturbed.state), flat(cut.state), strict=True):
        np.testing.assert_array_equal(a, b)

    def evaluations(folder):
        return [r for r in training.read_metrics(folder) if r["kind"] == "evaluation"]

    assert evaluations(workdir) == evaluations(tmp_path)
    assert [r["epoch"] for r in evaluations(tmp_path)] == [1, 2, 3]
    steps = [r["step"] for r in training.read_metrics(tmp_path) if r["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_a_finished_run_is_extended_with_its_optimiser(tmp_path, tiny_config):
    config = tiny_config("linear", width=None)
    short = run(config, tmp_path)
    config.epochs += 1
    with pytest.raises(ValueError, match="run of 3 epochs, not 4: --extend .*--config.init_from="):
        run(config, tmp_path)
    changed = config.copy_and_resolve_references()
    changed.batch_size = 16
    with pytest.raises(ValueError, match="another config: "):
        run(changed, tmp_path, extend=True)
    longer = run(config, tmp_path, extend=True)
    assert short.finished and longer.finished and int(longer.state.step) == 12
    assert training.read_config(tmp_path)["epochs"] == 4
    epochs = [r["epoch"] for r in training.read_metrics(tmp_path) if r["kind"] == "evaluation"]
    assert epochs == [1, 2, 3, 4]
    config.epochs = 3  # fewer are another config
    with pytest.raises(ValueError, match="another config: epochs is 4 there and 3 here"):
        run(config, tmp_path, extend=True)


@pytest.mark.parametrize("way", ["told", "killed"])
def test_stopped_while_an_epoch_is_measured_it_loses_nothing(
    whole, tmp_path, tiny_config, monkeypatch, way
):
    config, (undisturbed, workdir) = tiny_config(), whole
    counted = Counted(_selection.measure_each, batch_size=16)
    monkeypatch.setattr(_selection, "measure_each", counted)
    calls_in_an_epoch = 3  # three sets

    def in_the_second_epoch():
        if counted.calls <= calls_in_an_epoch + 1:
            return False
        if way == "killed":
            raise KeyboardInterrupt
        return True

    if way == "told":
        cut = run(config, tmp_path, should_stop=in_the_second_epoch)
        assert cut.preempted and not cut.finished and int(cut.state.step) == 6
    else:
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path, should_stop=in_the_second_epoch)

    def evaluations(folder):
        return [r for r in training.read_metrics(folder) if r["kind"] == "evaluation"]

    assert [r["epoch"] for r in evaluations(tmp_path)] == [1]
    assert training.Checkpoints(tmp_path / "checkpoints", read_only=True).steps("last")[0] == 6
    rest = run(config, tmp_path)
    assert rest.finished and rest.best == undisturbed.best
    for a, b in zip(flat(undisturbed.state), flat(rest.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for mine, other in zip(evaluations(tmp_path), evaluations(workdir), strict=True):
        assert mine["test"]["robust_accuracy"] == other["test"]["robust_accuracy"]


class Counted:
    """A function that counts its calls and changes some of its settings."""

    def __init__(self, function, **changes):
        self.function, self.calls, self.changes = function, 0, changes

    def __call__(self, *arguments, **settings):
        self.calls += 1
        return self.function(*arguments, **settings | self.changes)


def test_lines_after_the_last_checkpoint_are_written_again_not_twice(tmp_path, tiny_config):
    config = tiny_config()
    run(config, tmp_path, max_steps=3)
    path = tmp_path / "metrics.jsonl"
    good = path.read_text()
    # What a kill after step 5 leaves: a line of a step in no checkpoint, and a torn one.
    path.write_text(good + json.dumps({"kind": "train", "step": 5, "loss": 1.0}) + '\n{"kind": "tr')
    run(config, tmp_path)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines[: len(good.splitlines())]] == [
        json.loads(line) for line in good.splitlines()
    ]
    assert sum(json.loads(line)["step"] == 5 for line in lines) == 0


def test_the_step_compiles_once_per_batch_shape(tmp_path, tiny_config):
    experiment = training.build(tiny_config())
    state = experiment.init()
    images, labels = experiment.on_devices()
    orders = [experiment.order(epoch) for epoch in range(3)]
    for step in range(9):
        state, _ = experiment.step(
            state,
            images,
            labels,
            orders[step // 3],
            experiment.key,
            batch_size=experiment.rows_of(step),
            perturb_weights=experiment.perturbs_weights(step),
        )
    assert [experiment.batch_size_of(s) for s in range(3)] == [32, 32, 16]
    assert experiment.step._cache_size() == 1


def test_no_host_transfer_inside_the_loop_and_the_state_is_donated(tiny_config):
    experiment = training.build(tiny_config())
    state = experiment.init()
    images, labels = experiment.on_devices()
    order = experiment.order(0)
    jax.block_until_ready((state, images, labels, order))
    settings = {"batch_size": 32, "perturb_weights": True}
    key = experiment.key
    state, _ = experiment.step(state, images, labels, order, key, **settings)
    before = state.params
    with jax.transfer_guard("disallow"):
        state, metrics = experiment.step(state, images, labels, order, key, **settings)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert all(isinstance(value, jax.Array) for value in metrics.values())


def test_weights_are_perturbed_from_their_start_epoch(tiny_config):
    experiment = training.build(tiny_config(start_epoch=2))
    assert [experiment.perturbs_weights(s) for s in (0, 5, 6, 8)] == [False, False, True, True]
    assert not training.build(tiny_config(method="none")).perturbs_weights(8)


@pytest.mark.filterwarnings("ignore:weights.start_epoch")
def test_before_the_start_epoch_training_is_plain_adversarial_training(
    whole, tmp_path, tiny_config
):
    late = run(tiny_config(start_epoch=3), tmp_path / "late")
    none = run(tiny_config(method="none"), tmp_path / "none")
    awp, _ = whole
    for a, b in zip(flat(late.state), flat(none.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(flat(awp.state), flat(none.state), strict=True))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint_before(tmp_path, tiny_config):
    run(tiny_config(), tmp_path, max_steps=3)
    before = runs.open(tmp_path, dtype=None).restore("last")[0]
    broken = tiny_config()
    broken.optimizer.learning_rate = 1e30
    with pytest.raises(
        training.NonFiniteError, match=r"Step \d: the loss is .* learning rate 1e\+30"
    ):
        run(broken, tmp_path / "broken")
    assert not training.read_metrics(tmp_path / "broken") or all(
        math.isfinite(r.get("loss", 0.0)) for r in training.read_metrics(tmp_path / "broken")
    )
    after = runs.open(tmp_path, dtype=None).restore("last")[0]
    for a, b in zip(flat(before), flat(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_that_is_not_finite_is_ever_saved(tmp_path, tiny_config, monkeypatch):
    config = tiny_config()
    config.logging.every_steps = 50
    config.checkpoint.every_steps = 1
    poison(monkeypatch, 4, lambda found: {**found, "loss": found["loss"] * float("nan")})
    with pytest.raises(training.NonFiniteError, match="Step 5: the loss is nan"):
        run(config, tmp_path)
    checkpoints = training.Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.steps("last")[0] == 4
    checkpoints.close()


def test_another_config_in_the_workdir_is_refused_and_nothing_is_lost(tmp_path, tiny_config):
    run(tiny_config(), tmp_path, max_steps=3)
    before = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "config.json").read_text()
    with pytest.raises(
        training.WorkdirError, match=r"weights.gamma is '0.01' there and '0.02' here"
    ):
        run(tiny_config(gamma="0.02"), tmp_path)
    after = (tmp_path / "metrics.jsonl").read_text(), (tmp_path / "config.json").read_text()
    assert before == after


def test_a_run_of_a_version_without_some_config_key_goes_on(tmp_path, tiny_config):
    run(tiny_config(), tmp_path, max_steps=3)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["checkpoint"]["keep_every_epochs"]
    path.write_text(json.dumps(values))
    assert run(tiny_config(), tmp_path).finished


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path, tiny_config):
    with _records.locked(tmp_path), pytest.raises(training.WorkdirError, match="Another process"):
        run(tiny_config(), tmp_path)


def test_a_workdir_that_cannot_be_made_is_one_sentence(tmp_path, tiny_config):
    (tmp_path / "file").write_text("")
    with pytest.raises(training.WorkdirError, match="cannot be used as a run directory"):
        run(tiny_config(), tmp_path / "file" / "run")


def test_metrics_hold_what_the_readers_need(whole):
    outcome, workdir = whole
    records = training.read_metrics(workdir)
    train = [r for r in records if r["kind"] == "train"]
    assert {"loss", "robust_accuracy", "learning_rate", "images_per_second"} <= set(train[0])
    assert all(r["images_per_second"] > 0 for r in train)
    # Rates of fractional epochs: drops at half and three quarters of 3 epochs of 3 steps.
    assert train[-1]["learning_rate"] == pytest.approx(0.05 * 0.01)
    evaluation = [r for r in records if r["kind"] == "evaluation"][-1]
    for part, examples in (("train", 32), ("validation", 40), ("test", 48)):
        assert evaluation[part]["examples"] == examples
        assert evaluation[part]["robust_accuracy"] <= evaluation[part]["clean_accuracy"]
        assert evaluation[part]["robust_loss"] >= evaluation[part]["clean_loss"]
    assert outcome.best["selection"] == "validation"
    chosen = max(r["validation"]["robust_accuracy"] for r in records if r["kind"] == "evaluation")
    assert outcome.best["robust_accuracy"] == chosen


def test_the_best_checkpoint_is_the_one_selection_picked(whole):
    outcome, workdir = whole
    state, info = runs.open(workdir, dtype=None).restore("best")
    assert int(state.step) == outcome.best["step"] == info["step"]


def test_checkpoints_in_the_middle_of_an_epoch(tmp_path, tiny_config):
    config = tiny_config()
    config.checkpoint.every_steps = 2
    run(config, tmp_path, max_steps=2)
    assert int(runs.open(tmp_path, dtype=None).restore("last")[0].step) == 2


def test_kept_checkpoints_are_those_of_their_epochs(tmp_path, tiny_config):
    config = tiny_config()
    config.checkpoint.keep_every_epochs = 2
    config.epochs = 4
    run(config, tmp_path, max_steps=7)
    outcome = run(config, tmp_path)
    opened = runs.open(tmp_path, dtype=None)
    assert opened.checkpoint_names(["best", "every"]) == ["best", "epoch-2", "epoch-4"]
    assert int(opened.restore("epoch-2")[0].step) == 6
    for a, b in zip(flat(opened.restore("epoch-4")[0]), flat(outcome.state), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(training.CheckpointError, match="no checkpoint of epoch 3: kept were 2, 4"):
        opened.restore("epoch-3")
    with pytest.raises(ValueError, match="'epoch-x', but last, best, average or epoch-N"):
        opened.checkpoint_names(["epoch-x"])


def test_without_kept_checkpoints_every_says_how_to_keep_them(tmp_path, tiny_config):
    run(tiny_config(), tmp_path, max_steps=1)
    with pytest.raises(training.CheckpointError, match="no epochs were kept; train with --config"):
        runs.open(tmp_path, dtype=None).checkpoint_names(["every"])


@pytest.mark.parametrize("room", [0, 20])
def test_a_line_that_does_not_fit_on_the_disk_is_left_out_whole(tmp_path, monkeypatch, room):
    metrics = _records.Metrics(tmp_path, after_step=0)
    metrics.write({"kind": "train", "step": 1, "loss": 0.5})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    ordinary, parts = os.write, [room] if room else []

    def nearly_full(file, content):
        if not parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ordinary(file, content[: parts.pop()])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(
        training.StorageError, match=r"metrics.jsonl cannot be written \(No space left on device\)"
    ):
        metrics.write({"kind": "train", "step": 2, "loss": 0.25})
    monkeypatch.setattr(os, "write", ordinary)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    metrics.write({"kind": "train", "step": 2, "loss": 0.25})  # once there is room again
    metrics.close()
    assert [r["step"] for r in training.read_metrics(tmp_path)] == [1, 2]


def test_a_config_that_does_not_fit_leaves_nothing_and_the_command_ends_with_one(
    tmp_path, tiny_config, monkeypatch, capsys
):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "config.py"
    values = training.plain(tiny_config("linear", width=None))
    path.write_text(
        "from awp_jax import config\n\n\ndef get_config():\n"
        f"    return config.from_dict({values!r})\n"
    )
    monkeypatch.setattr(os, "fsync", full)
    status = cli.main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1
    assert "config.json cannot be written (No space left on device)" in said
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
