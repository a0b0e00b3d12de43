"""``awp-jax evaluate`` with the evaluation attacks: tables, images, and going on after a stop."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from awp_jax import cli, models, runs
from awp_jax import config as schema
from awp_jax import progress as shown
from awp_jax.attacks import APGD, Square
from awp_jax.data import CORRUPTIONS
from awp_jax.evaluation import _names, corruption_accuracy
from awp_jax.evaluation._tell import Tell
from awp_jax.runs import _corruptions, _evaluate, _kept
from awp_jax.runs._method import method_name
from awp_jax.runs._surrogate import open_surrogate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "digits_resnet.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    settings = {
        "model.name": "mlp",
        "epochs": 1,
        "batch_size": 32,
        "data.train_examples": 64,
        "data.validation_examples": 32,
        "data.test_examples": 40,
        "attack.steps": 2,
        "evaluation.steps": 2,
        "evaluation.batch_size": 16,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    assert cli.main(["train", f"--config={CONFIG}:at", f"--workdir={workdir}", *arguments]) == 0
    return workdir


@pytest.fixture(autouse=True)
def short_autoattack(monkeypatch):
    def ensemble(version, *, norm, epsilon, attacks=None):
        known = {"apgd-ce": APGD(epsilon, 5, norm), "square": Square(epsilon, 20, norm)}
        return [(name, known[name]) for name in attacks or known]

    monkeypatch.setattr(_names, "ensemble", ensemble)


def evaluate(run, *arguments):
    arguments = ["--checkpoints=best", "--sets=test", "--examples=20", "--epsilon=0.05", *arguments]
    return cli.main(["evaluate", f"--workdir={run}", *arguments])


def test_a_row_per_attack_and_all_together(run, capsys):
    assert evaluate(run, "--attacks=pgd-2,square-10,autoattack", "--save_images=true") == 0
    printed = capsys.readouterr()
    for text in ("loss if wrong", "- apgd-ce", "all attacks together (strongest:"):
        assert text in printed.out
    assert "best test autoattack: 100% done" in printed.err
    result = json.loads((run / "evaluation.json").read_text())
    found, union = result["checkpoints"]["best"]["test"], result["unions"]["best"]["test"]
    assert list(found) == ["clean", "pgd-2", "square-10", "autoattack"]
    assert union["accuracy"] <= min(row["accuracy"] for row in found.values())
    stages = found["autoattack"]["stages"]
    known = any(row["median_steps"] is not None for row in [*found.values(), *stages])
    assert ("median steps" in printed.out) == known  # no column without a number
    assert union["loss"] >= max(row["loss"] or 0 for row in found.values())
    assert {"accuracy", "loss", "examples", "seconds"} <= found["pgd-2"].keys()
    assert found["autoattack"]["loss"] is None
    names = {"best-test-pgd-2.npz", "best-test-square-10.npz", "best-test-autoattack.npz"}
    assert {path.name for path in (run / "adversarial").iterdir()} == names
    with np.load(run / "adversarial" / "best-test-autoattack.npz") as arrays:
        assert arrays["images"].shape == (20, 8, 8, 1)
        assert 1 - arrays["success"].mean() == pytest.approx(found["autoattack"]["accuracy"])
    assert not (run / "evaluation.partial").exists()


def test_it_goes_on_where_it_was_stopped(run, capsys, monkeypatch):
    done, whole = [], _evaluate.evaluate
    before = (run / "evaluation.json").read_text()

    def stopping(*arguments, progress, **options):
        def tell(name, share):
            progress(name, share)
            done.append((name, share))
            if name == "fgsm" and share == 1.0 and len(done) < 10:
                raise KeyboardInterrupt

        return whole(*arguments, progress=tell, **options)

    monkeypatch.setattr(_evaluate, "evaluate", stopping)
    assert evaluate(run, "--attacks=fgsm,pgd-2") == 130
    assert (run / "evaluation.json").read_text() == before
    assert len(list((run / "evaluation.partial").iterdir())) == 2
    monkeypatch.setattr(_evaluate, "evaluate", whole)
    assert evaluate(run, "--attacks=fgsm,pgd-2") == 0
    continued = json.loads((run / "evaluation.json").read_text())
    assert evaluate(run, "--attacks=fgsm,pgd-2") == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert again["unions"] == continued["unions"]


def test_corruptions_are_measured_beside_attacks_and_resumed(run, capsys, monkeypatch, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("evaluation*"))
    measured, whole = [], _corruptions.by_severity

    def stopping(logits_fn, images, labels, name, *rest, **settings):
        if len(measured) == 3:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append(name)
        return whole(logits_fn, images, labels, name, *rest, **settings)

    monkeypatch.setattr(_corruptions, "by_severity", stopping)
    assert evaluate(workdir, "--attacks=corruptions,fgsm") == 130
    assert evaluate(workdir, "--attacks=corruptions,fgsm") == 0
    assert len(measured) == len(set(measured))  # three before the stop, and none of them again
    printed = capsys.readouterr()
    assert "corruptions test" in printed.out and "- jpeg" in printed.out
    assert "best test corruptions: 100% done" in printed.err
    assert "all attacks together (strongest: fgsm)" in printed.out
    result = json.loads((workdir / "evaluation.json").read_text())
    found = result["checkpoints"]["best"]["test"]["corruptions"]
    assert list(found["by_severity"]) == [name for name in CORRUPTIONS if name != "saturate"]
    opened = runs.open(workdir)
    part = opened.data("test", 20)
    images = np.rint(part.images * 255).astype(np.uint8)  # of digits, which are float
    expected = corruption_accuracy(opened.model("best").logits_fn, images, part.labels)
    for name, row in zip(expected.names, expected.accuracy, strict=True):
        assert found["by_severity"][name] == row.tolist()
    assert found["accuracy"] == pytest.approx(expected.mean)
    assert result["unions"]["best"]["test"]["attacks"] == ["fgsm"]
    assert evaluate(workdir, "--attacks=corruptions", f"--surrogate={run}") == 2
    assert "corruptions are crafted on no network" in capsys.readouterr().err


def test_other_attacks_are_added_and_other_settings_kept_beside(run, capsys, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("evaluation*"))

    def read(name="evaluation.json"):
        return json.loads((workdir / name).read_text())

    assert evaluate(workdir, "--attacks=fgsm,pgd-2") == 0
    first = read()
    # The last state is the best one here, so that it has all attacks too.
    assert evaluate(workdir, "--attacks=pgd-3", "--checkpoints=last") == 0
    assert "fgsm, pgd-2 together (strongest: " in capsys.readouterr().out
    found = read()["checkpoints"]
    assert found["best"]["digest"] == found["last"]["digest"]
    assert found["best"]["test"] == found["last"]["test"]
    assert list(found["best"]["test"]) == ["clean", "fgsm", "pgd-2", "pgd-3"]
    before = first["checkpoints"]["best"]["test"]
    assert all(found["best"]["test"][name] == before[name] for name in ("fgsm", "pgd-2"))
    assert read()["unions"]["best"]["test"]["attacks"] == ["fgsm", "pgd-2"]
    # A set with other attacks than the other has a table too.
    assert evaluate(workdir, "--attacks=fgsm", "--sets=train") == 0
    assert "FGSM train" in capsys.readouterr().out
    kept = read()
    for arguments, reason in (
        (["--epsilon=0.1"], "epsilon is '0.05' there and '0.1' here"),
        (["--epsilon=0.1", "--examples=10"], "epsilon is '0.05' there and '0.1' here"),
        (["--examples=10"], "it is of 20 test examples and this of 10"),
    ):
        assert evaluate(workdir, "--attacks=fgsm", *arguments) == 0
        printed = capsys.readouterr()
        assert reason in printed.err and "FGSM test" in printed.out
        assert "PGD-2 test" not in printed.out  # what is printed is what was asked for
    others = read().pop("others")
    assert {**read(), "others": None} == {**kept, "others": None}
    counts = [(o["epsilon"], o["checkpoints"]["best"]["test"]["clean"]["examples"]) for o in others]
    assert counts == [("0.1", 20), ("0.05", 10), ("0.1", 10)]
    # Measured again, it takes the place of its like.
    assert evaluate(workdir, "--attacks=pgd-2", "--examples=10") == 0
    assert len(read()["others"]) == 3
    assert list(read()["others"][1]["checkpoints"]["best"]["test"]) == ["clean", "fgsm", "pgd-2"]
    capsys.readouterr()
    assert cli.main(["report", f"--workdir={workdir}", f"--output={tmp_path / 'report'}"]) == 0
    shown, also = capsys.readouterr().out.split("Also measured, with other settings")
    assert "20 test examples" in shown and "10 test" not in shown and "epsilon 0.1" in also


def test_results_of_earlier_weights_are_kept_and_no_longer_shown():
    def result(digest, examples, **changes):
        cell = {"accuracy": 0.5, "examples": examples}
        measured = {"digest": digest, "step": 3, "epoch": 1.0, "test": {"clean": cell}}
        same = dict.fromkeys(_kept.SAME) | {"epsilon": "0.05"} | changes
        union = {"test": {"attacks": [], "accuracy": 0.5}}
        return {**same, "checkpoints": {"last": measured}, "unions": {"last": union}}

    config = {"evaluation": {"epsilon": None}, "attack": {"epsilon": "0.05"}}
    first, _, words = _kept.with_earlier(None, result(1, 797), config)
    assert first == result(1, 797) and not words
    whole, mine, words = _kept.with_earlier(first, result(2, 20), config)
    assert whole == {**mine, "others": [{**first, "superseded": True}]} and not words
    again, *_ = _kept.with_earlier(whole, result(2, 797, dtype="bfloat16"), config)
    assert [again["dtype"], *(o["dtype"] for o in again["others"])] == ["bfloat16", None, None]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--attacks=autoatack", "Did you mean 'autoattack'"),
        ("--attacks=sqare", "Did you mean 'square'"),
        ("--save_images=perhaps", "--save_images is 'perhaps'"),
    ],
)
def test_misuse_is_one_sentence(run, capsys, argument, message):
    assert evaluate(run, argument) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_diagnose_writes_a_verdict_and_a_figure(run, capsys):
    arguments = ["--examples=20", "--queries=20", f"--surrogate={run}"]
    assert cli.main(["diagnose", f"--workdir={run}", *arguments]) == 0
    assert "gradients beat transfer" in capsys.readouterr().out
    result = json.loads((run / "diagnosis.json").read_text())
    assert result["examples"] == 20 and isinstance(result["suspicious"], bool)
    assert {path.name for path in (run / "figures").iterdir()} == {
        "diagnosis.png",
        "diagnosis.pdf",
    }
    for arguments, message in (
        ([], "--workdir is missing"),
        ([f"--workdir={run}", "--surrogate_checkpoint=last"], "is given without surrogate"),
        ([f"--workdir={run}", "--epsilon=999999999"], "epsilon is '999999999', but a number above"),
    ):
        assert cli.main(["diagnose", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run with parametric noise, trained for one epoch."""
    workdir = tmp_path_factory.mktemp("noisy") / "pni"
    settings = {
        "model.name": "mlp",
        "model.pni": "true",
        "epochs": 1,
        "batch_size": 32,
        "data.train_examples": 64,
        "data.validation_examples": 32,
        "data.test_examples": 40,
        "attack.steps": 2,
        "evaluation.steps": 2,
        "evaluation.train_examples": 0,
        "evaluation.batch_size": 32,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    assert cli.main(["train", f"--config={CONFIG}:at", f"--workdir={workdir}", *arguments]) == 0
    return workdir


def test_a_randomised_run_is_judged_by_the_average_of_passes(noisy, capsys):
    assert evaluate(noisy, "--attacks=pgd-2", "--eot=2") == 0
    printed = capsys.readouterr().out
    assert "2 random passes averaged" in printed and "AT-PNI" in printed
    result = json.loads((noisy / "evaluation.json").read_text())
    assert (result["eot"], result["method"]) == (2, "AT-PNI")
    # 20 examples, each judged by two passes.
    assert (40 * result["unions"]["best"]["test"]["accuracy"]) % 1 == pytest.approx(0, abs=1e-5)
    assert evaluate(noisy, "--attacks=square") == 2
    assert "square cannot attack a randomised model" in capsys.readouterr().err


def test_a_surrogate_is_named_in_rows_and_results(run, noisy, capsys):
    # The surrogate is randomised and of another width; the judged run is neither.
    arguments = ("--attacks=fgsm", f"--surrogate={noisy}", "--eot=2", "--save_images=true")
    assert evaluate(run, *arguments) == 0
    assert "FGSM from pni test" in capsys.readouterr().out
    (result,) = [
        one
        for one in json.loads((run / "evaluation.json").read_text())["others"]
        if one["surrogate"] is not None
    ]
    assert list(result["checkpoints"]["best"]["test"]) == ["clean", "fgsm from pni"]
    surrogate = result["surrogate"]
    assert (surrogate["run"], surrogate["checkpoint"]) == ("pni", "best")
    assert surrogate["digest"] and '"pni": true' in surrogate["model"]
    assert (run / "adversarial" / "best-test-fgsm-from-pni.npz").exists()


def test_surrogates_that_do_not_fit(run, capsys):
    shapes = {"images": {"image_shape": (9, 9, 1)}, "classes": {"num_classes": 3}}
    for what, change in shapes.items():
        options = {"image_shape": (8, 8, 1), "num_classes": 10, **change}
        classifier = models.create("linear", **options)
        target = types.SimpleNamespace(
            experiment=types.SimpleNamespace(classifier=classifier),
            workdir="target",
            dtype=None,
        )
        with pytest.raises(ValueError, match=f"is for {what} .* images crafted on it do not fit"):
            open_surrogate(str(run), None, target)
    for arguments, message in (
        (["--eot=3"], "eot is 3, but the model is deterministic"),
        (["--surrogate_checkpoint=best"], "is given without surrogate"),
        (["--surrogate=/nowhere"], "no config.json"),
    ):
        assert evaluate(run, *arguments) == 2
        assert message in capsys.readouterr().err


def test_the_time_left_counts_work_and_not_what_was_kept(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    progress = shown.Progress(4000, unit="pass", show="text")
    tell = Tell(progress, "best test", {"clean": 1.0, "a": 99.0, "b": 300.0}, 10)
    tell.kept("clean")
    tell("clean", 1.0)
    now[0] = 10.0
    tell("a", 0.1)  # with the compilation, which says nothing about the rest
    now[0] = 19.0
    tell("a", 1.0)
    tell("b", 0.5, 0.0)  # was kept up to here
    now[0] = 34.0
    tell("b", 0.9, 0.3, ": robust 3")
    tell("b", 1.0)  # the rest was spared
    assert capsys.readouterr().err.strip().splitlines() == [
        "best test clean: 0% done",
        "best test a: 25% done, about 30 s left",
        "best test b: robust 3: 92% done, about 4 s left",
        "best test b: 100% done",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "AT-AWP"),
        ({"weights.method": "rwp", "objective.name": "mart"}, "MART-RWP"),
        (
            {"objective.name": "trades", "weights.method": "rwp", "data.extra": "x.npz"},
            "RST-RWP",
        ),
        (
            {"weights.method": "none", "data.mixup": 1.4, "optimizer.name": "adam"},
            "AT + mixup + adam",
        ),
        ({"weights.loss_range": (0.0, 1.5)}, "AT-AWP + LSC[0.0, 1.5]"),
    ],
)
def test_methods_have_names(changes, expected):
    config = schema.default()
    config.update_from_flattened_dict(changes)
    assert method_name(config) == expected


def test_a_run_trained_in_bfloat16_is_judged_in_float32_unless_asked(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    config = json.loads((run / "config.json").read_text())
    config["model"]["dtype"] = "bfloat16"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    losses = {}
    for name, workdir, *flags in (
        ("float32", run),
        ("judged", tmp_path / "run"),
        ("own", tmp_path / "run", "--dtype=model"),
    ):
        assert evaluate(workdir, "--attacks=pgd-2", *flags) == 0
        result = json.loads((workdir / "evaluation.json").read_text())
        assert result["dtype"] == "float32"  # stands first, whatever was measured last
        if name == "own":
            (result,) = result["others"]
            assert result["dtype"] == "bfloat16"
        losses[name] = result["checkpoints"]["best"]["test"]["pgd-2"]["loss"]
    assert losses["judged"] == losses["float32"] != losses["own"]
    assert evaluate(run, "--dtype=float16") == 2
