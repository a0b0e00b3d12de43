"""Services that follow a run: what they are told, once, by the first process."""

import sys
import types

import pytest

from awp_jax.extras import MissingExtraError
from awp_jax.training import read_metrics, train


class Service(types.ModuleType):
    """The interface of wandb, writing down what it is told."""

    def __init__(self, name):
        super().__init__(name)
        self.began, self.lines, self.finished = [], [], 0

    def init(self, **options):
        self.began.append(options)

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_followed_and_goes_on_in_the_same_place(tmp_path, tiny_config, monkeypatch, name):
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    config = tiny_config()
    config.logging.every_steps = 1
    config.logging.tracker = f"{name}:robust"
    train(config, tmp_path / "run", progress=None, max_steps=4)
    train(config, tmp_path / "run", progress=None)
    first, second = service.began
    assert first == second and service.finished == 2
    assert first["project"] == "robust" and first["name"] == "run" and first["resume"] == "allow"
    assert first["config"]["attack"]["epsilon"] == "0.1"
    assert ("id" in first) == (name == "wandb")
    written = read_metrics(tmp_path / "run")
    seen = {step: {} for step, _ in service.lines}
    for step, values in service.lines:
        seen[step].update(values)
    for line in written:
        if line["kind"] == "evaluation":
            told = seen[line["step"]]["evaluation/test/robust_accuracy"]
            assert told == line["test"]["robust_accuracy"]
        else:
            assert seen[line["step"]]["train/loss"] == line["loss"]
    assert not any(key.endswith("/kind") for values in seen.values() for key in values)


def test_a_service_that_is_missing_or_refuses_is_one_sentence(tmp_path, tiny_config, monkeypatch):
    config = tiny_config()
    config.logging.tracker = "wandb:robust"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"logging.tracker=wandb needs wandb: pip install"):
        train(config, tmp_path / "missing", progress=None)
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)

    def refuse(**options):
        raise RuntimeError("no API key\nRun wandb login")

    monkeypatch.setattr(service, "init", refuse)
    with pytest.raises(ValueError, match=r"logging.tracker: wandb says: no API key$"):
        train(config, tmp_path / "refused", progress=None)
    config.logging.tracker = "wandb"
    with pytest.raises(ValueError, match="logging.tracker is 'wandb', but wandb:PROJECT or"):
        train(config, tmp_path / "wrong", progress=None)
    assert not (tmp_path / "wrong").exists()
