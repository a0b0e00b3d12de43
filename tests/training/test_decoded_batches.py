"""Training on image files that are decoded as they are needed: the same batches whoever decodes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tracemalloc

import jax
import numpy as np
import pytest
from image_files import files_of, write_folders, write_records, write_shards
from small_run import image_config, tiny_config

from awp_jax import runs
from awp_jax.data import DataError, Decoding, load, random_box
from awp_jax.extras import MissingExtraError
from awp_jax.training import Feed, build, read_metrics, train

SEED = image_config("").seed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("imagenet") / "folders")


def batches(experiment):
    """Images and labels of every step of a run, as the feed hands them over."""
    feed, found = Feed(experiment), []
    try:
        for epoch in range(experiment.config.epochs):
            first = epoch * experiment.steps_per_epoch
            steps = range(first, first + experiment.steps_per_epoch)
            feed.begin(steps, experiment.order(epoch))
            found += [jax.device_get(feed(step)) for step in steps]
    finally:
        feed.close()
    return found


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_is_what_the_files_say(folders):
    """From the file names, the permutations and Pillow alone."""
    from PIL import Image

    experiment = build(image_config(folders))
    files = list(files_of(folders, "train"))
    kept = np.sort(np.random.RandomState(SEED).permutation(len(files))[4:])
    found = batches(experiment)
    assert [len(labels) for _, labels in found] == [6, 6, 6] * 2  # the last filled up
    for epoch in range(2):
        order = np.asarray(experiment.order(epoch))
        assert sorted(order) == list(range(17))
        step = 3 * epoch + 1
        images, labels = found[step]
        for place, row in enumerate(order[6:12]):
            path, label = files[kept[row]]
            image = Image.open(path).convert("RGB")
            draws = np.random.Generator(np.random.PCG64([SEED, step, row]))
            part = image.crop(random_box(draws, *image.size, 0.08))
            expected = np.asarray(part.resize((12, 12), Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(images[place], expected)
            assert labels[place] == label


@pytest.mark.parametrize("write", [write_shards, write_records])
def test_shards_workers_and_devices_give_the_same_batches(folders, tmp_path, write):
    pytest.importorskip("grain")
    expected = batches(build(image_config(folders)))
    path = write(folders, tmp_path / "shards")
    equal(expected, batches(build(image_config(path, workers=2))))
    equal(expected, batches(build(image_config(path), devices=3)))


def test_a_run_that_is_stopped_goes_on_bit_by_bit_and_with_other_workers(folders, tmp_path):
    pytest.importorskip("grain")
    whole = train(image_config(folders), tmp_path / "whole", progress=None)
    config = image_config(folders)
    config.checkpoint.every_steps = 1
    train(config, tmp_path / "cut", max_steps=2, progress=None)
    rest = train(config, tmp_path / "cut", progress=None)
    assert rest.finished
    equal(whole.state, rest.state)
    worked = train(image_config(folders, workers=2), tmp_path / "workers", progress=None)
    equal(whole.state, worked.state)


def test_two_processes_train_as_one_and_each_decodes_its_own(folders, tmp_path):
    script = pathlib.Path(__file__).with_name("processes.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "images", str(folders)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["statuses"] == [0, 0], done.stderr
    alone = train(image_config(folders), tmp_path / "alone", devices=2, progress=None)
    equal(alone.state, runs.open(tmp_path / "run", devices=2, dtype=None).restore("last")[0])
    decoded = [np.load(tmp_path / f"decoded-{process}.npy") for process in range(2)]
    # 6 steps of 6 images on two devices, and 2 * 17 different ones of which each is decoded once.
    assert [len(found) for found in decoded] == [18, 18]
    epoch = np.concatenate([found[:9] for found in decoded])
    assert sorted(np.unique(epoch)) == list(range(17))


def test_the_processes_of_a_killed_run_end_with_it(folders, tmp_path):
    pytest.importorskip("grain")
    children = pathlib.Path("/proc/self/task")
    if not children.is_dir():
        pytest.skip("needs /proc")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from small_run import image_config\n"
        "from awp_jax.training import Feed, build\n"
        "if __name__ == '__main__':\n"
        "    experiment = build(image_config(sys.argv[1], workers=2))\n"
        "    feed = Feed(experiment)\n"
        "    feed.begin(range(3), experiment.order(0))\n"
        "    feed(0)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, str(program), str(folders)], env=environment, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout.readline() == b"ready\n"
        started = "".join(
            file.read_text() for file in pathlib.Path(f"/proc/{run.pid}/task").glob("*/children")
        ).split()
        assert len(started) >= 2
        run.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{process}/exe").exists() for process in started):
        assert time.monotonic() < end, "a worker goes on without its run"
        time.sleep(0.1)


def test_evaluation_sees_centre_crops(folders, tmp_path):
    train(image_config(folders), tmp_path / "run", progress=None)
    run = runs.open(tmp_path / "run")
    expected = load("images", path=folders, decoding=Decoding(12, 14)).test.images[:]
    np.testing.assert_array_equal(
        run.data("test").images, expected[run.experiment.splits.test.images.numbers]
    )
    found = run.evaluate(attacks=["pgd-1"], sets=["train", "test"], progress=None)
    assert 0 <= found.accuracy("pgd-1") <= found.accuracy("clean") <= 1
    averaged = image_config(folders)
    averaged.averaging.name = "ema"
    train(averaged, tmp_path / "averaged", progress=None)
    (*_, last) = read_metrics(tmp_path / "averaged")
    assert last["average"]["test"]["examples"] == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_stops_the_run_in_one_sentence(folders, tmp_path, capsys, workers):
    import shutil

    if workers:
        pytest.importorskip("grain")
    root = shutil.copytree(folders, tmp_path / "copy")
    config = image_config(root, workers=workers, validation_examples=0)
    config.evaluation.selection = "test"
    config.checkpoint.every_steps = 1
    order = np.asarray(build(config).order(0))
    path, _ = list(files_of(root, "train"))[order[13]]  # of the third step
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=f"{path.name} could not be decoded: image file is trunc"):
        train(config, tmp_path / "run", progress=None)
    path.write_bytes(whole)
    # Nothing is lost: the steps before were saved.
    assert (tmp_path / "run" / "checkpoints" / "last" / "2").is_dir()
    rest = train(config, tmp_path / "run", progress=None)
    equal(train(config, tmp_path / "again", progress=None).state, rest.state)


def test_only_training_needs_grain(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    config = image_config(folders, workers=2)
    assert runs.describe(build(config)).data["train"] == 17
    with pytest.raises(MissingExtraError, match="data.workers 2 needs grain: pip install 'awp_jax"):
        train(config, tmp_path / "run", progress=None)
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_are_one_sentence(folders):
    for match, changes in (
        ("data.resize is 10, but at least data.image_size", {"resize": 10}),
        ("resized_crop and data.crop_padding are both on", {"crop_padding": 2}),
        ("data.resized_crop is 1.0, but a number in", {"resized_crop": 1.0}),
        ("Unknown data.interpolation 'nearest'", {"interpolation": "nearest"}),
        ("data.extra is .* but the images of images stay in their files", {"extra": "npz"}),
    ):
        if "extra" in changes:
            file = folders.parent / "more.npz"
            np.savez(file, image=np.zeros((2, 12, 12, 3), np.uint8), label=np.zeros(2, int))
            changes = {"extra": str(file)}
        with pytest.raises(ValueError, match=match):
            build(image_config(folders, **changes))
    for key, value in (("resized_crop", 0.5), ("workers", 2)):
        config = tiny_config()
        config.data.crop_padding = 0
        config.data[key] = value
        with pytest.raises(ValueError, match=f"data.{key} is {value}, but the images of digits"):
            build(config)


def test_grain_reads_the_examples_too(folders):
    grain = pytest.importorskip("grain")
    train_set = load("images", path=folders, decoding=Decoding(12, 14)).train
    loader = grain.MapDataset.source(train_set).shuffle(seed=1).batch(4)
    seen = np.concatenate([batch["label"] for batch in loader])
    np.testing.assert_array_equal(np.sort(seen), train_set.labels)
    assert loader[0]["image"].shape == (4, 12, 12, 3)


def test_memory_does_not_grow_with_the_set(folders, tmp_path):
    def peak(copies):
        root = tmp_path / str(copies)
        for part in ("train", "val"):
            for path, _ in files_of(folders, part):
                place = root / part / path.parent.name
                place.mkdir(parents=True, exist_ok=True)
                for number in range(copies if part == "train" else 1):
                    os.link(path, place / f"{number}_{path.name}")
        config = image_config(root, image_size=64, resize=72)
        config.epochs = 1
        tracemalloc.start()
        experiment = build(config)
        feed = Feed(experiment)
        feed.begin(range(experiment.steps_per_epoch), experiment.order(0))
        for step in range(experiment.steps_per_epoch):
            feed(step)
        feed.close()
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(1)  # imports and compiles
    few, many = peak(2), peak(20)
    # 378 images more, of 12,288 bytes each when they are decoded.
    assert many - few < 378 * 12_288 / 8
