"""Training on the batches of a user's own iterator."""

import itertools

import jax
import numpy as np
import pytest
from longer import longer
from small_run import tiny_config

from awp_jax import runs
from awp_jax.data import DataError
from awp_jax.training import build, train


def small_config():
    """2 epochs of 3 whole steps over 80 digits."""
    config = tiny_config("linear", width=None)
    config.epochs, config.batch_size = 2, 24
    config.checkpoint.every_steps = 1
    return config


def digits():
    return build(small_config()).splits.train


def endless(dataset, size=24):
    """Batches of the examples in their order, over and over."""
    rows = itertools.cycle(range(len(dataset)))
    while True:
        chosen = list(itertools.islice(rows, size))
        yield {"image": dataset.images[chosen], "label": dataset.labels[chosen]}


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


class Positioned:
    """An iterator that says where it is, and counts what it is asked for."""

    def __init__(self, as_bytes):
        self.batches, self.place, self.asked, self.as_bytes = digits(), 0, 0, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.asked, self.place = self.asked + 1, self.place + 1
        return next(itertools.islice(endless(self.batches), self.place - 1, None))

    def get_state(self):
        return str(self.place).encode() if self.as_bytes else {"next": {"index": self.place}}

    def set_state(self, state):
        self.place = int(state) if self.as_bytes else state["next"]["index"]


def test_the_batches_of_the_training_set_give_the_run_of_the_training_set(tmp_path):
    config = small_config()
    config.data.train_examples = 72  # no smaller last batch
    experiment = build(config)
    data = experiment.splits.train

    def as_ordered():
        for epoch in range(2):
            order = np.asarray(experiment.order(epoch))
            for start in range(0, 72, 24):
                chosen = order[start : start + 24]
                yield {"image": data.images[chosen], "label": data.labels[chosen]}

    ordinary = train(config, tmp_path / "ordinary", progress=None)
    own = train(config, tmp_path / "own", batches=as_ordered(), progress=None)
    equal(ordinary.state, own.state)


@pytest.mark.parametrize("stop", [4, *longer(1, 3)])
def test_a_run_on_them_goes_on_bit_by_bit(tmp_path, stop):
    whole = train(small_config(), tmp_path / "whole", batches=endless(digits()), progress=None)
    assert whole.finished and int(whole.state.step) == 6
    for name, make in (
        ("skipped", lambda: endless(digits())),
        ("dict", lambda: Positioned(as_bytes=False)),
        ("bytes", lambda: Positioned(as_bytes=True)),
    ):
        workdir = tmp_path / name
        train(small_config(), workdir, max_steps=stop, batches=make(), progress=None)
        rest = make()
        equal(whole.state, train(small_config(), workdir, batches=rest, progress=None).state)
        if name != "skipped":
            assert rest.asked == 6 - stop  # none before the position was asked for again


@pytest.mark.parametrize("kind", ["workers", "loader", *longer("dataset")])
def test_loaders_of_grain_drive_a_run(tmp_path, kind):
    grain = pytest.importorskip("grain")
    data = digits()
    examples = [
        {"image": image, "label": label}
        for image, label in zip(data.images, data.labels, strict=True)
    ]

    def make():
        if kind == "loader":
            sampler = grain.samplers.IndexSampler(len(examples), shuffle=True, seed=1)
            batch = grain.transforms.Batch(24, drop_remainder=True)
            return grain.DataLoader(data_source=examples, sampler=sampler, operations=[batch])
        shuffled = grain.MapDataset.source(examples).shuffle(seed=1).repeat()
        found = shuffled.batch(24).to_iter_dataset()
        if kind == "dataset":
            return found
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=1))

    whole = train(small_config(), tmp_path / "whole", batches=make(), progress=None)
    train(small_config(), tmp_path / "cut", max_steps=2, batches=make(), progress=None)
    rest = train(small_config(), tmp_path / "cut", batches=make(), progress=None)
    equal(whole.state, rest.state)


def test_a_run_in_pythons_hands_takes_them(tmp_path):
    run = runs.train(small_config(), tmp_path / "run", batches=endless(digits()), progress=None)
    assert run.evaluate(attacks=["pgd-1"], sets=["test"], progress=None)
    assert run.checkpoint_names(["last"]) == ["last"]


def test_bad_batches_are_one_sentence(tmp_path):
    good = next(endless(digits()))

    def refused(match, batches, error=DataError, **changes):
        config = small_config()
        config.data.update(changes)
        with pytest.raises(error, match=match) as found:
            train(config, tmp_path / "run", batches=batches, progress=None)
        assert "\n" not in str(found.value)

    refused("batches is a int, but an iterator of dicts", 3, ValueError)
    refused("The batch of step 1 is tuple, but a dict of 'image'", [(1, 2)])
    refused(r"step 1 is \['image', 'y'\], but a dict", [{"image": 1, "y": 2}])
    fewer = {name: values[:5] for name, values in good.items()}
    refused(r"step 1 has float32 images of shape \(5, 8, 8, 1\), but float32 of .*24", [fewer])
    refused("step 1 has uint8 images", [good | {"image": good["image"].astype(np.uint8)}])
    refused(r"step 1: float images must lie in \[0, 1\]", [good | {"image": good["image"] + 1}])
    refused("step 1: label 10 is not one of 0..9", [good | {"label": good["label"] * 0 + 10}])
    refused("step 1: 24 images have 3 labels", [good | {"label": good["label"][:3]}])
    refused("The batches ended after 2, but the run has 6 steps", [good, good])
    refused("data.label_noise is 0.5, but batches are given", [good], ValueError, label_noise=0.5)
    # What was trained before is there, on one kind of batches.
    with pytest.raises(ValueError, match="was trained on given batches until step 2, but now none"):
        train(small_config(), tmp_path / "run", progress=None)
    train(small_config(), tmp_path / "ordinary", max_steps=2, progress=None)
    with pytest.raises(ValueError, match="on the training set of its config until step 2, but now"):
        train(small_config(), tmp_path / "ordinary", batches=endless(digits()), progress=None)


def test_a_position_that_cannot_be_kept_is_one_sentence(tmp_path):
    class Odd(Positioned):
        def get_state(self):
            return object()

    with pytest.raises(ValueError, match="get_state.. of the batches gave .* but bytes or plain"):
        train(small_config(), tmp_path / "run", batches=Odd(True), progress=None)
