"""The command line as a person uses it, and misuses it."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import optax
import pytest
import small_flags

from awp_jax import cli
from awp_jax.cli._config import load
from awp_jax.config import to_yaml

CONFIG = str(pathlib.Path(__file__).parents[2] / "configs" / "digits_resnet.py")
SMALL = [
    *small_flags.SMALL,
    "--config.evaluation.steps=2",
    "--config.evaluation.every_epochs=1",
    "--config.evaluation.batch_size=32",
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trained and evaluated runs."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("at", "at-awp"):
        workdir = str(root / method)
        assert (
            cli.main(["train", f"--config={CONFIG}:{method}", f"--workdir={workdir}", *SMALL]) == 0
        )
        assert cli.main(["evaluate", f"--workdir={workdir}", "--attacks=fgsm,pgd-2"]) == 0
    return root


@pytest.mark.core
def test_train_evaluate_report(runs, capsys, tmp_path):
    result = json.loads((runs / "at-awp" / "evaluation.json").read_text())
    assert (result["method"], result["epsilon"], result["seed"]) == ("AT-AWP", "0.2", 0)
    for which in ("best", "last"):
        for part, examples in (("train", 64), ("test", 40)):
            measured = result["checkpoints"][which][part]
            assert list(measured) == ["clean", "fgsm", "pgd-2"]
            assert all(m["examples"] == examples for m in measured.values())
            assert measured["clean"]["accuracy"] >= measured["pgd-2"]["accuracy"]
    workdirs = f"--workdir={runs / 'at'},{runs / 'at-awp'}"
    assert cli.main(["report", workdirs, f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "AT-AWP",
        "robust gap",
        "seed 0",
        "epsilon 0.2",
        "64 train, 40 test",
        "best",
        "last",
    ):
        assert text in printed
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.md",
        "learning_curves.png",
        "learning_curves.pdf",
    }


def test_report_takes_the_earlier_name_of_its_flag(runs, capsys, tmp_path):
    assert cli.main(["report", f"--workdirs={runs / 'at'}", f"--output={tmp_path}"]) == 0
    assert "AT" in capsys.readouterr().out


def test_training_again_goes_on_and_says_so(runs, capsys):
    workdir = f"--workdir={runs / 'at'}"
    assert cli.main(["train", f"--config={CONFIG}:at", workdir, *SMALL]) == 0
    captured = capsys.readouterr()
    assert "Resuming at step 4 of 4" in captured.err and "finished at step 4" in captured.out


def test_plain_lines_when_the_output_is_no_terminal(tmp_path, capsys):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}", *SMALL, "--max_steps=2"]
    assert cli.main(["train", *arguments]) == 0
    captured = capsys.readouterr()
    assert "epoch   1" in captured.err and "\r" not in captured.err
    assert len(re.findall(r"First step done after \d+\.\d s", captured.err)) == 1
    assert captured.out.startswith("stopped at step 2")


@pytest.mark.core
@pytest.mark.parametrize(
    "command",
    [name for name in cli.COMMANDS if name != "completion"],
)
def test_every_command_explains_itself(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: awp-jax {command}") and "--" in text


def test_help_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.M) for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    said = capsys.readouterr().err
    assert "unknown command 'trian': did you mean 'train'?" in said and said.count("\n") == 1


def test_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out.partition("flags:")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path))
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["jax"] == jax.__version__
    assert found["self-test"]["result"] == "passed"
    assert found["data"]["cifar10"] == "not found" and "cpu devices" in found["machine"]
    assert found["settings"]["AWP_JAX_DATA"] == str(tmp_path)


def test_doctor_finds_wrong_numbers(capsys, monkeypatch):
    from awp_jax.cli import _doctor

    monkeypatch.setattr(_doctor, "awp", lambda inner, gamma: optax.with_extra_args_support(inner))
    assert cli.main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_completion(capsys, tmp_path):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "awp-jax.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        typed = " ".join(words)
        ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _awp_jax"
        ask = f'source {script}; {ask}; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", ask], capture_output=True, text=True).stdout.split()

    assert completed("awp-jax", "eval") == ["evaluate"]
    assert completed("awp-jax", "report", "--o") == ["--output="]
    assert (
        "--json" in completed("awp-jax", "describe", "--") == completed("awp-jax", "describe", "-")
    )
    assert cli.main(["completion", "fish"]) == 0
    assert "__fish_seen_subcommand_from train' -l workdir -r" in capsys.readouterr().out
    assert cli.main(["completion"]) == 2 and cli.main(["completion", "csh"]) == 2


def test_a_reader_that_has_seen_enough():
    command = [sys.executable, "-m", "awp_jax", "describe", "--keys=all"]
    told = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    told.stdout.close()
    assert told.stderr.read() == b"" and told.wait() == 141


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--config is missing"),
        (["train", f"--config={CONFIG}"], "--workdir is missing"),
        (["train", "--config=nope.py", "--workdir=W"], "There is no config file 'nope.py'"),
        (["train", f"--config={CONFIG}:awpp", "--workdir=W"], "Did you mean 'at-awp'"),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.weights.gama=1"],
            "Unknown config key 'weights.gama'. Did you mean 'weights.gamma'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.attack.epsilon=-1/255"],
            "attack.epsilon is '-1/255'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.weights.gamma=-0.1"],
            "weights.gamma is '-0.1'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.model.name=wrn-33-10"],
            "33",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.model.name=preact-resnt-18"],
            "Did you mean 'preact-resnet-18'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.data.name=digit"],
            "[Dd]id you mean .?digits",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.objective.name=tradse"],
            "Did you mean 'trades'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.data.train_examples=5000"],
            "5000|5,000",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.batch_size=5000"],
            "batch_size is 5000, but there are 600",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.epochs=abc"],
            "epochs is 'abc', but an integer of at least 1",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.weights=3"],
            "'weights' is a group: give one of .*gamma",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.data.name.x=3"],
            "Unknown config key 'data.name.x'",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.data.flip=maybe"],
            "data.flip is 'maybe', but true or false was expected",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--max-steps=few"],
            "--max_steps is 'few', but an integer of at least 1",
        ),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.attack.epsilon=8"],
            "attack.epsilon is 8, .*write 8/255 .*attack.large_epsilon",
        ),
        (["train", "--config=", "--workdir=W"], "--config is empty"),
        (["train", "--config.epochs=3", "--workdir=W"], "but --config names none"),
        (
            ["train", f"--config={CONFIG}", "--workdir=W", "--config.schedule.milestones=0.5"],
            r"schedule.milestones is '0.5', .* one alone is written '\(0.5,\)'",
        ),
        (["train", f"--config={CONFIG}", "--workdir=W", "stray"], "'stray' was not expected"),
        (["train", f"--config={CONFIG}", "--workdir=W", "--wrokdir=x"], "wrokdir"),
        (["evaluate", "--workdir=W"], "holds no config.json"),
        (["report", "--workdir=W", "--output=W"], "holds no config.json"),
        (["report", "--output=W"], "--workdir is missing"),
        (["report", "--workdir=,", "--output=W"], "--workdir is empty"),
        (["report", "--workdir=V", "--workdirs=W", "--output=W"], "are both given"),
    ],
)
def test_misuse_is_one_sentence_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"awp-jax {arguments[0]}: ")
    import re

    assert re.search(message, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks=pgdd-20"], "Unknown attack 'pgdd-20'.*Did you mean 'pgd-20'"),
        (["--attacks=,"], "--attacks is empty"),
        (["--sets=tset"], "Did you mean 'test'"),
        (["--examples=5000"], "examples is 5000, but train of .* has 64"),
        (["--checkpoints=first"], "checkpoint is 'first'"),
        (["--epsilon=-0.1"], "epsilon is '-0.1'"),
        (["--examples=0"], "examples"),
    ],
)
def test_bad_evaluations_keep_the_old_result(runs, capsys, arguments, message):
    before = (runs / "at" / "evaluation.json").read_text()
    assert cli.main(["evaluate", f"--workdir={runs / 'at'}", *arguments]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)
    assert (runs / "at" / "evaluation.json").read_text() == before


def test_a_radius_of_8_is_refused_unless_insisted_on(capsys):
    arguments = [f"--config={CONFIG}", "--config.attack.epsilon=8", *SMALL]
    assert cli.main(["describe", *arguments]) == 2
    assert "8/255" in capsys.readouterr().err
    assert cli.main(["describe", *arguments, "--config.attack.large_epsilon"]) == 0
    assert "large_epsilon: true" in capsys.readouterr().out


def config_files(folder):
    """Config files that are wrong, by what is said of them."""
    head = "from awp_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
    texts = {
        r"c1.py, line 6 \(c.attack.epsilom = .*\): Unknown config key 'attack.epsilom'": (
            f"{head}    c.attack.epsilom = '8/255'\n    return c\n"
        ),
        r"'attack.epsilon' is 0.03, but a value of type str .*text, such as '8/255'": (
            f"{head}    c.attack.epsilon = 0.03\n    return c\n"
        ),
        "Unknown config key 'atack'. Did you mean 'attack'": f"{head}    return c.atack\n",
        "has no function get_config": "x = 1\n",
        r"c5.py, line 1: SyntaxError: .*": "def get_config(:\n",
        r"c6.py, line 1 \(1 / 0\): ZeroDivisionError: division by zero": "1 / 0\n",
        "c7.py: A config is 3, but a ConfigDict": f"{head}    return 3\n",
        r"c8.py, line 6 .*Config key 'schedule' is a group": f"{head}    c.schedule = 'cosine'\n",
        "takes no argument|0 positional arguments": None,
    }
    for number, (said, text) in enumerate(texts.items(), start=1):
        path = folder / f"c{number}.py"
        path.write_text(text or f"{head}    return c\n")
        yield said, str(path) if text else f"{path}:argument"


def test_a_config_file_that_is_wrong_is_one_sentence(tmp_path, capsys):
    for message, path in config_files(tmp_path):
        assert cli.main(["describe", f"--config={path}"]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1, error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1", r"c.yaml is broken YAML: .* in line"),
        ("epochs: 2\n  x: 1", r"c.yaml is broken YAML: .* in line 2"),
        ("- 1", "holds no keys of a config"),
        ("", "holds no keys of a config"),
        ("attack: {epsilom: 8/255}", "'attack.epsilom'. Did you mean 'attack.epsilon'"),
        ("attack: 3", "'attack' is a group, not a value: 3"),
        ("attack:", "'attack' is a group, not a value: None"),
        ("attack: {epsilon: 0.03}", "a value of type str was expected .*'8/255'"),
        ("epochs: many", "a value of type int was expected"),
        ("epochs: null", "epochs is None, but an integer of at least 1"),
        ("1: 2", "Unknown config key '1'"),
        ("epochs: !!python/tuple [1]", "is broken YAML: could not determine a constructor"),
        ("epochs: 2000-99-99", "is broken YAML: month must be"),
    ],
)
def test_yaml_that_is_wrong_is_one_sentence(tmp_path, capsys, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert cli.main(["describe", f"--config={path}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_every_config_can_be_kept_as_yaml(tmp_path):
    files = sorted(pathlib.Path(CONFIG).parent.glob("*.py"))
    for file in files:
        config = load(str(file))
        path = tmp_path / f"{file.stem}.yaml"
        path.write_text(to_yaml(config))
        assert load(str(path)).to_dict() == config.to_dict()
    assert len(files) >= 6


def test_what_describe_prints_is_a_config_file(tmp_path, capsys):
    given = [f"--config={CONFIG}:at", *SMALL, "--config.schedule.milestones=0.25,0.5"]
    assert cli.main(["describe", *given]) == 0
    text = capsys.readouterr().out
    assert "!!python" not in text
    path = tmp_path / "at.yaml"
    path.write_text(text)
    assert cli.main(["describe", f"--config={path}"]) == 0
    assert capsys.readouterr().out == text
    assert cli.main(["describe", f"--config={path}:at"]) == 2
    assert "takes no argument" in capsys.readouterr().err


def test_describe_says_what_keys_mean(capsys):
    assert cli.main(["describe", "--keys=attack"]) == 0
    text = capsys.readouterr().out
    assert "attack.epsilon = '8/255'" in text and "pixel units of [0, 1]" in text
    assert "weights.gamma" not in text
    assert cli.main(["describe", "--keys=all"]) == 0
    assert "weights.gamma" in capsys.readouterr().out
    assert cli.main(["describe", "--keys=atack"]) == 2
    assert "Did you mean 'attack'" in capsys.readouterr().err


def test_a_run_directory_with_another_config_is_refused(runs, capsys):
    other = "--config.weights.gamma=0.02"
    arguments = [f"--config={CONFIG}:at", f"--workdir={runs / 'at'}", *SMALL, other]
    assert cli.main(["train", *arguments]) == 2
    assert "weights.gamma is '0.01' there and '0.02' here" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_checkpoints_are_one_sentence(runs, tmp_path, capsys, damage):
    workdir = tmp_path / "run"
    shutil.copytree(runs / "at", workdir)
    if damage == "missing":
        shutil.rmtree(workdir / "checkpoints")
    else:
        for file in (workdir / "checkpoints" / "best").rglob("*"):
            if file.is_file() and file.stat().st_size > 1000:
                file.write_bytes(file.read_bytes()[:100])
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert "No best checkpoint" in error if damage == "missing" else "is damaged" in error
    assert "Traceback" not in error


def test_a_damaged_config_json_is_one_sentence(runs, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(runs / "at", workdir)
    (workdir / "config.json").write_text("{")
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_exits_with_1(tmp_path, capsys):
    arguments = [f"--config={CONFIG}", f"--workdir={tmp_path}", *SMALL]
    assert cli.main(["train", *arguments, "--config.optimizer.learning_rate=1e30"]) == 1
    assert "training stops" in capsys.readouterr().err


def test_describe_says_what_is_perturbed(capsys):
    assert cli.main(["describe", f"--config={CONFIG}"]) == 0
    text = capsys.readouterr().out
    for part in ("173,758 parameters", "steps: 6 per epoch", "13 of 32 tensors", "estimate of all"):
        assert part in text


def test_describe_says_what_each_of_many_devices_holds(capsys):
    def memory(*flags):
        arguments = ["describe", f"--config={CONFIG}", "--json", *flags]
        assert cli.main(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        return list(found["memory"].values()), found

    size = ["--config.batch_size=128", "--config.model.width=64"]
    one, _ = memory(*size)
    eight, found = memory(*size, "--devices=64")
    assert found["devices"] == 64 and eight[:3] == one[:3] and eight[3] * 64 == one[3]
    split, found = memory(*size, "--devices=64", "--config.parallel.mesh=data:8,fsdp:8")
    assert split[0] < one[0] / 7 and split[1] < one[1] / 7  # BatchNorm stays whole
    assert split[2] == 4 * found["model"]["parameters"]  # gathered, in float32
    assert cli.main(["describe", f"--config={CONFIG}", "--devices=7"]) == 2
    assert "7 devices cannot share equally" in capsys.readouterr().err
    mesh = "--config.parallel.mesh=data:3,fsdp:4"
    assert cli.main(["describe", f"--config={CONFIG}", "--devices=8", mesh]) == 2
    assert "made of 12 devices, but 8 are there" in capsys.readouterr().err


def test_describe_plans_for_imagenet_without_its_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path))
    path = tmp_path / "c.yaml"
    path.write_text("{data: {name: imagenet}, model: {name: imagenet-resnet-18}}")
    arguments = ["describe", f"--config={path}", "--config.model.dtype=bfloat16"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["shape"] == [224, 224, 3] and found["data"]["classes"] == 1000
    assert found["model"]["parameters"] == 11_689_512
    assert found["operations"]["forward"] / 2 == pytest.approx(1.814e9, rel=1e-3)
    kept = "kept for the backward pass of 128 images"
    assert cli.main([*arguments, "--json", "--config.model.remat"]) == 0
    with_remat = json.loads(capsys.readouterr().out)
    assert with_remat["memory"][kept] < 0.5 * found["memory"][kept]
    assert with_remat["operations"]["step"] > found["operations"]["step"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "3.628 GFLOP for a forward pass of one image (1.814 G multiply-adds" in text
    assert (
        "imagenet needs train and val with a folder for each class" in text
        and "batches from the host" in text
    )


def test_describe_takes_a_run(runs, capsys):
    given = [f"--config={CONFIG}:at", *SMALL]
    assert cli.main(["describe", *given]) == 0
    expected = capsys.readouterr().out
    assert cli.main(["describe", f"--workdir={runs / 'at'}"]) == 0
    assert capsys.readouterr().out == expected
    assert cli.main(["describe", f"--workdir={runs / 'at'}", given[0]]) == 2
    assert "--config and --workdir are both given" in capsys.readouterr().err
    assert cli.main(["describe"]) == 2
    assert ", or --workdir or --keys." in capsys.readouterr().err


def test_describe_works_without_the_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path))
    config = str(pathlib.Path(CONFIG).with_name("neurips2020.py")) + ":cifar10,linf,at"
    assert cli.main(["describe", f"--config={config}"]) == 0
    text = capsys.readouterr().out
    assert "49000 training, 1000 validation, 10000 test" in text and "11,172,170" in text
    assert "was not found" in text


def test_missing_data_says_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AWP_JAX_DATA", str(tmp_path))
    config = str(pathlib.Path(CONFIG).with_name("neurips2020.py"))
    assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "AWP_JAX_DATA" in error and "cifar-10-binary.tar.gz" in error
    assert not (tmp_path / "run").exists()


def test_json_for_scripts(runs, capsys):
    """What the commands print as text, as JSON alone, with nothing that JSON has not."""

    def printed(*arguments):
        assert cli.main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    at = f"--workdir={runs / 'at'}"
    found = printed("evaluate", at, "--attacks=fgsm,pgd-2")
    assert found == json.loads((runs / "at" / "evaluation.json").read_text())
    described = printed("describe", at)
    assert described["config"]["model"]["name"] == "mlp" and described["data"]["train"] == 64
    assert described["weights"] == {"method": "none"}
    tensors = printed("describe", f"--workdir={runs / 'at-awp'}")["weights"]["tensors"]
    assert all(row["radius"] == pytest.approx(0.01 * row["norm"]) for row in tensors)
    together = printed("report", f"--workdir={runs / 'at'},{runs / 'at-awp'}")
    assert list(together) == ["at", "at-awp"]
    assert together["at"]["evaluation"]["checkpoints"] == found["checkpoints"]
    small = ["--examples=8", "--sets=test", "--checkpoints=last", "--steps=1", "--restarts=1"]
    flat = printed("flatness", at, *small, "--draws=1")
    assert "average" in flat["at"]["checkpoints"]["last"]["test"]


def test_report_without_a_folder_prints(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", f"--workdir={runs / 'at'}"]) == 0
    assert capsys.readouterr().out.startswith("| run") and not list(tmp_path.iterdir())
