"""The schema and its checks, and the configs of the papers' cells."""

import copy as copying
import importlib.util
import itertools
import pathlib
import warnings

import pytest
import yaml

from awp_jax import config as schema
from awp_jax import models
from awp_jax.config._inputs import ACTIVATIONS
from awp_jax.runs._method import method_name
from awp_jax.training import schedule

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def get(name, argument):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return schema.validate(module.get_config(argument))


@pytest.mark.core
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "attack.epsilon",
            "-8/255",
            r"attack.epsilon is '-8/255', but a finite number of at least",
        ),
        ("attack.epsilon", "eight", r"attack.epsilon is 'eight', but a number or a fraction"),
        ("attack.epsilon", "1/0", r"attack.epsilon is '1/0'"),
        ("weights.gamma", "-0.1", r"weights.gamma is '-0.1'"),
        ("weights.gamma", "nan", r"weights.gamma is 'nan'"),
        ("weights.method", "apw", r"Unknown weights.method 'apw'.*Did you mean 'awp'"),
        ("objective.name", "trade", r"Unknown objective.name 'trade'.*Did you mean 'trades'"),
        ("schedule.name", "cosin", r"Did you mean 'cosine'"),
        ("model.width", 10**12, r"model.width is 1000000000000, but an integer from 1 to 65536"),
        ("weights.c_min", -1.0, r"weights.c_min is -1.0, but a number of at least 0, or inf"),
        ("epochs", 0, r"epochs is 0, but an integer of at least 1"),
        ("batch_size", -1, r"batch_size is -1"),
        ("optimizer.learning_rate", -0.1, r"optimizer.learning_rate is -0.1"),
        ("optimizer.weight_decay", float("inf"), r"optimizer.weight_decay is inf"),
        ("data.validation_examples", 0, r"keep some training images back"),
        ("schedule.milestones", (-0.5,), r"schedule.milestones is"),
        ("schedule.milestones", (100, 150), r"fractions of all epochs from 0 to 1"),
        ("schedule.milestones", ("half",), r"schedule.milestones is \('half',\)"),
    ],
)
def test_bad_values_are_one_sentence(path, value, message):
    config = schema.default()
    group, _, key = path.rpartition(".")
    (config[group] if group else config)[key] = value
    with pytest.raises(ValueError, match=message) as error:
        schema.validate(config)
    assert "\n" not in str(error.value)


@pytest.mark.core
def test_activations_are_those_of_the_models():
    assert ACTIVATIONS == tuple(models.ACTIVATIONS)


NONSENSE = ("-1", "nan", "inf", "1e999", "abc", "", "[1,2]", "None", "0", "999999999999", "8/0")
NOT_FINITE = ("nan", "inf", "1e999", "8/0")
PYTHONS_WORDS = (" at 0x", "malformed", "invalid literal", "could not convert")


@pytest.mark.core
@pytest.mark.filterwarnings("ignore:.*meant")
@pytest.mark.filterwarnings("ignore:(weights|averaging).start_epoch", "ignore:model.dtype")
def test_every_key_refuses_nonsense_in_one_sentence():
    accepted, default = [], schema.default()
    for (path, key), value in itertools.product(dict(schema.keys()).items(), NONSENSE):
        config = copying.deepcopy(default)
        try:
            schema.override(config, path, value)
            schema.validate(config)
        except ValueError as error:
            words = str(error)
            assert "\n" not in words and len(words) < 400, (path, value, words)
            assert not any(phrase in words for phrase in PYTHONS_WORDS), (path, value, words)
            continue
        number = isinstance(key.default, int | float) and not isinstance(key.default, bool)
        text = isinstance(key.default, str) and "/" not in key.default
        if (value in NOT_FINITE and not text) or (value == "-1" and number):
            accepted.append((path, value))
    paths = {"data.path", "data.extra", "data.extra_labels", "init_from"}  # any text is one
    paths |= {"objective.teacher"}
    assert [a for a in accepted if a[0] not in paths] == [
        ("weights.c_min", "inf"),  # all examples, as in AWP
        ("weights.c_min", "1e999"),  # the same
    ]


@pytest.mark.core
@pytest.mark.parametrize("key", ["attack.epsilon", "evaluation.epsilon"])
@pytest.mark.parametrize(("value", "said"), [("8", "8/255"), ("16/2", "8/255"), ("1.5", "8/255")])
def test_a_radius_above_the_range_of_inputs_is_refused(key, value, said):
    config = schema.default()
    schema.override(config, key, value)
    with pytest.raises(ValueError, match=f"{key} is {value}, but images are in .*{said}"):
        schema.validate(config)
    config.attack.large_epsilon = True
    schema.validate(config)
    config.attack.large_epsilon, config.attack.norm = False, "l2"
    schema.validate(config)


@pytest.mark.parametrize("key", ["model.mean", "model.std"])
def test_statistics_of_images_up_to_255_are_refused(key):
    config = schema.default()
    config.model.mean, config.model.std = (0.5,) * 3, (1.0,)
    schema.validate(config)
    schema.override(config, key, "(128, 128, 128)")
    said = rf"{key} is \(128, 128, 128\), but images are in \[0, 1\] .*: divide by 255."
    with pytest.raises(ValueError, match=said):
        schema.validate(config)
    schema.override(config, key, "('a',)")
    with pytest.raises(ValueError, match="but a sequence of numbers in"):
        schema.validate(config)


def test_a_step_above_one_warns():
    config = schema.default()
    config.attack.step_size = "2"
    with pytest.warns(UserWarning, match="attack.step_size is 2, above 1.*2/255"):
        schema.validate(config)


def test_an_l2_radius_above_one_does_not_warn():
    config = schema.default()
    config.attack.norm, config.attack.epsilon = "l2", "2"
    schema.validate(config)


@pytest.mark.core
def test_an_unknown_key_says_what_was_meant():
    with pytest.raises(ValueError, match=r"'weights.gama'.*Did you mean 'weights.gamma'"):
        schema.from_dict({"weights": {"gama": "0.1"}})
    with pytest.raises(ValueError, match="is a group, not a value"):
        schema.from_dict({"weights": 3})
    with pytest.raises(ValueError, match="a value of type int was expected"):
        schema.from_dict({"epochs": "many"})


@pytest.mark.core
def test_keys_are_declared_once_with_what_they_mean():
    found = dict(schema.keys())
    assert len(found) == len(list(schema.keys())) and "attack.epsilon" in found
    for path, key in found.items():
        assert schema.default()[path] == key.default
        assert key.sentence.endswith(".") and "\n" not in key.sentence, path
        assert key.default is not None or key.kind.optional, path
    for group in schema.GROUPS:
        assert group.sentence.endswith(".")
    schema.validate(schema.default())


@pytest.mark.core
@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("epochs", "3", 3),
        ("optimizer.weight_decay", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("attack.epsilon", "4/255", "4/255"),
        ("attack.start", "none", "none"),
        ("attack.early_stop", "1", 1),
        ("data.flip", "False", False),
        ("schedule.milestones", "(0.5,)", (0.5,)),
        ("schedule.milestones", "0.25,0.5", (0.25, 0.5)),
        ("weights.loss_range", "()", ()),
    ],
)
def test_values_are_read_from_text(path, text, value):
    config = schema.default()
    schema.override(config, path, text)
    assert config[path] == value and type(config[path]) is type(value)
    schema.validate(config)


@pytest.mark.parametrize("nothing", ["null", "None"])
def test_an_optional_value_can_be_taken_back(nothing):
    config = schema.default()
    config.data.path = "somewhere"
    schema.override(config, "data.path", nothing)
    assert config.data.path is None


def test_every_value_that_describe_prints_can_be_given_back():
    printed = yaml.safe_load(schema.to_yaml(schema.default()))
    config = schema.default()
    for path, _ in schema.keys():
        *group, name = path.split(".")
        value = (printed[group[0]] if group else printed)[name]
        # As YAML writes it behind the colon; a shell takes the quotation marks away.
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")
        schema.override(config, path, text.strip().strip("'"))
    assert config.to_json() == schema.default().to_json()
    with pytest.raises(ValueError, match="an integer from 1 to 65536 or null was expected"):
        schema.override(config, "model.width", "wide")


@pytest.mark.core
def test_a_wrong_key_is_told_where_it_is_written():
    config = schema.default()
    for wrong in (lambda: config.atack, lambda: config["attack.epsilom"]):
        with pytest.raises(schema.UnknownKeyError, match="Did you mean 'attack"):
            wrong()
    with pytest.raises(AttributeError, match="'weights.gama'.*Did you mean 'weights.gamma'"):
        config.weights.gama = "0.1"
    with pytest.raises(TypeError, match="'epochs' is 'many', but a value of type int"):
        config.epochs = "many"
    assert not hasattr(config, "atack") and config.get("atack") is None
    for copy in (copying.deepcopy(config), config.copy_and_resolve_references()):
        assert copy.to_dict() == config.to_dict()
        with pytest.raises(KeyError, match="Did you mean 'weights.gamma'"):
            copy.weights.gama = "0.1"


def every_config():
    for path in sorted(CONFIGS.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield path.stem, module.get_config()


@pytest.mark.core
def test_every_config_survives_yaml():
    names = []
    for name, config in every_config():
        names.append(name)
        text = schema.to_yaml(config)
        assert "!!" not in text
        assert schema.from_yaml(text).to_dict() == config.to_dict()
        assert schema.from_yaml(config.to_json()).to_dict() == config.to_dict()
    assert "quickstart" in names and len(names) >= 6


def test_yaml_takes_numbers_as_people_write_them():
    config = schema.from_yaml("optimizer: {weight_decay: 5e-4}\nschedule: {milestones: [0.5]}")
    assert (config.optimizer.weight_decay, config.schedule.milestones) == (5e-4, (0.5,))


def test_a_config_survives_json():
    import json

    config = schema.default()
    config.data.path = "somewhere"
    again = schema.from_dict(json.loads(config.to_json()))
    assert again.to_dict() == config.to_dict()


def rates(config, steps_per_epoch=10):
    return schedule(
        config.schedule.name,
        config.optimizer.learning_rate,
        config.epochs,
        steps_per_epoch,
        milestones=config.schedule.milestones,
    )


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "svhn"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["at", "at-awp"])
def test_tables_1_and_3_of_the_neurips_paper(data, norm, method):
    config = get("neurips2020", f"{data},{norm},{method}")
    assert (config.epochs, config.batch_size, config.attack.steps) == (200, 128, 10)
    assert config.model.name == "preact-resnet-18" and config.model.normalize
    assert config.attack.epsilon == {"linf": "8/255", "l2": "128/255"}[norm]
    expected_step = {"l2": "15/255", "linf": "1/255" if data == "svhn" else "2/255"}[norm]
    assert config.attack.step_size == expected_step
    assert (config.weights.method, config.weights.gamma) == (
        ("none" if method == "at" else "awp"),
        "0.01",
    )
    assert config.weights.start_epoch == (5 if data == "svhn" else 0)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
    first = 0.01 if data == "svhn" else 0.1
    rate = rates(config)
    # Drops at the fractional epochs 100 and 150.
    assert [float(rate(s)) for s in (0, 998, 999, 1498, 1499)] == pytest.approx(
        [first, first, first / 10, first / 10, first / 100]
    )
    assert config.data.rotation_degrees == (15.0 if data == "cifar100" else 0.0)
    assert config.data.flip == (data != "svhn")


@pytest.mark.parametrize("objective", ["at", "trades", "mart"])
@pytest.mark.parametrize("suffix", ["", "-awp"])
def test_table_2_of_the_neurips_paper(objective, suffix):
    config = get("neurips2020", f"table2,{objective}{suffix}")
    assert config.model.name == "wrn-34-10" and config.epochs == 200
    assert (config.attack.epsilon, config.attack.step_size) == ("8/255", "2/255")
    assert config.weights.gamma == "0.005"
    assert config.weights.method == ("awp" if suffix else "none")
    assert config.optimizer.weight_decay == 5e-4
    assert (config.objective.name, config.objective.beta) == (objective, 6.0)
    assert config.objective.lambda_ == 6.0


@pytest.mark.parametrize("method", ["at", "at-awp", "trades", "trades-awp", "mart", "mart-awp"])
def test_the_cells_of_the_first_version(method):
    mnist = get("arxiv_v1", f"mnist,{method}")
    assert (mnist.attack.epsilon, mnist.epochs, mnist.model.name) == ("0.3", 50, "mnist-cnn")
    assert mnist.optimizer.learning_rate == 0.01
    rate = rates(mnist)
    assert [float(rate(s)) for s in (198, 199, 398, 399)] == pytest.approx(
        [0.01, 0.001, 0.001, 0.0001]
    )
    cifar = get("arxiv_v1", f"cifar10,{method}")
    assert (cifar.model.name, cifar.epochs) == ("resnet-18", 100)
    assert cifar.optimizer.weight_decay == 2e-4
    assert (cifar.attack.step_size, cifar.evaluation.step_size) == ("0.007", "0.01")
    rate = rates(cifar)
    assert [float(rate(s)) for s in (748, 749, 899)] == pytest.approx([0.1, 0.01, 0.001])
    assert mnist.weights.gamma == cifar.weights.gamma == "0.005"
    assert get("arxiv_v1", f"cifar10-wrn,{method}").model.name == "wrn-34-10"
    table1 = {name: get("arxiv_v1", f"cifar10,at-{name}") for name in ("random", "pni")}
    methods = {name: (c.weights.method, c.model.pni) for name, c in table1.items()}
    assert methods == {"random": ("random", False), "pni": ("none", True)}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("suffix", ["", "-awp"])
def test_the_recipe_with_generated_images(norm, suffix):
    config = get("wang2023", f"cifar10,{norm},trades{suffix}")
    # The command in the released README, and the defaults of its parser.
    assert (config.epochs, config.batch_size, config.model.name) == (400, 512, "dm-wrn-28-10")
    assert (config.objective.name, config.objective.beta) == ("trades", 5.0)
    assert config.objective.label_smoothing == 0.1 and config.data.original_fraction == 0.3
    assert (config.optimizer.learning_rate, config.optimizer.nesterov) == (0.2, True)
    assert config.optimizer.weight_decay == 5e-4 and config.attack.steps == 10
    assert config.attack.step_size == {"linf": "2/255", "l2": "128/1275"}[norm]
    assert config.attack.start == {"linf": "uniform", "l2": "gaussian"}[norm]
    average = config.averaging
    assert (average.name, average.decay, average.warmup, average.start_epoch) == (
        ("ema", 0.995, True, 10)
    )
    assert config.weights.method == ("awp" if suffix else "none")
    rate = schedule("one-cycle", 0.2, 400, 98, peak=config.schedule.peak)
    assert float(rate(10 * 98 - 1)) == pytest.approx(0.2) and float(rate(0)) < 0.01


@pytest.mark.parametrize("data", ["cifar10", "svhn"])
@pytest.mark.parametrize("method", ["n-fgsm", "fgsm-rs-awp"])
def test_the_recipes_of_one_step(data, method):
    config = get("fast", f"{data},{method}")
    assert (config.epochs, config.batch_size) == (30, 128)
    assert config.attack.name == method.removesuffix("-awp")
    assert config.weights.method == ("awp" if method.endswith("-awp") else "none")
    highest, peak = (0.05, 0.4) if data == "svhn" else (0.2, 0.5)
    rate = schedule(config.schedule.name, highest, 30, 100, peak=config.schedule.peak)
    assert config.optimizer.learning_rate == highest
    assert float(rate(int(peak * 3000) - 1)) == pytest.approx(highest)
    assert config.attack.warmup_epochs == (5 if data == "svhn" else 0)


@pytest.mark.parametrize("method", ["free", "free-awp"])
def test_the_recipe_of_free_adversarial_training(method):
    config = get("fast", f"cifar10,{method}")
    assert (config.epochs, config.batch_size, config.attack.replays) == (11, 128, 8)
    assert (config.attack.name, config.optimizer.learning_rate) == ("free", 0.04)
    assert config.weights.method == ("awp" if method.endswith("-awp") else "none")


@pytest.mark.parametrize("model", ["resnet-50", "convnext-t", "convnext-t-convstem"])
def test_the_recipes_for_imagenet(model):
    config = get("imagenet", f"{model},at-awp")
    names = {"resnet-50": "imagenet-resnet-50"}
    assert config.model.name == names.get(model, model)
    assert (config.data.name, config.attack.epsilon) == ("imagenet", "4/255")
    assert (config.weights.method, config.data.resized_crop) == ("awp", 0.08)
    assert config.attack.steps == (3 if model == "resnet-50" else 2)
    rate = rates(config, 100)
    if model == "resnet-50":
        found = [float(rate(s)) for s in (0, 2999, 5999)]
        assert found == pytest.approx([0.1, 0.01, 0.001])
    else:
        assert (config.optimizer.name, config.optimizer.decay) == ("adamw", "kernels")
        assert config.schedule.warmup_epochs == 10 and not config.model.normalize


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("neurips2020", "cifar10,at", "DATA,NORM,METHOD"),
        ("wang2023", "cifar10,trades", "DATA,NORM,METHOD"),
        ("fast", "n-fgsm", "DATA,METHOD"),
        ("fast", "cifar10,n-fgms", "Did you mean 'n-fgsm'"),
        ("imagenet", "resnet-50", "MODEL,METHOD"),
        ("finetune", "at-awp", "RUN,METHOD"),
        ("finetune", "nowhere,at-awp", "nowhere holds no config.json"),
        ("neurips2020", "cifar11,linf,at", "Did you mean 'cifar10'"),
        ("neurips2020", "cifar10,linf,at-apw", "Did you mean 'at-awp'"),
        ("arxiv_v1", "mnist", "DATA,METHOD"),
        ("quickstart", "awp", "Unknown method"),
    ],
)
def test_unknown_cells_are_one_sentence(name, argument, message):
    with pytest.raises(ValueError, match=message):
        get(name, argument)


def test_what_never_begins_is_told():
    config = schema.default()
    config.epochs, config.weights.start_epoch = 2, 2
    with pytest.warns(UserWarning, match="weights.start_epoch is 2, but the run has 2 epochs"):
        schema.validate(config)
    assert method_name(config) == "AT"
    config.weights.start_epoch = 1
    assert method_name(config) == "AT-AWP"
    config.averaging.update(name="ema", start_epoch=10)
    with pytest.warns(UserWarning, match="averaging.start_epoch is 10.*nothing is averaged"):
        schema.validate(config)


def test_float16_without_a_loss_scale_is_told():
    config = schema.default()
    config.model.dtype = "float16"
    with pytest.warns(UserWarning, match="without a loss scale"):
        schema.validate(config)
    config.optimizer.loss_scale = "1024"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schema.validate(config)
