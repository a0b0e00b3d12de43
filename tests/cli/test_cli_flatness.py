"""``awp-jax flatness``: what it writes, going on after a stop, and bad input."""

import json
import re
import shutil

import pytest

from awp_jax import cli
from awp_jax.runs import _flatness

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CONFIG = """
from awp_jax.config import default

def get_config():
    config = default()
    config.epochs = 1
    config.batch_size = 32
    config.data.name = "digits"
    config.data.crop_padding = 0
    config.data.flip = False
    config.data.train_examples = 32
    config.data.validation_examples = 16
    config.data.test_examples = 20
    config.model.name = "linear"
    config.model.normalize = False
    config.weights.method = "none"
    config.attack.epsilon = "0.2"
    config.attack.step_size = "0.1"
    config.attack.steps = 1
    config.evaluation.steps = 1
    config.evaluation.batch_size = 16
    config.checkpoint.keep_every_epochs = 1
    return config
"""
SMALL = ["--examples=10", "--steps=2", "--restarts=2", "--draws=2", "--batch_size=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flatness")
    (folder / "config.py").write_text(CONFIG)
    config, workdir = folder / "config.py", folder / "run"
    assert cli.main(["train", f"--config={config}", f"--workdir={workdir}"]) == 0
    return workdir


def flatness(run, *arguments):
    return cli.main(["flatness", f"--workdir={run}", *SMALL, *arguments])


def test_both_sets_and_every_checkpoint(run, capsys):
    assert flatness(run, "--checkpoints=best,last,every", "--also=clean,hessian") == 0
    printed = capsys.readouterr()
    for text in ("top eigenvalue", "clean worst case", "test minus train, last", "10 test, 10"):
        assert text in printed.out
    assert "100% done" in printed.err
    result = json.loads((run / "flatness.json").read_text())
    assert list(result["checkpoints"]) == ["best", "last", "epoch-1"]
    last = result["checkpoints"]["last"]
    assert last == result["checkpoints"]["epoch-1"]
    found = last["test"]
    assert len(found["draws"]) == len(found["restarts"]) == 2 and found["examples"] == 10
    assert found["average"] == pytest.approx(sum(found["draws"]) / 2 - found["loss"])
    assert found["loss"] >= found["loss_single"] > 0
    gap = result["differences"]["test_minus_train"]["last"]["loss"]
    assert gap == pytest.approx(found["loss"] - last["train"]["loss"])
    assert not (run / "flatness.partial").exists()


def test_what_else_can_be_measured(run):
    arguments = ["--checkpoints=last", "--sets=test", "--also=histograms,gammas,pac-bayes"]
    assert flatness(run, *arguments) == 0
    last = json.loads((run / "flatness.json").read_text())["checkpoints"]["last"]
    gammas = last["test"]["gammas"]
    assert gammas["adversarial"][0] == pytest.approx(last["test"]["loss_single"], rel=1e-6)
    assert sum(last["histograms"]["linear/kernel"]["counts"]) == 640
    assert len(last["test"]["pac_bayes"]["bound"]) == 6
    names = {file.stem for file in (run / "figures").iterdir()}
    assert names == {"weight_histograms", "weight_gammas", "pac_bayes"}


def test_a_stopped_command_goes_on_over_several_runs(run, tmp_path, monkeypatch, capsys):
    runs = [tmp_path / name for name in ("a", "b")]
    for copy in runs:
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("flatness*", "figures"))
    both = ",".join(map(str, runs))
    arguments = ["--checkpoints=last", "--sets=test"]

    class Stopping(_flatness.PartialResults):
        left, computed = 8, 0

        def save(self, part, arrays):
            super().save(part, arrays)
            type(self).left -= 1
            type(self).computed += 1
            if not self.left:
                raise KeyboardInterrupt

    monkeypatch.setattr(_flatness, "PartialResults", Stopping)
    assert flatness(both, *arguments) == 130  # in the second run: each has 6 parts
    assert (runs[0] / "flatness.json").exists() and not (runs[1] / "flatness.json").exists()
    Stopping.left, Stopping.computed = 100, 0
    assert flatness(both, *arguments, f"--output={tmp_path / 'both'}") == 0
    assert Stopping.computed == 4
    results = [json.loads((copy / "flatness.json").read_text()) for copy in runs]
    assert results[0] == results[1]  # the same checkpoint: whole and stopped agree
    assert {f.name for f in (tmp_path / "both").iterdir()} == {
        "flatness.md",
        "flatness.png",
        "flatness.pdf",
    }
    monkeypatch.setattr(_flatness, "flatness_runs", None)  # only drawn
    capsys.readouterr()
    assert flatness(both, "--measure=false") == 0
    assert capsys.readouterr().out.startswith("| run | method")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--examples=21"], "examples is 21, but test of"),
        (["--xi=-1"], "xi is '-1', but a finite number of at least 0 was expected"),
        (["--worst_xi=much"], "worst_xi is 'much', but a number"),
        (["--also=hesian"], "Unknown measure in also 'hesian'; known: .*'hessian'"),
        (
            ["--checkpoints=lst"],
            "checkpoint is 'lst', but last, best, average or epoch-N was expected",
        ),
        (["--checkpoints=epoch-9"], "has no checkpoint of epoch 9"),
        (["--sets=tset"], "Unknown set 'tset'"),
        (["--restarts=0"], "restarts"),
        (["--shared_across_batches=maybe"], "true or false was expected"),
    ],
)
def test_bad_input_is_one_sentence(run, capsys, arguments, message):
    assert flatness(run, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("awp-jax flatness: ") and "Traceback" not in error
    assert re.search(message, error)


def test_directories_that_do_not_fit(run, tmp_path, capsys):
    for name in ("empty", "other", "unmeasured"):
        keep = shutil.ignore_patterns(
            "flatness*", "figures", *(["checkpoints"] * (name == "empty"))
        )
        shutil.copytree(run, tmp_path / name, ignore=keep)
    assert flatness(tmp_path / "empty") == 2
    assert "No best checkpoint in" in capsys.readouterr().err
    assert flatness(tmp_path / "empty", "--checkpoints=every") == 2
    assert "no epochs were kept" in capsys.readouterr().err
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["model"]["name"] = "mlp"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert flatness(tmp_path / "other") == 2
    assert "best checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "other" / "flatness.json").exists()
    assert flatness(tmp_path / "unmeasured", "--measure=false") == 2
    assert "holds no flatness.json" in capsys.readouterr().err
    assert flatness(tmp_path) == 2
    assert "it is not a run directory" in capsys.readouterr().err
    assert flatness(f"{run},{run}") == 2
    assert "Two run directories are called 'run'" in capsys.readouterr().err
