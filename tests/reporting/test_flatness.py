"""Tables and figures of flatness from plain results."""

import copy

import numpy as np
import pytest

from awp_jax.reporting import (
    correlation,
    flatness_figures,
    flatness_report,
    group_table,
    robustness_groups,
    save_figure,
)


def part(loss, average, worst, error, examples=100):
    return {
        "loss": loss,
        "loss_single": loss - 0.01,
        "error": error,
        "average": average,
        "worst_case": worst,
        "examples": examples,
    }


def result(method, scale, epochs=(1.0, 2.0)):
    checkpoints = {
        f"epoch-{epoch:g}": {
            "step": int(10 * epoch),
            "epoch": epoch,
            "test": part(scale + epoch, scale * epoch, 2 * scale, 0.1 * scale),
            "train": part(scale, scale / 2, scale, 0.05 * scale),
        }
        for epoch in epochs
    }
    names = list(checkpoints)
    checkpoints["best"] = checkpoints[names[0]]
    checkpoints["last"] = copy.deepcopy(checkpoints[names[-1]])
    gap = {"loss": 0.5, "error": 0.25, "average": 0.125, "worst_case": -1.0}
    return {
        "method": method,
        "seed": 3,
        "norm": "linf",
        "epsilon": "8/255",
        "step_size": "2/255",
        "steps": 20,
        "restarts": 10,
        "draws": 10,
        "xi": 0.5,
        "worst_xi": 0.00075,
        "shared_across_batches": False,
        "batch_size": 128,
        "device": "cpu",
        "data": "digits",
        "model": "mlp",
        "checkpoints": checkpoints,
        "differences": {
            "test_minus_train": {"best": gap, "last": gap, "epoch-1": gap},
            "last_minus_best": {"test": gap},
        },
    }


@pytest.mark.core
def test_correlations_by_hand():
    """Pearson 5.5 / sqrt(5 * 8.75); Spearman 1 - 6 * 2 / (4 * 15)."""
    found = correlation([1, 2, 3, 4], [1, 3, 2, 5])
    np.testing.assert_allclose([found.pearson, found.spearman], [5.5 / 43.75**0.5, 0.8], rtol=1e-12)
    # t = r sqrt(2 / (1 - r^2)) with 2 degrees of freedom: p = 1 - |r|, exactly.
    np.testing.assert_allclose(found.pearson_p, 1 - 5.5 / 43.75**0.5, rtol=1e-9)
    assert found.models == 4
    assert correlation([1, 2], [3, 4]) is None
    assert correlation([1, 2, 3], [4, 4, 4]) is None


@pytest.mark.core
def test_groups_by_hand():
    errors = {name: error for name, error in zip("abcdefghijk", range(11), strict=True)}
    good, average, poor = robustness_groups(errors)  # percentiles 3 and 7
    assert good.runs == list("abc") and average.runs == list("defg") and poor.runs == list("hijk")
    assert (average.low, poor.low) == (3.0, 7.0)
    assert [len(g.runs) for g in robustness_groups({"a": 1.0, "b": 1.0})] == [0, 0, 2]


@pytest.mark.core
def test_the_report_holds_every_number_and_what_it_needs():
    results = {name: result("AT", scale) for name, scale in (("a", 3.0), ("b", 1.0), ("c", 2.0))}
    report = flatness_report(results)
    assert "| a   | AT     | last       | 2     | test  | 4.9900" in report
    for text in (
        "seed 3",
        "linf epsilon 8/255",
        "xi 0.5",
        "nu per batch of 128",
        "100 test, 100 train",
    ):
        assert text in report.replace("Seed", "seed")
    assert "| a   | last minus best, test  | +0.5000     | +0.1250 | -1.0000    | +25.00" in report
    assert "test minus train, epoch-1" not in report  # what the figures show
    assert report.splitlines()[-1].split("|")[2].strip() == "1.000"  # on one line
    table = group_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:5]] == ["b", "c", "a"]
    assert "| 10.00             | 5.00 (-5.00)" in table[2]
    assert "poor (mean of 1)" in table[7] and "| 6.0000  | 6.0000 " in table[7]


def test_a_worst_case_below_zero_is_marked():
    weak = result("AT", 1.0)
    assert "(!)" not in flatness_report({"a": weak})
    weak["checkpoints"]["last"]["test"]["worst_case"] = -0.0067
    report = flatness_report({"a": weak})
    assert "| -0.0067 (!)" in report
    assert "(!): below zero" in report and "raise --steps or --restarts" in report


def test_every_figure_is_drawn_from_plain_values(tmp_path):
    results = {
        name: result(name.upper(), scale, epochs=(1.0, 2.0, 3.0))
        for name, scale in (("at", 3.0), ("at-awp", 1.0))
    }
    histogram = {"counts": [1, 8, 1], "edges": [-1.0, -0.5, 0.5, 1.0]}
    gammas = {"gammas": [0.0, 0.005, 1.0], "adversarial": [1.0, 2.0, 9.0]}
    bound = {"alphas": [0.01, 0.1], "sharpness": [0.0, 0.2], "complexity": [20.0, 2.0]}
    for one in results.values():
        for measured in one["checkpoints"].values():
            measured["histograms"] = {"conv/kernel": histogram, "conv/bias": histogram}
            for name in ("test", "train"):
                measured[name]["gammas"] = {
                    **gammas,
                    "random": [[1.0, 1.0], [1.0, 1.1], [2.0, 3.0]],
                }
                measured[name]["hessian"] = {"eigenvalues": [5.0]}
                measured[name]["pac_bayes"] = bound
    figures = flatness_figures(results)
    assert list(figures) == [
        "flatness",
        "flatness_training",
        "weight_histograms",
        "weight_gammas",
        "pac_bayes",
    ]
    scatter = figures["flatness"].axes[0]
    filled, hollow, line = scatter.get_lines()[:3]
    assert (filled.get_xdata()[0], filled.get_ydata()[0]) == (9.0, 6.0)
    assert (hollow.get_xdata()[0], hollow.get_ydata()[0]) == (3.0, 4.0)
    assert hollow.get_fillstyle() == "none" and len(line.get_xdata()) == 2
    for name in ("flatness", "flatness_training"):
        said = figures[name].get_suptitle().replace("\n", " ")
        assert "linf epsilon 8/255" in said and "100 test, 100 train examples" in said
        assert ("hollow" in said) == (name == "flatness")
    for one in results.values():
        del one["checkpoints"]["best"]
    assert "hollow" not in flatness_figures(results)["flatness"].get_suptitle()
    epochs = figures["flatness_training"].axes[3].get_lines()[0]
    assert tuple(epochs.get_xdata()) == (1, 2, 3) and tuple(epochs.get_ydata()) == (5, 5, 5)
    density = figures["weight_histograms"].axes
    assert [axis.get_title() for axis in density] == ["conv/kernel"]
    for name, figure in figures.items():
        assert all(axis.get_xlabel() or axis.get_ylabel() for axis in figure.axes), name
    assert all(f.stat().st_size for f in save_figure(figures["flatness"], tmp_path / "flatness"))


@pytest.mark.parametrize(("measured_on", "panels"), [("test", 4), ("train", 3), (None, 6)])
def test_what_was_not_measured_gets_no_panel(measured_on, panels):
    """On test alone: no panels of training images; on train alone: nor last minus best of test."""
    results = {name: result("AT", scale) for name, scale in (("a", 3.0), ("b", 1.0), ("c", 2.0))}
    for one in results.values():
        for measured in one["checkpoints"].values():
            measured.pop({"test": "train", "train": "test"}.get(measured_on), None)
        if measured_on:
            one["differences"]["test_minus_train"] = {}
    axes = flatness_figures(results)["flatness"].axes
    assert len(axes) == panels and all(axis.get_lines() for axis in axes)
    labels = {(axis.get_xlabel(), axis.get_ylabel()) for axis in axes}
    assert len(labels) == panels


def test_one_run_with_one_checkpoint_needs_no_figure():
    assert flatness_figures({"a": result("AT", 1.0, epochs=(1.0,))}) == {}


def test_runs_measured_on_different_sets_are_one_sentence():
    one, other = result("AT", 1.0), result("AT", 2.0)
    for measured in one["checkpoints"].values():
        measured.pop("test", None)
    for measured in other["checkpoints"].values():
        measured.pop("train", None)
    with pytest.raises(ValueError, match="measured on different sets"):
        flatness_figures({"a": one, "b": other})
