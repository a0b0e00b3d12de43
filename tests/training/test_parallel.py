"""The same training on one device and on eight, and what is communicated."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_net import TinyNet

from awp_jax import attacks, data, evaluation, landscape, models, objectives, parallel, training

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


AWP = training.WeightPerturbation("awp", 0.02)


def experiment_of(config, devices, groups):
    experiment = training.build(config, devices=devices)
    classifier = models.from_network(
        functools.partial(TinyNet, classes=10),
        name="tiny",
        image_shape=(8, 8, 1),
        num_classes=10,
        batch_norm_groups=groups,
    )
    return dataclasses.replace(experiment, classifier=classifier)


def in_float64(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def trained(config, devices, groups, steps):
    """The state after so many steps, in float64."""
    experiment = experiment_of(config, devices, groups)
    state = in_float64(experiment.init())
    images, labels = experiment.on_devices()
    for step in range(steps):
        arguments = (state, images, labels, experiment.order(step // 3), experiment.key)
        settings = {"batch_size": experiment.rows_of(step), "perturb_weights": True}
        state, _ = experiment.step(*arguments, **settings)
    return jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("groups", [1, 8])
def test_the_number_of_devices_does_not_change_the_result(x64, tiny_config, groups):
    config = tiny_config(gamma="0.02")
    config.data.train_examples = 96  # one batch shape: half the compilations
    one, eight = (trained(config, devices, groups, 20) for devices in (1, 8))
    whole = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(one.params)))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)
    difference = np.sqrt(sum(np.square(np.float64(a) - b).sum() for a, b in pairs))
    assert difference < 1e-9 * whole


def trained_on_stored_images(experiment, images, adversarial, labels):
    """The parameters after a step of AT-AWP on each of the stored batches, in float32."""
    step = training.make_train_step(
        experiment.classifier, objectives.at(), experiment.optimizer, weights=AWP
    )
    state = experiment.init()
    step = jax.jit(step, out_shardings=parallel.replicated(experiment.mesh))
    for batch in zip(images, labels, adversarial, strict=True):
        sharding = parallel.batch_sharding(experiment.mesh, len(batch[0]))
        x, y, attacked = jax.device_put(batch, sharding)
        state, _ = step(state, x, y, experiment.key, adversarial=attacked)
    return [np.float64(leaf) for leaf in jax.tree.leaves(state.params)]


def test_float32_stays_close_on_stored_adversarial_images(tiny_config):
    # Where the attack runs on each, a sign that rounding flips moves a pixel by two steps, and 20
    # steps ended up to 4e-3 apart. From the same images only the rounding of the weights' gradients
    # is left: 1.2e-4 of the way that the weights went was seen.
    config = tiny_config()
    config.data.train_examples = 640
    one, four = (experiment_of(config, devices, groups=1) for devices in (1, 4))
    state, train = one.init(), one.splits.train
    images = np.asarray(data.as_float(train.images)).reshape(20, 32, 8, 8, 1)
    labels = np.asarray(train.labels).reshape(20, 32)
    attack = attacks.PGD("0.1", steps=2)
    logits_fn = one.classifier.logits_fn(state.params, state.batch_stats)
    adversarial = [
        np.asarray(attack(logits_fn, jax.random.key(step), images[step], labels[step]).images)
        for step in range(20)
    ]
    alone = trained_on_stored_images(one, images, adversarial, labels)
    together = trained_on_stored_images(four, images, adversarial, labels)
    start = [np.float64(leaf) for leaf in jax.tree.leaves(state.params)]

    def distance(these, those):
        return np.sqrt(sum(np.square(a - b).sum() for a, b in zip(these, those, strict=True)))

    moved = distance(alone, start)
    assert 0 < distance(alone, together) < 1e-3 * moved


@pytest.mark.parametrize(("groups", "communicates"), [(8, False), (1, True)])
def test_groups_that_lie_on_devices_need_no_communication(tiny_config, groups, communicates):
    experiment = experiment_of(tiny_config(), 8, groups)
    state = experiment.init()

    def input_gradient(params, batch_stats, images):
        def loss(x):
            apply = experiment.classifier.apply
            return apply(params, batch_stats, x, mode="batch")[0].sum()

        return jax.grad(loss)(images)

    images = jax.device_put(jnp.zeros((32, 8, 8, 1)), parallel.batch_sharding(experiment.mesh, 32))
    compiled = jax.jit(input_gradient).lower(state.params, state.batch_stats, images).compile()
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert bool(re.search(rf" (?:{names})(?:-start)?\(", compiled.as_text())) == communicates


def test_a_state_saved_on_eight_devices_goes_on_on_one_and_back(tmp_path, tiny_config):
    config = tiny_config("linear", width=None)
    whole = training.train(config, tmp_path / "whole", devices=1, progress=None)
    for devices, stop in ((8, 4), (1, 7), (8, None)):
        cut = training.train(
            config, tmp_path / "cut", devices=devices, max_steps=stop, progress=None
        )
    assert cut.finished and len(jax.tree.leaves(cut.state)[0].devices()) == 8
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(cut.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_images_that_stay_on_the_host_give_the_same_numbers(tmp_path, tiny_config, monkeypatch):
    looked_up = []
    place = parallel.place

    def watched(sharding, shape, rows):
        return place(sharding, shape, lambda index: looked_up.append(rows(index)) or looked_up[-1])

    monkeypatch.setattr(parallel, "place", watched)
    ends = []
    for megabytes, stop in ((2048, None), (0, 2), (0, None)):
        config = tiny_config("linear", width=None)
        config.epochs, config.evaluation.train_examples = 1, 0
        config.data.device_megabytes = megabytes
        workdir = tmp_path / str(megabytes)
        ends.append(training.train(config, workdir, devices=4, max_steps=stop, progress=None))
        assert bool(looked_up) == (megabytes == 0)
    # Each device is handed its part: of 32 rows 8, also of the last batch, which is filled up.
    assert {len(part) for part in looked_up} == {8}
    whole, _, host = (jax.tree.leaves(end.state) for end in ends)
    for a, b in zip(whole, host, strict=True):  # two programs: XLA may round differently
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_extra_images_on_the_host_are_drawn_as_on_the_devices(tmp_path, tiny_config):
    pool = data.load("digits", train_examples=80, test_examples=48).train
    np.savez(tmp_path / "unlabelled.npz", images=pool.images[:48], labels=pool.labels[:48])
    batches = []
    for megabytes in (2048, 0):
        config = tiny_config()
        config.data.update(extra=str(tmp_path / "unlabelled.npz"), device_megabytes=megabytes)
        experiment = training.build(config, devices=4)
        _, gather = experiment._batch_functions
        gather = jax.jit(gather, static_argnames="batch_size")
        feed, order = training.Feed(experiment), experiment.order(0)
        feed.begin(range(5), order)
        for step in (0, 4):
            size = experiment.batch_size_of(step)
            batches.append(
                gather(jnp.int32(step), *feed(step), order, experiment.key, batch_size=size)
            )
        feed.close()
    for one, other in zip(batches[:2], batches[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def measured(config, devices):
    """Evaluation, a cascade, a curve and flatness of an untrained state, as plain arrays."""
    experiment = training.build(config, devices=devices)
    state, test = experiment.init(), experiment.splits.test
    images, labels, key = test.images[:45], test.labels[:45], jax.random.key(0)
    logits_fn = experiment.classifier.logits_fn(state.params, state.batch_stats)
    apply_fn = experiment.classifier.apply_fn(state.batch_stats)
    attack, seen = attacks.PGD("0.1", steps=2), []

    def watched(apply_fn, *arguments):
        jax.debug.inspect_array_sharding(arguments[-1], callback=seen.append)
        return apply_fn(*arguments)

    function = jax.tree_util.Partial(watched, logits_fn)
    measure = evaluation.measure(function, images, labels, attack, key=key, batch_size=24)
    plan = {"pgd-2": attack, "cascade": [("apgd-ce", attacks.APGD("0.1", steps=3))]}
    found = evaluation.evaluate(
        function, key, images, labels, plan, epsilon="0.1", batch_size=24
    ).outcomes
    function = jax.tree_util.Partial(watched, apply_fn)
    ways = landscape.directions(key, state.params)
    common = {"attack": attack, "batch_size": 21}
    curve = landscape.surface(
        function, state.params, ways, images, labels, axes=[landscape.axis(3)], key=key, **common
    )
    given = (function, state.params, images, labels, key)
    reference = landscape.robust_loss(*given, restarts=1, **common)
    average = landscape.average_flatness(*given, draws=1, reference=reference, **common)
    worst = landscape.worst_case_flatness(
        *given, steps=2, restarts=1, xi=0.1, weight_step=0.05, reference=reference, **common
    )
    assert {sharding.num_devices for sharding in seen} == {devices}
    split = [not sharding.is_fully_replicated for sharding in seen]
    assert all(split) if devices > 1 else not any(split)  # no batch is computed by all
    return {
        "measure": [measure.accuracy, measure.loss],
        "pgd images": found["pgd-2"].images,
        "pgd losses": found["pgd-2"].loss,
        "cascade": found["cascade"].success,
        "curve": curve.loss,
        "reference": reference.losses,
        "average": average.losses,
        "worst": worst.losses,
    }


def test_evaluation_landscapes_and_flatness_are_those_of_one_device(tiny_config):
    one, eight = (measured(tiny_config(), devices) for devices in (1, 8))
    for name, expected in one.items():
        np.testing.assert_allclose(eight[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_batch_that_does_not_divide_is_one_sentence_and_writes_nothing(tmp_path, tiny_config):
    with pytest.raises(ValueError, match="batch_size is 32, which 3 devices cannot share equally"):
        training.train(tiny_config(), tmp_path / "run", devices=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", [0, 9])
def test_more_devices_than_there_are_is_one_sentence(tiny_config, devices):
    with pytest.raises(ValueError, match=f"devices is {devices}, but a number from 1 to 8"):
        training.build(tiny_config(), devices=devices)


def test_asked_to_stop_it_saves_and_goes_on_to_the_same_end(tmp_path, tiny_config):
    config = tiny_config("linear", width=None)
    whole = training.train(config, tmp_path / "whole", devices=1, progress=None)
    asked = iter([False, True])
    cut = training.train(
        config, tmp_path / "cut", devices=1, progress=None, should_stop=lambda: next(asked)
    )
    assert cut.preempted and not cut.finished and int(cut.state.step) == 2
    rest = training.train(config, tmp_path / "cut", devices=1, progress=None)
    assert rest.finished and not rest.preempted
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(rest.state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "host:1"}, "--process-id is missing"),
        ({"process_id": 0, "num_processes": 2}, "--coordinator is missing"),
        (
            {"coordinator": "host:1", "process_id": 2, "num_processes": 2},
            "process-id is 2, but a number from 0 to 1",
        ),
        (
            {"coordinator": "host", "process_id": 0, "num_processes": 2},
            "coordinator is 'host', but host:port",
        ),
    ],
)
def test_half_an_address_is_one_sentence(arguments, message):
    with pytest.raises(parallel.DistributedError, match=message):
        parallel.initialize(**arguments)


def test_without_a_launcher_nothing_is_joined(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("joined"))
    parallel.initialize()
    parallel.initialize("false")


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_STEP_NUM_TASKS", "4"), ("TPU_WORKER_HOSTNAMES", "a,b"), ("OMPI_COMM_WORLD_SIZE", "2")],
)
def test_under_a_launcher_the_processes_join_and_failures_are_not_swallowed(
    monkeypatch, name, value
):
    monkeypatch.setenv(name, value)

    def fails(*args, **kwargs):
        raise RuntimeError("nobody answered\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(parallel.DistributedError, match="RuntimeError: nobody answered"):
        parallel.initialize()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        # One process for all GPUs of each of two machines; JAX alone would take the first GPU.
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, []),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        # A process per GPU, shown alone; JAX would look for one with the number of the process.
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "3"},
            [],
        ),
        # A process per GPU, all shown to all: JAX deals them out.
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, None),
    ],
)
def test_which_gpus_of_a_machine_a_process_takes(monkeypatch, environment, expected):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = []

    def joined(coordinator, count, number, local_devices, **options):
        given.append(local_devices)
        raise RuntimeError("enough")

    monkeypatch.setattr(jax.distributed, "initialize", joined)
    with pytest.raises(parallel.DistributedError, match="enough"):
        parallel.initialize()
    with pytest.raises(parallel.DistributedError, match="enough"):  # by hand: what is shown
        parallel.initialize(coordinator="host:1", process_id=0, num_processes=2)
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "1")
    with pytest.raises(parallel.DistributedError, match="enough"):
        parallel.initialize()
    assert given == [expected, [], None]


KILLS = int(os.environ.get("AWP_JAX_KILLS", "10"))  # make test-all: 25


def test_killed_again_and_again_or_out_of_disk_a_run_ends_like_one_left_alone(tmp_path):
    script = pathlib.Path(__file__).with_name("crash_loop.py")
    command = [sys.executable, str(script), str(tmp_path), str(KILLS), "0"]
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if may_mount(tmp_path):
        command, settings["AWP_JAX_NAMESPACE"] = ["unshare", "-rm", *command], "1"
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == KILLS and max(found["steps"]) > 0
    assert set(found["resumed"]) == {found["undisturbed"]}
    full = found["full"]
    assert re.fullmatch(
        r"StorageError: .*(No space left on device|File too large)\).*\.\n", full["said"]
    )
    assert full["status"] == 1 and full["kept"] >= 2 and not full["torn"]
    assert full["resumed"] == found["undisturbed"]


def may_mount(folder):
    """Whether a file system may be mounted in a namespace of its own."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return shutil.which("unshare") and not subprocess.run(mount, capture_output=True).returncode
