"""A run from Python: what the guide leaves out, and what goes wrong."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import cli, config, models, runs
from awp_jax.attacks import FGSM, PGD
from awp_jax.data import as_float
from awp_jax.runs import _directory
from awp_jax.training import WorkdirError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    chosen = config.default()
    chosen.update_from_flattened_dict(
        {
            "data.name": "digits",
            "data.train_examples": 64,
            "data.validation_examples": 0,
            "data.test_examples": 40,
            "model.name": "mlp",
            "model.width": 16,
            "epochs": 2,
            "batch_size": 32,
            "attack.epsilon": "0.15",
            "attack.step_size": "0.05",
            "attack.steps": 2,
            "evaluation.steps": 2,
            "evaluation.selection": "test",
        }
    )
    return runs.train(chosen, tmp_path_factory.mktemp("runs") / "mine", progress=None)


def test_metrics_are_columns(run):
    found = run.metrics()
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").open()]
    assert {len(column) for column in found.values()} == {len(lines)}
    train = found["kind"] == "train"
    assert np.isfinite(found["loss"][train]).all() and np.isnan(found["loss"][~train]).all()
    assert found["test/robust_accuracy"][~train].tolist() == [
        line["test"]["robust_accuracy"] for line in lines if line["kind"] == "evaluation"
    ]


def test_a_model_is_functions_arrays_and_a_module(run):
    model = run.model("last")
    images = jnp.asarray(as_float(run.data("test", 8).images))
    logits = model.logits_fn(images)
    np.testing.assert_array_equal(model.apply_fn(model.params, images), logits)
    assert model.info["step"] == 4 and repr(model).startswith("Model(mlp, ")
    centred = (np.asarray(images) - model.classifier.mean) / model.classifier.std
    np.testing.assert_allclose(model.as_nnx()(jnp.float32(centred)), logits, rtol=1e-5, atol=1e-6)
    plain = models.from_callable(
        lambda params, x: x.mean((1, 2)) * params["w"],
        {"w": jnp.ones(1)},
        num_classes=2,
        image_shape=(8, 8, 1),
    )
    with pytest.raises(ValueError, match="is no Flax NNX module"):
        plain.as_nnx({"w": jnp.ones(1)}, {})


def test_data_is_read_once_for_models_and_all_else(run, monkeypatch):
    read = []
    build = _directory.build
    monkeypatch.setattr(_directory, "build", lambda *a, **k: read.append(0) or build(*a, **k))
    again = runs.open(run.workdir)
    again.model("best")
    again.model("last")
    again.data("test")
    assert len(read) == 1


def test_attacks_by_name_as_objects_and_in_a_mapping(run):
    common = {"checkpoints": ["last"], "sets": ["test"], "examples": 20, "progress": None}
    found = run.evaluate(attacks=["fgsm", PGD("0.15", steps=2, step_size="0.05")], **common)
    assert list(found.values["checkpoints"]["last"]["test"]) == ["clean", "fgsm", "pgd"]
    own = run.evaluate(attacks={"one step": FGSM("0.15")}, **common)
    assert own.accuracy("one step", "last") == found.accuracy("fgsm", "last")
    assert len(repr(found).splitlines()) <= 15
    with pytest.raises(ValueError, match="attacks holds 3, but names and attacks"):
        run.evaluate(attacks=[3], **common)
    with pytest.raises(ValueError, match="attacks is empty"):
        run.evaluate(attacks=[], **common)


def test_what_is_measured_may_lie_elsewhere(run, tmp_path):
    """The directory of the run is then only read."""
    before = {p: p.stat().st_mtime_ns for p in run.workdir.rglob("*")}
    common = {"attacks": ["fgsm"], "checkpoints": ["last"], "sets": ["test"], "progress": None}
    folder = tmp_path / "not" / "there yet"
    found = run.evaluate(**common, save_images=True, folder=folder)
    assert {p: p.stat().st_mtime_ns for p in run.workdir.rglob("*")} == before
    assert {p.name for p in folder.iterdir()} == {"evaluation.json", "adversarial", "per_image"}
    there = json.loads((folder / "evaluation.json").read_text())
    assert there["checkpoints"] == found.values["checkpoints"]
    (folder / "evaluation.json").write_text("{")
    with pytest.raises(WorkdirError, match="there yet"):  # its own, not that of the run
        run.evaluate(**common, folder=folder)

    def stopped(*given):
        raise KeyboardInterrupt

    other = tmp_path / "other"
    attacks = {"fgsm": FGSM("0.15"), "stopped": stopped}
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(**common | {"attacks": attacks}, folder=other)
    assert len(list((other / "evaluation.partial").iterdir())) == 2  # clean and fgsm
    run.evaluate(**common | {"attacks": {"fgsm": FGSM("0.15")}}, folder=other)
    assert {p.name for p in other.iterdir()} == {"evaluation.json", "per_image"}
    assert {p: p.stat().st_mtime_ns for p in run.workdir.rglob("*")} == before


def test_progress_is_a_value(run, capsys):
    moments = []
    settings = runs.EvaluationSettings(attacks=["pgd-2"], sets=["test"], examples=20)
    run.evaluate(settings, progress=moments.append)
    assert moments[-1].done == pytest.approx(1.0) and "pgd-2" in moments[-1].what
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="Unknown progress 'loud'"):
        run.evaluate(settings, progress="loud")


def test_what_happened_to_each_image_is_kept(run, tmp_path, capsys):
    workdir = tmp_path / "copy"
    shutil.copytree(run.workdir, workdir, ignore=shutil.ignore_patterns("evaluation*", "per_*"))
    mine = runs.open(workdir)
    with pytest.raises(WorkdirError, match="holds nothing of best test"):
        mine.per_image()
    common = {"checkpoints": ["last"], "sets": ["test"], "progress": None}
    wide = mine.evaluate(attacks=["fgsm"], **common)
    narrow = mine.evaluate(attacks=["pgd-2"], examples=10, **common)
    wide = mine.evaluate(attacks=["pgd-3"], **common)
    found = mine.per_image("last")
    assert found.attacks.tolist() == ["fgsm", "pgd-3"] and len(found.labels) == 40
    np.testing.assert_array_equal(found.labels, mine.data("test").labels)
    logits = mine.model("last").logits_fn(jnp.asarray(as_float(mine.data("test").images)))
    np.testing.assert_array_equal(found.clean_prediction, logits.argmax(1))
    for name in ("fgsm", "pgd-3"):
        assert found.accuracy(name) == wide.accuracy(name, "last")
    few = mine.per_image("last", attack="pgd-2")
    assert len(few.labels) == 10 and few.accuracy("pgd-2") == narrow.accuracy("pgd-2", "last")
    assert few.accuracy() == narrow.values["unions"]["last"]["test"]["accuracy"]
    assert len(list((workdir / "per_image").iterdir())) == 2
    mine.evaluate(attacks=["fgsm"], save_images=True, **common | {"progress": "text"})
    printed = capsys.readouterr().err
    assert "last test: fgsm ran before, but its images were not kept: attacked again" in printed
    saved = np.load(workdir / "adversarial" / "last-test-fgsm.npz")
    np.testing.assert_array_equal(saved["success"], found.success[0])
    for call, message in (
        (lambda: mine.per_image(part="tset"), "Did you mean 'test'"),
        (lambda: mine.per_image("last", attack="square"), "holds nothing of square on last test"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_results_are_saved_and_drawn(run, tmp_path):
    common = {"checkpoints": ["last"], "sets": ["test"], "progress": None}
    ignored = shutil.ignore_patterns("evaluation*", "per_*")
    run = runs.open(shutil.copytree(run.workdir, tmp_path / "copy", ignore=ignored))
    found = run.evaluate(attacks=["fgsm"], examples=20, **common)
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == found.values
    bars = found.plot().patches
    percent = [100 * found.accuracy(name, "last") for name in ("clean", "fgsm")]
    assert [bar.get_height() for bar in bars] == pytest.approx(percent)
    report = runs.compare([run.workdir])
    assert report.plot().has_data() and set(report.figures()) == {"learning_curves"}
    landscape = run.landscape(points=3, draws=1, examples=10, steps=1, progress=None)
    (line,) = landscape.plot().get_lines()
    loss = landscape.values["checkpoints"]["last"]["anew"]["loss"]
    np.testing.assert_allclose(line.get_ydata(), loss[0])
    landscape.save(tmp_path / "landscape.npz")
    with np.load(tmp_path / "landscape.npz") as saved:
        np.testing.assert_array_equal(saved["last/anew/loss"], loss)
        assert json.loads(str(saved["json"]))["values"]["settings"]["points"] == 3
    flatness = run.flatness(examples=10, restarts=1, draws=1, steps=1, **common)
    values = flatness.values["checkpoints"]["last"]["test"]
    heights = [bar.get_height() for bar in flatness.plot().patches]
    assert heights == pytest.approx([values["average"], values["worst_case"]])
    model = run.model("last")
    model.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as saved:
        assert sum(saved[n].size for n in saved if n.startswith("params/")) == sum(
            leaf.size for leaf in jax.tree.leaves(model.params)
        )
    for one in (found, report, landscape, flatness, model):
        assert len(repr(one).splitlines()) <= 15
    for one, ending in ((found, ".json"), (landscape, ".npz"), (flatness, ".json")):
        with pytest.raises(ValueError, match=f"ends in {ending} was expected"):
            one.save(tmp_path / "found.txt")


def test_bad_settings_are_one_sentence(run):
    for call, message in (
        (lambda: run.evaluate(atacks=["pgd-2"]), "Did you mean 'attacks'"),
        (lambda: run.evaluate(sets=["tset"]), "Did you mean 'test'"),
        (lambda: run.evaluate(examples=0), "examples is 0, but an integer of at least 1"),
        (lambda: run.evaluate(examples=41), "examples is 41, but train of|but test of"),
        (lambda: run.evaluate(runs.EvaluationSettings(), examples=2), "were both given"),
        (lambda: run.landscape(dims=3), "dims is 3, but 1 or 2"),
        (lambda: run.landscape(name="a/b"), "a file name without folders"),
        (lambda: run.flatness(also=["hesian"]), "Did you mean 'hessian'"),
        (lambda: run.diagnose(surrogate_checkpoint="last"), "is given without surrogate"),
        (lambda: run.data("validation"), "kept no validation images back"),
        (lambda: runs.compare([run.workdir, run.workdir]), "Two run directories are called"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(WorkdirError, match="holds no config.json"):
        runs.open(pathlib.Path(run.workdir).parent)


def test_moved_data_is_found_by_its_new_path(run, tmp_path):
    opened = runs.open(run.workdir, data_path=str(tmp_path))
    assert opened.config.data.path == str(tmp_path)


def test_data_that_has_moved_and_a_run_that_resumes_by_its_directory(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    arrays = {"x_train": rng.integers(0, 255, (40, 4, 4, 1), np.uint8), "y_train": labels}
    arrays |= {"x_test": arrays["x_train"][:8], "y_test": labels[:8]}
    np.savez(tmp_path / "data.npz", **arrays)
    chosen = config.default()
    chosen.update_from_flattened_dict(
        {
            "data.name": "npz",
            "data.path": "data.npz",  # relative: the run is opened from elsewhere
            "data.validation_examples": 0,
            "data.crop_padding": 0,
            "data.flip": False,
            "evaluation.selection": "test",
            "evaluation.train_examples": 0,
            "model.name": "linear",
            "epochs": 2,
            "batch_size": 20,
            "attack.steps": 1,
            "evaluation.steps": 1,
        }
    )
    monkeypatch.chdir(tmp_path)
    assert not runs.train(chosen, "run", max_steps=1, progress=None).metrics()["step"].max() > 1
    monkeypatch.chdir("/")
    workdir = f"--workdir={tmp_path / 'run'}"
    assert runs.open(tmp_path / "run").config.data.path == str(tmp_path / "data.npz")
    assert cli.main(["train", workdir]) == 0  # the config lies in the directory
    assert "finished at step 4" in capsys.readouterr().out
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    evaluate = ["evaluate", workdir, "--attacks=fgsm", "--sets=test", "--checkpoints=last"]
    assert cli.main(evaluate) == 2
    assert str(tmp_path / "data.npz") in capsys.readouterr().err
    assert cli.main([*evaluate, f"--data_path={tmp_path / 'moved.npz'}"]) == 0
    assert "FGSM test" in capsys.readouterr().out
    assert cli.main(["train", f"--workdir={tmp_path / 'none'}"]) == 2
    assert "a run that is there needs none" in capsys.readouterr().err
