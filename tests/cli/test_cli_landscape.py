"""``awp-jax landscape``: files, figures, going on after a stop, and misuse."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from awp_jax import cli, data, evaluation
from awp_jax import runs as room
from awp_jax.attacks import PGD
from awp_jax.reporting import read_landscape
from awp_jax.runs import _landscape

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "digits_resnet.py")
FEW = ["--points=3", "--examples=20", "--steps=2", "--draws=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One trained run, and the same once more under another name."""
    root = tmp_path_factory.mktemp("landscapes")
    settings = {
        "model.name": "mlp",
        "epochs": 2,
        "batch_size": 32,
        "data.train_examples": 64,
        "data.validation_examples": 32,
        "data.test_examples": 40,
        "attack.steps": 2,
        "evaluation.steps": 2,
        "evaluation.every_epochs": 1,
        "evaluation.batch_size": 16,
        "checkpoint.keep_every_epochs": 1,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    assert cli.main(["train", f"--config={CONFIG}:at", f"--workdir={root / 'at'}", *arguments]) == 0
    shutil.copytree(root / "at", root / "twin")
    return root


def landscape(workdirs, *arguments):
    return cli.main(["landscape", f"--workdir={workdirs}", *FEW, *arguments])


def test_files_figures_and_the_centre(runs, capsys, tmp_path):
    workdirs = f"{runs / 'at'},{runs / 'twin'}"
    arguments = ["--checkpoints=every,last", "--adversarial=both", f"--output={tmp_path}"]
    assert landscape(workdirs, *arguments) == 0
    captured = capsys.readouterr()
    assert "20 train examples; linf epsilon 0.2, PGD-2" in captured.out
    assert "about" in captured.err and "left" in captured.err
    for place in (runs / "at" / "figures" / "landscape", tmp_path / "landscape"):
        assert all(place.with_suffix(s).stat().st_size for s in (".png", ".pdf"))
    assert (runs / "at" / "figures" / "landscape-training.png").stat().st_size
    assert not (runs / "at" / "landscape.partial").exists()
    found, twin = (read_landscape(runs / name) for name in ("at", "twin"))
    assert list(found["checkpoints"]) == ["epoch-1", "epoch-2", "last"]
    last = found["checkpoints"]["last"]
    assert last["anew"]["loss"].shape == (2, 3) and last["epoch"] == 2
    assert (last["anew"]["loss"] >= last["centre"]["loss"] - 0.05).all()
    np.testing.assert_array_equal(last["anew"]["loss"][:, 1], last["centre"]["loss"][:, 1])
    np.testing.assert_array_equal(last["anew"]["loss"], twin["checkpoints"]["last"]["anew"]["loss"])
    assert np.ptp(last["anew"]["loss"][:, 0]) > 0, "draws differ"
    run = room.open(runs / "at", dtype=None)
    part = data.subset(run.experiment.splits.train, 20)
    reference = evaluation.measure(
        run.logits_fn(run.restore("last")[0]),
        part.images,
        part.labels,
        PGD("0.2", 2, step_size="0.05"),
        key=jax.random.fold_in(jax.random.key(0), 1),
    )
    assert last["anew"]["centre_loss"] == pytest.approx(reference.loss, rel=1e-6)
    # The report draws them beside the learning curves.
    assert cli.main(["evaluate", f"--workdir={runs / 'at'}", "--attacks=pgd-2"]) == 0
    report = ["report", f"--workdir={runs / 'at'}", f"--output={tmp_path / 'report'}"]
    assert cli.main(report) == 0
    assert {path.stem for path in (tmp_path / "report").iterdir()} == {
        "report",
        "learning_curves",
        "landscape",
    }


def test_planes_in_the_ascent_direction(runs, capsys):
    arguments = ["--dims=2", "--directions=adversarial", "--draws=1", "--set=test"]
    assert landscape(runs / "at", *arguments) == 0
    found = read_landscape(runs / "at", "landscape-2d-adversarial")
    loss = found["checkpoints"]["last"]["anew"]["loss"]
    assert loss.shape == (1, 3, 3) and found["axis"][-1] == 0.02
    assert found["settings"]["normalisation"] == "layer"
    assert loss[0, 2, 1] > loss[0, 1, 1], "the loss rises along +d"
    assert (runs / "at" / "figures" / "landscape-2d-adversarial.png").stat().st_size


def test_it_goes_on_where_it_was_stopped(runs, capsys, monkeypatch):
    whole, counted = _landscape.surface, []

    def stopping(*arguments, on_points, **options):
        def tell(now, left):
            on_points(now, left)
            counted.append(left)
            if len(counted) == 4:  # the first point of the second draw
                raise KeyboardInterrupt

        return whole(*arguments, on_points=tell, **options)

    monkeypatch.setattr(_landscape, "_SAVE_EVERY", -1.0)
    monkeypatch.setattr(_landscape, "surface", stopping)
    arguments = ["--name=stopped", "--checkpoints=last"]
    assert landscape(runs / "at", *arguments) == 130
    assert not (runs / "at" / "stopped.json").exists()
    assert len(list((runs / "at" / "stopped.partial").iterdir())) == 2
    assert landscape(runs / "at", *arguments) == 0
    assert counted[4:] == [1, 0], "three points and one were done; two were left"
    again = read_landscape(runs / "at", "stopped")
    monkeypatch.setattr(_landscape, "surface", whole)
    assert landscape(runs / "at", "--name=fresh") == 0
    fresh = read_landscape(runs / "at", "fresh")
    np.testing.assert_array_equal(
        *(f["checkpoints"]["last"]["anew"]["loss"] for f in (again, fresh))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--range=0"], "range is 0.0, but a finite number above 0"),
        (["--range=wide"], "--range is 'wide'"),
        (["--points=4"], "points is 4, but an odd number"),
        (["--dims=3"], "dims is 3"),
        (["--examples=65"], "examples is 65, but train of"),
        (["--checkpoints=epoch-7"], "no checkpoint of epoch 7: kept were 1, 2"),
        (["--checkpoints=lst"], "'lst', but last, best, average or epoch-N"),
        (["--directions=adversary"], "Did you mean 'adversarial'"),
        (["--normalisation=layers"], "Did you mean 'layer'"),
        (["--adversarial=center"], "Did you mean 'centre'"),
        (["--set=tests"], "Did you mean 'test'"),
        (["--epsilon=8/0"], "epsilon is '8/0'"),
        (["--name=../up"], "a file name without folders"),
    ],
)
def test_misuse_is_one_sentence_before_anything_is_written(runs, capsys, arguments, message):
    assert landscape(runs / "twin", "--name=misused", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not list((runs / "twin").glob("misused*"))


def test_directories_that_cannot_be_used(runs, capsys, tmp_path):
    for workdir, message in (
        (tmp_path, "is not a run directory"),
        (f"{runs / 'at'},{runs / 'at'}", "are called 'at'"),
    ):
        assert landscape(workdir) == 2
        assert message in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(runs / "at" / "config.json", empty)
    assert landscape(empty) == 2
    assert "No last checkpoint" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(runs / "twin", other)
    config = json.loads((other / "config.json").read_text())
    config["model"]["width"] += 1
    (other / "config.json").write_text(json.dumps(config))
    assert landscape(other, "--name=another") == 2
    captured = capsys.readouterr()
    assert "the last checkpoint" in captured.err.lower(), captured
    assert not list(other.glob("another*"))
    with pytest.raises(ValueError, match="run awp-jax landscape --workdir"):
        read_landscape(other, "another")
    (other / "torn.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_landscape(other, "torn")
