"""PyTorch checkpoints become run directories and back, whole or not at all."""

import json

import jax
import numpy as np
import pytest

from awp_jax import cli, models, runs
from awp_jax.interop import CheckpointError, save_torch
from awp_jax.interop.state_dict import to_state_dict

pytest.importorskip("safetensors")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODEL = ["--model=wrn-10-1", "--data=digits", "--epsilon=0.1"]


def tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    classifier = models.create("wrn-10-1", image_shape=(8, 8, 1), num_classes=10)
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_torch(path, classifier, *classifier.init(jax.random.key(0)))
    return path


@pytest.fixture(scope="module")
def imported(checkpoint):
    workdir = checkpoint.parent / "imported"
    assert cli.main(["import", str(checkpoint), f"--workdir={workdir}", *MODEL]) == 0
    return workdir


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_round_trip_gives_equal_tensors(checkpoint, imported, tmp_path, capsys, which):
    output = tmp_path / "again.safetensors"
    arguments = [f"--workdir={imported}", f"--output={output}", f"--checkpoint={which}"]
    assert cli.main(["export", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "exported wrn-10-1" in printed
    line = f"awp-jax import {output} --model=wrn-10-1 --data=digits --workdir=runs/imported "
    assert line + "--norm=linf --epsilon=0.1" in printed
    before, after = tensors(checkpoint), tensors(output)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_an_imported_run_is_evaluated_and_reported(imported, tmp_path, capsys):
    arguments = [f"--workdir={imported}", "--attacks=fgsm", "--sets=test", "--examples=20"]
    assert cli.main(["evaluate", *arguments]) == 0
    result = json.loads((imported / "evaluation.json").read_text())
    assert (result["method"], result["model"], result["epsilon"]) == ("imported", "wrn-10-1", "0.1")
    assert result["checkpoints"]["best"] == result["checkpoints"]["last"]
    assert cli.main(["report", f"--workdir={imported}", f"--output={tmp_path}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_pt_files_load_into_pytorch(imported, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    output = tmp_path / "model.pt"
    assert cli.main(["export", f"--workdir={imported}", f"--output={output}"]) == 0
    state = torch.load(output, weights_only=True)
    assert "block1.layer.0.conv1.weight" in state
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    workdir = tmp_path / "run"
    workdir.mkdir()  # an empty directory is taken
    arguments = [str(tmp_path / "wrapped.pt"), f"--workdir={workdir}", *MODEL]
    assert cli.main(["import", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "right on 100 test images" in printed
    assert "not normalised: the file holds no mean and deviation" in printed
    assert {path.name for path in workdir.iterdir()} == {"config.json", "checkpoints"}


def test_a_normalisation_in_the_file_is_taken_over(tmp_path, capsys):
    save = pytest.importorskip("safetensors.numpy").save_file
    classifier = models.create("mlp", image_shape=(8, 8, 1), num_classes=10)
    path = tmp_path / "model.safetensors"
    save_torch(path, classifier, *classifier.init(jax.random.key(0)))
    names = {name: f"1.{name.replace('linear', 'fc')}" for name in tensors(path)}
    renamed = {names[name]: value for name, value in tensors(path).items()}
    own = {"0.mean": np.float32([0.25]), "0.std": np.float32([0.5])}
    save(own | renamed, path)
    arguments = ["import", str(path), "--model=mlp", "--data=digits"]
    assert cli.main([*arguments, f"--workdir={tmp_path / 'run'}", "--rename=x"]) == 2
    assert "--rename is 'x', but OLD:NEW" in capsys.readouterr().err
    assert cli.main([*arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--rename=fc:linear" in capsys.readouterr().err
    assert cli.main([*arguments, f"--workdir={tmp_path / 'run'}", "--rename=fc:linear"]) == 0
    assert "normalised as the checkpoint says: mean (0.25,)" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (config["normalize"], config["mean"], config["std"]) == (True, [0.25], [0.5])


@pytest.mark.core
def test_a_published_name_knows_all_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path / "none"))
    classifier = models.create("dm-preact-resnet-18", image_shape=(32, 32, 3), num_classes=10)
    path = tmp_path / "c.safetensors"
    save_torch(path, classifier, *jax.jit(classifier.init)(jax.random.key(0)))
    arguments = ["import", str(path), "--as=Rade2021Helper_R18_ddpm"]
    assert cli.main([*arguments, f"--workdir={tmp_path / 'linf'}"]) == 0
    printed = capsys.readouterr().out
    others = "--data=cifar10 --norm=l2; --data=cifar100 --norm=linf"
    assert f"Rade2021Helper_R18_ddpm: cifar10 in linf 8/255 (also published: {others})" in printed
    assert "normalised as was published: mean (0.4914, 0.4822, 0.4465)" in printed
    config = json.loads((tmp_path / "linf" / "config.json").read_text())
    model = config["model"]
    assert (model["name"], model["normalize"], model["activation"]) == (
        "dm-preact-resnet-18",
        True,
        None,
    )
    assert (model["mean"], model["std"]) == ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])
    assert (config["attack"]["norm"], config["attack"]["epsilon"]) == ("linf", "8/255")
    assert config["attack"]["step_size"] == "2/255"
    assert cli.main([*arguments, "--norm=l2", f"--workdir={tmp_path / 'l2'}"]) == 0
    attack = json.loads((tmp_path / "l2" / "config.json").read_text())["attack"]
    assert (attack["norm"], attack["epsilon"]) == ("l2", "0.5")
    # 100 logits are asked for, of a file with 10
    assert cli.main([*arguments, "--data=cifar100", f"--workdir={tmp_path / 'c'}"]) == 2
    said = capsys.readouterr().err
    assert "another architecture than dm-preact-resnet-18: logits." in said
    assert "but looks like dm-preact-resnet-18 of 10 classes." in said
    narrow = models.create("dm-wrn-10-1", image_shape=(32, 32, 3), num_classes=10)
    save_torch(path, narrow, *jax.jit(narrow.init)(jax.random.key(0)))
    assert cli.main([*arguments, f"--workdir={tmp_path / 'd'}"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("it is not the file of Rade2021Helper_R18_ddpm.\n")


def test_a_published_name_of_imagenet(tmp_path, monkeypatch, capsys):
    """Its size and classes, of a file that holds its normalisation and needs no data."""
    from safetensors.numpy import save_file

    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path / "none"))
    classifier = models.create("imagenet-resnet-18", image_shape=(224, 224, 3), num_classes=1000)
    params, batch_stats = jax.jit(classifier.init)(jax.random.key(0))
    state = to_state_dict(classifier, params, batch_stats)
    state = {f"model.{name}": value for name, value in state.items()}
    entry = models.published("Salman2020Do_R18")
    for name in ("mean", "std"):
        values = np.asarray(getattr(entry, name), np.float32).reshape(1, 3, 1, 1)
        state[f"normalize.{name}"] = values
    save_file(state, tmp_path / "c.safetensors")
    workdir = tmp_path / "run"
    arguments = ["import", str(tmp_path / "c.safetensors"), "--as=Salman2020Do_R18"]
    assert cli.main([*arguments, f"--workdir={workdir}"]) == 0
    printed = capsys.readouterr().out
    assert "Salman2020Do_R18: imagenet in linf 4/255" in printed
    assert "normalised as was published: mean (0.485, 0.456, 0.406)" in printed
    assert "imagenet needs train and val with a folder for each class" in printed
    images = np.full((1, 224, 224, 3), 0.5, np.float32)
    assert runs.open(workdir).model().logits_fn(images).shape == (1, 1000)


@pytest.mark.core
def test_published_names_are_listed(capsys):
    assert cli.main(["import", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(models.PUBLISHED)
    assert ["Peng2023Robust", "cifar10", "linf", "8/255", "ra-wrn-70-16"] in map(str.split, lines)


def test_data_that_is_not_at_data_path_is_refused(tmp_path, capsys):
    classifier = models.create("linear", image_shape=(32, 32, 3), num_classes=10)
    path = tmp_path / "c.safetensors"
    save_torch(path, classifier, *classifier.init(jax.random.key(0)))
    arguments = [str(path), "--model=linear", f"--data_path={tmp_path / 'nothing'}"]
    assert cli.main(["import", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "nothing" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_without_the_data_the_published_sizes_serve(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path / "none"))
    classifier = models.create("wrn-10-1", image_shape=(32, 32, 3), num_classes=10)
    save_torch(tmp_path / "c.safetensors", classifier, *classifier.init(jax.random.key(0)))
    workdir = tmp_path / "run"
    arguments = [str(tmp_path / "c.safetensors"), "--model=wrn-10-1", "--normalize=true"]
    assert cli.main(["import", *arguments, f"--workdir={workdir}"]) == 0
    assert "was not found, so the model was not tried" in capsys.readouterr().out
    model = runs.open(workdir).model()  # needs no data either
    images = np.full((2, 32, 32, 3), 0.5, np.float32)
    assert model.logits_fn(images).shape == (2, 10)
    output = tmp_path / "again.safetensors"
    assert cli.main(["export", f"--workdir={workdir}", f"--output={output}"]) == 0
    assert "normalised images" in capsys.readouterr().out


@pytest.mark.core
def test_another_width_is_named_and_an_exported_line_imports_again(tmp_path, capsys):
    classifier = models.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=5)
    path = tmp_path / "narrow.safetensors"
    save_torch(path, classifier, *classifier.init(jax.random.key(0)))
    arguments = ["import", str(path), "--model=mlp", "--data=digits", f"--workdir={tmp_path / 'a'}"]
    assert cli.main(arguments) == 2
    assert "give --width, the channels" in capsys.readouterr().err
    assert cli.main([*arguments, "--width=5"]) == 0
    again = tmp_path / "again.safetensors"
    assert cli.main(["export", f"--workdir={tmp_path / 'a'}", f"--output={again}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].partition("awp-jax import ")[2]
    line = line.replace("runs/imported", str(tmp_path / "b"))
    assert "--width=5" in line and cli.main(["import", *line.split()]) == 0


def test_noise_has_no_place_in_pytorch(tmp_path):
    plain = models.create("linear", image_shape=(8, 8, 1), num_classes=10)
    noisy = models.with_parametric_noise(plain)
    with pytest.raises(CheckpointError, match="draws its kernels at every pass"):
        save_torch(tmp_path / "x.safetensors", noisy, *noisy.init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "The checkpoint is missing"),
        (["nope.pt", *MODEL], "There is no file nope.pt"),
        (["CHECKPOINT"], "--model is missing"),
        (["CHECKPOINT", "--as=Wang2023Beter_WRN-28-10"], "Did you mean 'Wang2023Better_WRN-28-10'"),
        (["CHECKPOINT", "--as=Peng2023Robust", "--norm=l2"], "cifar10 in linf, not for l2"),
        (["CHECKPOINT", "--as=Peng2023Robust", *MODEL], "--as and --model are both given"),
        (["CHECKPOINT", "--model=wrn-16-1", "--data=digits"], "lacks .* of wrn-16-1"),
        (["CHECKPOINT", "--model=wrn-10-2", "--data=digits"], "another architecture"),
        (["CHECKPOINT", "--model=wnr-10-1", "--data=digits"], "Unknown model"),
        (["CHECKPOINT", *MODEL, "--data=digit"], "did you mean 'digits'"),
        (["CHECKPOINT", *MODEL, "--epsilon=-1"], "epsilon is '-1'"),
        (["CHECKPOINT", *MODEL, "--norm=l3"], "norm 'l3'"),
        (["CHECKPOINT", *MODEL, "--normalize=maybe"], "--normalize is 'maybe'"),
        (["CHECKPOINT", "stray", *MODEL], "'stray' was not expected"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(checkpoint, tmp_path, capsys, arguments, message):
    import re

    arguments = [str(checkpoint) if a == "CHECKPOINT" else a for a in arguments]
    assert cli.main(["import", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_refused(checkpoint, imported, capsys):
    assert cli.main(["import", str(checkpoint), f"--workdir={imported}", *MODEL]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=model.onnx"], "must be .pt, .pth or .safetensors"),
        (["--output=model.pt", "--checkpoint=first"], "checkpoint is 'first'"),
        ([], "--output is missing"),
    ],
)
def test_bad_exports_write_nothing(imported, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", f"--workdir={imported}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
