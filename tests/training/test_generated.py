"""Training with generated images: from files as from memory, resumed, cut off, in little memory."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from awp_jax import data, parallel, runs, training

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits():
    """Digits as bytes: a training set of 80, and 100 more, as a generator would give them."""
    found = data.load("digits", train_examples=180, test_examples=48)

    def part(dataset, rows):
        images = np.round(dataset.images[rows] * 255).astype(np.uint8)
        return data.Dataset(images, dataset.labels[rows], 10, dataset.name)

    train = found.train
    splits = data.Splits(part(train, slice(80)), None, part(found.test, slice(None)))
    return splits, part(train, slice(80, None))


@pytest.fixture
def configured(digits, tiny_config, tmp_path):
    """A function that makes a config with extra images in two files."""

    def configure(save=np.savez, megabytes=0, **changes):
        extra = digits[1]
        for name, rows in (("a", slice(30)), ("b", slice(30, None))):
            path = tmp_path / f"{name}-{save.__name__}.npz"
            if not path.exists():
                save(path, image=extra.images[rows], label=extra.labels[rows].astype(np.int64))
        config = tiny_config("linear", width=None)
        names = [str(tmp_path / f"{name}-{save.__name__}.npz") for name in "ab"]
        config.data.update(extra=", ".join(names), original_fraction=0.25, extra_weight=0.5)
        config.data.update(device_megabytes=megabytes, validation_examples=0)
        config.evaluation.update(selection="test", train_examples=0, every_epochs=9)
        config.objective.label_smoothing = 0.1
        config.epochs = 2
        config.update_from_flattened_dict(changes)
        return config

    return configure


@pytest.fixture
def trained(digits, tmp_path):
    """A function that trains, and returns the leaves of the state at the end."""

    def train(config, name, **options):
        options = {"splits": digits[0], "progress": None} | options
        return jax.tree.leaves(training.train(config, tmp_path / name, **options).state)

    return train


def equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_give_the_numbers_of_memory(configured, trained):
    files = trained(configured(), "files", devices=4)
    # A compressed file is read whole: the same program, other rows.
    equal(files, trained(configured(np.savez_compressed), "memory", devices=4))
    whole = trained(configured(megabytes=2048), "devices", devices=4)
    for a, b in zip(files, whole, strict=True):  # two programs: XLA may round differently
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_stopped_run_goes_on_to_the_same_numbers(configured, trained):
    config = configured()
    whole = trained(config, "whole")
    for stop in (3, 12, None):
        cut = trained(config, "cut", max_steps=stop)
    equal(whole, cut)


def test_a_device_is_handed_its_own_rows(configured, digits, monkeypatch):
    experiment = training.build(configured(), digits[0], devices=4)
    asked, place = [], parallel.place

    def watched(sharding, shape, rows):
        return place(sharding, shape, lambda index: asked.append(rows(index)) or asked[-1])

    monkeypatch.setattr(parallel, "place", watched)
    feed, order = training.Feed(experiment), experiment.order(0)
    feed.begin(range(10), order)
    images, labels = feed(0)
    feed.close()
    assert {len(part) for part in asked} == {8}
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    rows = np.asarray(experiment.chosen(0, order))
    pool = experiment.pool.in_memory()
    np.testing.assert_array_equal(images, pool.images[rows])
    np.testing.assert_array_equal(labels, pool.labels[rows])


@pytest.mark.parametrize(("batch_size", "fraction"), [(40, 0.2), (20, 0.3), (10, 0.5)])
def test_a_batch_is_mixed_by_the_fraction(configured, digits, batch_size, fraction):
    """As the samplers released by Carmon et al. and Wang et al. count: int(batch * extra share)."""
    changes = {"batch_size": batch_size, "data.original_fraction": fraction}
    experiment = training.build(configured(**changes), digits[0], devices=1)
    original = batch_size - int(batch_size * (1 - fraction))
    assert experiment.steps_per_epoch == -(-80 // original)
    order = experiment.order(0)
    steps = range(experiment.steps_per_epoch)
    chosen = np.array([experiment.chosen(step, order) for step in steps])
    assert chosen.shape == (len(steps), batch_size)
    assert ((chosen < 80).sum(axis=1)[:-1] == original).all()
    assert sorted(chosen[chosen < 80]) == list(range(80))  # each once an epoch
    extra = chosen[chosen >= 80]
    assert 80 <= extra.min() and extra.max() < 180 and len(set(extra)) > min(len(extra), 100) / 3


def test_a_file_that_is_cut_off_costs_no_step_that_was_saved(configured, trained, tmp_path):
    config = configured(**{"checkpoint.every_steps": 1})
    whole = trained(config, "whole")
    path = tmp_path / "b-savez.npz"
    good, calls = path.read_bytes(), []

    def cut_off():
        calls.append(1)
        if len(calls) == 4:
            os.truncate(path, 1000)
        return False

    with pytest.raises(data.DataError, match="b-savez.npz was cut off while it was in use"):
        trained(config, "cut", should_stop=cut_off)
    with pytest.raises(data.DataError, match="b-savez.npz is cut off or damaged"):
        trained(config, "cut")
    path.write_bytes(good)
    equal(whole, trained(config, "cut"))


def test_a_file_of_other_images_is_one_sentence_before_anything_is_written(
    configured, trained, tmp_path
):
    config = configured()
    np.savez(tmp_path / "large.npz", image=np.zeros((3, 9, 8, 1), np.uint8), label=np.arange(3))
    config.data.extra = str(tmp_path / "large.npz")
    with pytest.raises(data.DataError, match=r"large.npz are \(9, 8, 1\), but those of") as error:
        trained(config, "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="no peak of a process's memory here"
)
def test_five_gigabytes_of_images_take_less_than_one_of_memory(tmp_path):
    script = pathlib.Path(__file__).with_name("sparse_images.py")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ["AWP_JAX_TEST_CACHE"],
    }
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"] > 5e9 and found["peak"] < 1e9, found
    assert found["peak"] - found["before"] < 5e8, found  # what compiling takes
    assert found["steps"] == 32 and np.isfinite(found["loss"]) and found["last"] == 255


def test_paths_become_absolute_and_memory_counts_what_lies_on_the_device(
    configured, digits, monkeypatch
):
    config = configured()
    config.data.update(extra="a.npz, ~/b.npz", extra_labels="labels.npy")
    monkeypatch.setenv("HOME", "/home/someone")
    found = training.absolute_paths(config).data
    here = pathlib.Path.cwd()
    assert found.extra == f"{here / 'a.npz'},/home/someone/b.npz"
    assert found.extra_labels == str(here / "labels.npy")
    batch = configured().batch_size
    for megabytes, name, expected in (
        (0, "two batches from the host", 2 * batch * 64),
        (2048, "training set on the device", 180 * (64 + 1)),
    ):
        experiment = training.build(configured(megabytes=megabytes), digits[0])
        assert runs.describe(experiment).memory[name] == expected
