"""One's own parts in a config: the library's numbers, found again, and what goes wrong."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from awp_jax import cli, config, models, objectives, runs
from awp_jax.attacks import FGSM
from awp_jax.parts import PartError
from awp_jax.training import CheckpointError
from awp_jax.training._configured import training_attack

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # as PYTHONPATH would
import own_parts  # noqa: E402


def small(**changes):
    chosen = config.default()
    chosen.update_from_flattened_dict(
        {
            "data.name": "digits",
            "data.train_examples": 64,
            "data.validation_examples": 20,
            "data.test_examples": 40,
            "data.crop_padding": 0,
            "data.flip": False,
            "model.name": "mlp",
            "model.width": 16,
            "model.mean": (0.3,),
            "model.std": (0.4,),
            "epochs": 2,
            "batch_size": 32,
            "attack.epsilon": "0.15",
            "attack.step_size": "0.05",
            "attack.steps": 2,
            "evaluation.steps": 2,
            "evaluation.train_examples": 0,
            **changes,
        }
    )
    return chosen


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("library")
    return runs.train(small(), workdir, progress=None).model("last")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("data.name", "own_parts:whole_digits"),
        ("model.name", "own_parts:mlp"),
        ("objective.name", "own_parts:at"),
        ("objective.name", "awp_jax.objectives:at"),
        ("weights.method", "own_parts:ascended"),
        ("optimizer.name", "optax:sgd"),
    ],
)
def test_the_library_s_own_parts_by_reference_give_its_numbers(library, key, name, tmp_path):
    run = runs.train(small(**{key: name}), tmp_path, progress=None)
    assert run.config[key] == name
    equal(run.model("last").params, library.params)


def test_an_attack_of_one_s_own_is_what_training_sees(tmp_path):
    # One step of the length of the radius from the image: what PGD without a random start does.
    pgd = small(**{"attack.steps": 1, "attack.step_size": "0.15", "attack.start": "none"})
    expected = runs.train(pgd, tmp_path / "pgd", progress=None).model("last")
    own = small(**{"attack.name": "own_parts:one_step", "attack.step_size": "0.15"})
    found = runs.train(own, tmp_path / "own", progress=None).model("last")
    for a, b in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    made = small(**{"attack.name": "awp_jax.attacks:APGD", "epochs": 1})
    runs.train(made, tmp_path / "apgd", progress=None)
    attack = training_attack(made).own  # a class is made with the config's ball and steps
    assert (float(attack.ball.radius), attack.steps) == (pytest.approx(0.15), 2)


# Of each network one process is killed in its second epoch; another resumes it, and trains a run
# undisturbed. Each is a fork of one that has imported everything and has not touched a device.
SCRIPT = """
import os, signal, sys
import jax, sklearn.datasets, own_parts
from awp_jax import config, runs
from awp_jax.training import digest
jax.config.update("jax_compilation_cache_dir", os.environ["AWP_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
def told(moment):
    if moment.done > 0.4:
        os.kill(os.getpid(), signal.SIGKILL)
def killed(workdir):
    runs.train(config.from_yaml(open(workdir + ".yaml").read(), "config"), workdir, progress=told)
def resumed(workdir):  # the directory alone: its config names the network
    resumed = runs.train(runs.open(workdir, dtype=None).config, workdir, progress="text")
    whole = runs.train(resumed.config, workdir + "-whole", progress=None)
    print([int(digest(run.restore("last")[0])) for run in (resumed, whole)], flush=True)
for workdir in sys.argv[1:]:
    for work, status in ((killed, -signal.SIGKILL), (resumed, 0)):
        process = os.fork()
        if not process:
            work(workdir)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == status
"""
NETWORKS = ("own_parts:linen_net", "own_parts:Net")


@pytest.fixture(scope="module")
def resumed_networks(tmp_path_factory):
    """For each network its run, and the digests of the resumed one and of the undisturbed one."""
    folder = tmp_path_factory.mktemp("networks")
    workdirs = [folder / name.replace(":", "-") for name in NETWORKS]
    for name, workdir in zip(NETWORKS, workdirs, strict=True):
        chosen = small(**{"model.name": name, "model.width": None, "data.name": "own_parts:digits"})
        chosen.epochs, chosen.data.train_examples, chosen.data.test_examples = 3, None, None
        workdir.with_name(f"{workdir.name}.yaml").write_text(config.to_yaml(chosen))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, workdirs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Resuming at step 2 of 6.") == 2, done.stderr
    digests = [ast.literal_eval(line) for line in done.stdout.splitlines()[-2:]]
    return dict(zip(NETWORKS, zip(workdirs, digests, strict=True), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_one_s_own_is_killed_resumed_evaluated_and_drawn(
    name, resumed_networks, capsys
):
    workdir, (resumed, whole) = resumed_networks[name]
    assert resumed == whole
    run = runs.open(workdir)
    found = run.evaluate(attacks=["fgsm"], sets=["test"], progress=None)
    assert 0 <= found.accuracy("fgsm", "last") <= found.accuracy("clean", "last") <= 1
    surface = run.landscape(points=3, draws=1, examples=20, steps=1, progress=None)
    assert (workdir / "landscape.json").is_file() and surface is not None
    assert cli.main(["train", f"--workdir={workdir}"]) in (None, 0)
    assert "finished at step 6" in capsys.readouterr().out


def test_an_nnx_network_draws_by_the_seed_and_comes_back_as_itself(tmp_path):
    first = runs.train(
        small(**{"model.name": "own_parts:Net", "model.width": None, "epochs": 1}),
        tmp_path / "0",
        progress=None,
    )
    model = first.model("last")
    assert isinstance(model.as_nnx(), own_parts.Net)
    starts = [
        first.experiment.classifier.init(jax.random.key(seed))[0]["dense"]["kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    images = jnp.asarray(first.data("test", 8).images)
    network = nnx.view(model.as_nnx(), use_running_average=True, deterministic=True)
    np.testing.assert_allclose(
        network((images - 0.3) / 0.4), model.logits_fn(images), rtol=1e-5, atol=1e-6
    )


def _nets(cls):
    """A network of the adaptor, and the arrays it starts from."""
    net = models.from_nnx(
        lambda rngs: cls((8, 8, 1), 10, rngs=rngs), image_shape=(8, 8, 1), num_classes=10
    )
    return net, net.init(jax.random.key(0))


def test_the_modes_of_an_nnx_module_are_those_of_flax():
    net, (params, stats) = _nets(own_parts.Net)
    images = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
    key = jax.random.key(2)

    def by_hand(learns, dropout):
        module = nnx.view(
            net.nnx_fn(params, stats), use_running_average=not learns, deterministic=not dropout
        )
        return module(images), nnx.state(module, nnx.BatchStat)["norm"]["mean"][...]

    running, same = net.apply(params, stats, images, mode="running")
    np.testing.assert_allclose(running, by_hand(False, False)[0], rtol=1e-6)
    equal(same, stats)
    batch, same = net.apply(params, stats, images, mode="batch")
    np.testing.assert_allclose(batch, by_hand(True, False)[0], rtol=1e-6)
    equal(same, stats)
    dropped, moved = net.apply(params, stats, images, mode="update", key=key)
    np.testing.assert_allclose(moved["norm"]["mean"], by_hand(True, False)[1], rtol=1e-6)
    assert not np.allclose(dropped, batch)
    again, _ = net.apply(params, stats, images, mode="update", key=key)
    np.testing.assert_array_equal(dropped, again)  # by the key alone
    other, _ = net.apply(params, stats, images, mode="update", key=jax.random.key(3))
    assert not np.allclose(dropped, other)
    with pytest.raises(ValueError, match="needs a key"):
        net.apply(params, stats, images, mode="update")


def test_what_an_nnx_module_may_not_hold():
    class Counts(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(64, 10, rngs=rngs)
            self.count = nnx.Cache(jnp.zeros(()))

        def __call__(self, images):
            return self.dense(images.reshape(len(images), -1))

    with pytest.raises(ValueError, match="Counts holds a Cache, but a classifier carries"):
        models.from_nnx(Counts, image_shape=(8, 8, 1), num_classes=10)


def test_a_config_may_be_a_dict_and_stays_as_it_was(library, tmp_path):
    given = small().to_dict()
    del given["logging"]  # what is left out has its default
    kept = json.loads(json.dumps(given))
    run = runs.train(given, tmp_path, objective=own_parts.at, progress=None)
    assert run.config.objective.name == "own_parts:at" and json.loads(json.dumps(given)) == kept
    equal(run.model("last").params, library.params)


def test_objects_are_named_where_they_can_be_imported(tmp_path):
    run = runs.train(
        small(**{"model.width": None, "epochs": 1}),
        tmp_path / "named",
        model=own_parts.linen_net,
        data=own_parts.digits,
        progress=None,
    )
    assert (run.config.model.name, run.config.data.name) == (
        "own_parts:linen_net",
        "own_parts:digits",
    )
    assert len(runs.open(run.workdir).data("test")) == 40
    given = own_parts.digits(0)
    run = runs.train(
        small(**{"epochs": 1, "data.test_examples": None, "data.train_examples": None}),
        tmp_path / "given",
        data=given,
        progress=None,
    )
    with pytest.raises(ValueError, match=r"data.name is '<given>:Splits'.*data=\.\.\. of"):
        runs.open(run.workdir).data("test")
    assert len(runs.open(run.workdir, data=given).data("test")) == 40
    with pytest.raises(ValueError, match="modle"):
        runs.train(small(), tmp_path / "none", modle=own_parts.mlp)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("key", "name", "sentence"),
    [
        ("model.name", "no_such_module:net", "there is no module 'no_such_module'"),
        ("model.name", "own_parts:nett", "module 'own_parts' has no 'nett'"),
        ("model.name", "own_parts:lineen_net", "did you mean 'linen_net'"),
        ("model.name", "own_parts:", "'package.module:function' was expected"),
        ("model.name", "own_parts:answer", "gave a int, but an awp_jax.models.Classifier"),
        ("model.name", "own_parts:linen_net", "takes no 'width', but the config sets it to 16"),
        ("model.name", "own_parts:of_another_shape", "in 11 classes, but the data has images"),
        ("model.name", "own_parts:three", "gave a int, but an awp_jax.models.Classifier"),
        ("data.name", "own_parts:three", "gave a int, but awp_jax.data.Splits were expected"),
        ("objective.name", "own_parts:three", "gave a int, but an awp_jax.objectives.Objective"),
        ("objective.name", "own_parts:answer", "is a int, but a function was expected"),
        ("optimizer.name", "own_parts:three", "gave a int, but an optax optimiser was expected"),
        ("attack.name", "own_parts:answer", "own is 42, but an attack was expected"),
        ("weights.method", "own_parts:answer", "is a int, but a function was expected"),
        ("model.name", "own_parts:Needs", "called with (image_shape, num_classes), but (number"),
        ("optimizer.name", "own_parts:summed_updates", "The update of optimizer.name 'own_parts:"),
        ("optimizer.name", "own_parts:answer", "is a int, but a function was expected"),
        ("data.name", "own_parts:one_set_of_other_images", "gave sets of different images"),
        ("attack.name", "fgsm", "Unknown attack.name 'fgsm'; known: pgd"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_before_anything_is_written(
    key, name, sentence, tmp_path
):
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        runs.train(small(**{key: name}), tmp_path / "run", progress=None)
    assert len(str(caught.value).splitlines()) == 1 and "0x" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mean_loss", r"The loss of objective 'mean' is float32\[\], but one float for each of 32"),
        ("mean_attack_loss", r"attack_loss of objective 'mean attack' is float32\[\]"),
    ],
)
def test_a_loss_that_is_no_list_of_losses_is_refused(name, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        runs.train(small(**{"objective.name": f"own_parts:{name}"}), tmp_path, progress=None)
    with pytest.raises(ValueError, match=r"inputs of objective 'x' are \('advers',\)"):
        objectives.Objective("x", ("advers",), None, None)


def test_an_optimiser_is_given_as_a_function_of_the_rate(tmp_path):
    with pytest.raises(ValueError, match="is an optimiser already: give a function of the learn"):
        runs.train(small(), tmp_path / "run", optimizer=optax.adam(1e-3), progress=None)
    assert not (tmp_path / "run").exists()


def test_a_changed_network_is_not_called_damaged(tmp_path):
    run = runs.train(
        small(**{"model.width": None, "epochs": 1}),
        tmp_path,
        model=lambda shape, classes: own_parts.mlp(shape, classes, 16),
        progress=None,
    )
    assert run.model("last").info["step"] == 2
    other = runs.open(tmp_path, model=lambda shape, classes: own_parts.mlp(shape, classes, 12))
    with pytest.raises(CheckpointError, match="is of another network: params.*16.*there and .*12"):
        other.model("last")


def test_attacks_in_an_evaluation_may_return_images_alone(tmp_path):
    run = runs.train(small(**{"epochs": 1}), tmp_path, progress=None)
    common = {"checkpoints": ["last"], "sets": ["test"], "progress": None}
    found = run.evaluate(attacks={"mine": own_parts.one_step}, **common)
    fgsm = run.evaluate(attacks={"fgsm": FGSM("0.15")}, **common)
    assert found.accuracy("mine", "last") == fgsm.accuracy("fgsm", "last")
    with pytest.raises(ValueError, match="cut returned shape .*, but images like the clean ones"):

        def cut(logits_fn, key, images, labels):
            return images[:3]

        run.evaluate(attacks=[cut], **common)
    with pytest.raises(ValueError, match="attacks is 'fgsm', but a list of names"):
        run.evaluate(attacks="fgsm", **common)
    for wrong in (("fgsm", "best"), ("fgsn", "last"), ("fgsm", "last", "train")):
        with pytest.raises(ValueError, match="Unknown measured"):
            fgsm.accuracy(*wrong)


def test_a_module_that_fails_says_how(tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text("import json\njson.nothing()\n")
    (tmp_path / "needs_parts.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)  # modules lie beside the user
    with pytest.raises(PartError, match="importing 'broken_parts' failed: AttributeError"):
        runs.train(small(**{"model.name": "broken_parts:net"}), tmp_path / "run")
    with pytest.raises(PartError, match="importing 'needs_parts' failed: No module named 'no_such"):
        runs.train(small(**{"model.name": "needs_parts:net"}), tmp_path / "run")
    assert str(tmp_path) not in sys.path


def test_padding_is_left_out_where_batch_norm_takes_no_mask(tmp_path):
    # 64 examples in batches of 40: the last one of an epoch is smaller.
    chosen = small(**{"model.name": "own_parts:Net", "model.width": None, "batch_size": 40})
    run = runs.train(chosen, tmp_path, progress=None)
    assert not run.experiment.padded and run.metrics()["step"].max() == 4
