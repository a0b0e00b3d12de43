"""Figures and tables of landscapes from plain values and arrays."""

import json

import numpy as np
import pytest

from awp_jax.evaluation import write_arrays
from awp_jax.reporting import (
    Measured,
    landscape_comparison,
    landscape_figure,
    landscape_table,
    landscape_training_figure,
    learning_curves,
    read_landscape,
    robust_accuracies,
)
from awp_jax.reporting._landscape_data import settings_line

AXIS = np.array([-1.0, 0.0, 1.0])


def settings(dims=1):
    return {
        "dims": dims,
        "directions": "random",
        "normalisation": "filter",
        "set": "train",
        "adversarial": "both",
        "examples": 20,
        "norm": "linf",
        "epsilon": "8/255",
        "steps": 10,
        "step_size": "2/255",
        "restarts": 1,
        "draws": 2,
        "seed": 5,
    }


def write(folder, losses, dims=1, name="landscape"):
    """A run directory with the given losses ``{checkpoint: {how: [draws, ...]}}``."""
    checkpoints, arrays = {}, {"axis": AXIS}
    for step, (which, hows) in enumerate(losses.items(), start=1):
        measured = checkpoints[which] = {"step": 6 * step, "epoch": step, "seconds": 1.0}
        for how, loss in hows.items():
            loss = np.asarray(loss, float)
            arrays[f"{which}/{how}/loss"] = loss
            arrays[f"{which}/{how}/accuracy"] = np.full_like(loss, 0.5)
            summary = {"centre_loss": 1.0, "centre_accuracy": 0.5}
            for kind in ("mean_change", "edge_change"):
                summary |= {kind: 0.25, f"{kind}_spread": 0.125}
            measured[how] = summary
    result = {"settings": settings(dims), "selection": "validation", "checkpoints": checkpoints}
    result |= {"data": "digits", "model": "mlp", "device": "cpu"}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result))
    write_arrays(folder / f"{name}.npz", arrays)
    return read_landscape(folder, name)


def evaluation(epoch, train, test):
    parts = {"train": train, "validation": test, "test": test}
    record = {"kind": "evaluation", "epoch": epoch, "step": 6 * epoch}
    return record | {
        part: {"clean_accuracy": 0.9, "robust_accuracy": value} for part, value in parts.items()
    }


@pytest.fixture
def two(tmp_path):
    return write(
        tmp_path / "at",
        {
            "epoch-1": {"anew": [[2, 1, 3], [4, 1, 5]], "centre": [[2, 1, 2], [2, 1, 2]]},
            "epoch-2": {"anew": [[6, 1, 6], [6, 1, 6]], "centre": [[3, 1, 3], [3, 1, 3]]},
        },
    )


def data_of(panel):
    return {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}


def test_a_panel_per_checkpoint_with_draws_and_mean(two):
    figure = landscape_figure(two)
    first, second = (panel for panel in figure.axes if panel.get_visible())
    drawn = data_of(first)
    assert drawn["examples made at every point"] == [3, 1, 4]
    assert drawn["examples made once, at the centre"] == [2, 1, 2]
    assert len(drawn) == 6 and [2, 1, 3] in drawn.values()
    assert "filter" in first.get_xlabel() and "nats" in first.get_ylabel()
    assert "seed 5" in figure.get_suptitle()


def test_curves_before_and_after_the_best_epoch(two):
    records = [evaluation(1, 0.5, 0.4), evaluation(2, 0.7, 0.3)]
    learning, before, after = landscape_training_figure(two, records).axes[:3]
    np.testing.assert_allclose(data_of(learning)["gap"], [10, 40])
    assert data_of(before) == {"epoch 1": [3, 1, 4]} and data_of(after) == {"epoch 2": [6, 1, 6]}
    assert landscape_training_figure(two, []) is None


def test_runs_side_by_side_with_their_gap(two, tmp_path):
    other = write(tmp_path / "awp", {"last": {"anew": [[2, 1.5, 2]]}})
    found = {"at": two, "awp": other}
    accuracies = {"at": {"epoch-1": (0.6, 0.5), "epoch-2": (0.8, 0.5)}, "awp": {"last": None}}
    figure = landscape_comparison(found, accuracies)
    bars, landscape, change = figure.axes[:3]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([60, 50, 80, 50])
    assert {text.get_text() for text in bars.texts} == {"gap 10.0", "gap 30.0", "not\nevaluated"}
    assert data_of(landscape)["awp"] == [2, 1.5, 2] and data_of(change)["awp"] == [0.5, 0, 0.5]
    assert data_of(change)["at, epoch-1"] == [2, 0, 3]
    plane = write(tmp_path / "plane", {"last": {"anew": np.ones((1, 3, 3))}}, dims=2)
    with pytest.raises(ValueError, match="cannot be compared"):
        landscape_comparison({"at": two, "plane": plane}, accuracies | {"plane": {}})


def test_planes_are_relative_to_the_centre(tmp_path):
    loss = np.array([[[3, 2, 3], [2, 1, 0], [3, 2, 3]]])
    plane = write(tmp_path / "plane", {"last": {"anew": loss}}, dims=2)
    flat, solid = landscape_figure(plane).axes[:2]
    assert flat.get_xlabel().startswith("a (") and "filter" in flat.get_xlabel()
    assert solid.get_zlim() == (0, 2), "|g(a, b) - g(0, 0)|: 0 is 1 away from 1"
    figure = landscape_comparison({"plane": plane}, {"plane": {"last": (0.6, 0.5)}})
    assert len(figure.axes) == 3  # bars, contour, colour bar


def test_the_panel_beside_the_learning_curves(two):
    records = {"at": [evaluation(1, 0.5, 0.4)], "awp": [evaluation(1, 0.5, 0.4)]}
    panel = learning_curves(records, {"awp": two}).axes[3]
    (line,) = panel.get_lines()
    assert list(line.get_ydata()) == [5, 0, 5], "the latest checkpoint"
    assert line.get_linestyle() == "--" and "train" in panel.get_title()


def test_the_table(two):
    table = landscape_table({"at": two})
    assert table.count("0.250 ± 0.125") == 8 and "PGD-10 with step 2/255" in table
    assert "filter-normalised; seed 5; digits, mlp; cpu" in table


def test_accuracies_come_from_the_evaluation_or_from_training():
    def part(accuracy, examples):
        cell = {"accuracy": accuracy, "examples": examples}
        return {"clean": cell, "pgd-5": cell | {"accuracy": 0.95}, "pgd-20": cell}

    def evaluated(train, test):
        measured = {"step": 6, "train": part(train, 600), "test": part(test, 797)}
        return {"norm": "linf", "epsilon": "0.1", "checkpoints": {"last": measured}}

    config = {
        "attack": {"norm": "linf", "epsilon": "0.1"},
        "evaluation": {"steps": 10, "epsilon": None},
    }
    records = [evaluation(1, 0.5, 0.4), evaluation(2, 0.3, 0.2)]
    for record in records:
        for name in ("train", "test"):
            record[name]["examples"] = 200
    runs = {
        "at": Measured(config, evaluated(0.7, 0.6), records),
        "awp": Measured(config, evaluated(0.65, 0.62), records),
    }
    found, source = robust_accuracies(runs, {"at": {"last": 6}, "awp": {"last": 6}})
    assert found == {"at": {"last": (0.7, 0.6)}, "awp": {"last": (0.65, 0.62)}}
    assert source == "evaluation, PGD-20,\nlinf epsilon 0.1; 600 train, 797 test examples"
    # One was not evaluated: bars from two sources would rank the sources.
    runs["awp"] = Measured(config, None, records)
    found, source = robust_accuracies(runs, {"at": {"last": 6}, "awp": {"last": 6}})
    assert found["at"] == found["awp"] == {"last": (0.5, 0.4)}
    assert source == "learning curve, PGD-10,\nlinf epsilon 0.1; 200 train, 200 test examples"
    found, source = robust_accuracies({"awp": Measured(config, None, [])}, {"awp": {"last": 6}})
    assert found == {"awp": {"last": None}} and source == "not measured"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"draws": 1}, "1 random direction,"),
        ({"draws": 3}, "3 random directions (band: one standard deviation),"),
        ({"draws": 1, "directions": "adversarial"}, "1 adversarial direction,"),
        ({"draws": 1, "dims": 2}, "a pair of random directions,"),
        ({"draws": 2, "dims": 2}, "2 pairs of random directions, their mean,"),
        (
            {"draws": 1, "dims": 2, "directions": "adversarial"},
            "a pair of an adversarial and a random direction,",
        ),
    ],
)
def test_settings_say_what_was_drawn(changes, words):
    assert words in settings_line(settings() | changes)
