"""``configs/finetune.py``: what it takes over of a run, and what it says of no run."""

import pytest

from awp_jax import cli
from awp_jax import config as schema
from awp_jax.cli._config import read_config_flags


def tuned(run, method, *flags):
    config, _ = read_config_flags([f"--config=finetune:{run},{method}", *flags])
    return schema.validate(config)


@pytest.fixture
def before(tmp_path):
    config = schema.default()
    config.model.name, config.model.mean, config.model.std = "wrn-16-2", (0.5,) * 3, (0.2,) * 3
    config.data.name, config.data.validation_examples = "svhn", 0
    config.data.extra = "generated.npz"
    config.attack.norm, config.attack.epsilon = "l2", "128/255"
    (tmp_path / "config.json").write_text(config.to_json())
    return config


def test_fine_tuning_takes_over_what_the_run_is_of(before, tmp_path):
    config = tuned(tmp_path, "trades-awp")
    assert config.init_from == str(tmp_path) and config.epochs == 10
    assert config.model.to_dict() == before.model.to_dict()
    assert (config.data.name, config.data.validation_examples) == ("svhn", 1000)
    assert (config.attack.norm, config.attack.epsilon) == ("l2", "128/255")
    assert (config.objective.name, config.weights.method) == ("trades", "awp")


def test_extra_images_come_along_unless_they_are_left_out(before, tmp_path):
    assert tuned(tmp_path, "at").data.extra == "generated.npz"
    assert tuned(tmp_path, "at", "--config.data.extra=null").data.extra is None


def test_no_run_is_one_sentence_without_the_recipes_source(capsys):
    assert cli.main(["describe", "--config=finetune:nowhere,at-awp"]) == 2
    said = "awp-jax describe: nowhere holds no config.json: it is not a run directory.\n"
    assert capsys.readouterr().err == said
