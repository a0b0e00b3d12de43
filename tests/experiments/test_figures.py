"""Every figure, from results that are made up; landscape and flatness measured on a tiny run."""

import json
import pathlib

import numpy as np
import pytest

from awp_jax import runs
from experiments import SCALES, experiment, names
from experiments import _panels as panels
from experiments._measures import (
    Attacked,
    Bench,
    Curvature,
    Flatness,
    Landscape,
    Learning,
    Measure,
    PerturbedLoss,
    Weights,
)
from experiments._panels import figure
from experiments._runs import Place, run_job
from experiments._tables import comma_separated, lines, markdown, warning
from experiments._work import Speed
from experiments.run import main

SMOKE = SCALES["smoke"]
WITH_FIGURES = [name for name in names() if experiment(name, SMOKE).panels]


def made_up(measure: Measure, random) -> object:
    """A result of the right form."""
    settings = measure.settings(SMOKE)
    if isinstance(measure, Attacked):
        accuracy = random.uniform(0.2, 0.9)
        losses = {k: random.uniform(0.5, 4) for k in ("loss", "loss_correct", "loss_wrong")}
        return {"accuracy": accuracy, "examples": 50, "epsilon": "0.05", **losses}
    if isinstance(measure, Learning):
        values = {"clean_accuracy": 0.8, "robust_accuracy": 0.5, "robust_loss": 1.2}
        parts = {"train": values, "test": {k: 0.9 * v for k, v in values.items()}}
        return [{"kind": "evaluation", "epoch": e, **parts} for e in (1, 2)]
    if isinstance(measure, Landscape):
        axis = np.linspace(-1, 1, settings["points"])
        curve = 1 + axis**2
        loss = curve[:, None] + curve if measure.dims == 2 else [curve] * settings["directions"]
        return {"axis": axis.tolist(), "loss": np.array(loss).tolist()}
    if isinstance(measure, PerturbedLoss):
        values = random.uniform(1, 2, len(measure.gammas)).tolist()
        return {"gammas": list(measure.gammas), "adversarial": values, "random": values}
    if isinstance(measure, Weights):
        return {"layer": "conv", "counts": [1, 5, 1], "edges": [-0.3, -0.1, 0.1, 0.3]}
    if isinstance(measure, Speed):
        return {"seconds": 2.0, "tflops": 0.1}
    assert isinstance(measure, Flatness | Curvature)
    return random.uniform(0.3, 2)


def write(place: Place, random) -> None:
    for job in place.experiment.jobs():
        directory = place.directory(job) / "measures"
        directory.mkdir(parents=True, exist_ok=True)
        for measure in place.experiment.measures(job.cell):
            result = {"settings": measure.settings(SMOKE), "value": made_up(measure, random)}
            path = directory / f"{measure.slug()}.json"
            path.write_text(json.dumps(result | {"device": "cpu"}))


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_figures_are_drawn_from_files_alone(name, tmp_path):
    place = Place(tmp_path, experiment(name, SMOKE))
    assert figure(place) is None  # nothing has been measured
    write(place, np.random.default_rng(0))
    drawing = figure(place)
    axes = [a for a in drawing.axes if not a.get_label().startswith("<")]  # <colorbar>, <right>
    assert len(axes) == len(place.experiment.panels)
    for panel in axes:
        assert panel.get_xlabel() and panel.get_ylabel() and panel.get_title()
    assert "NOT the paper's settings" in drawing.get_suptitle()
    assert len(markdown(place, lines(place), [])) > 100


def test_a_panel_without_curves_says_so():
    """At scale trial no checkpoint of the first half of training stays."""
    from matplotlib.figure import Figure

    panel = panels.landscapes("first half", [], sequence=True)
    assert not panel.draw(Figure().add_subplot(), lambda cell, measure: None)


def test_the_comparison_is_never_called_the_papers_settings(tmp_path):
    place = Place(tmp_path, experiment("comparison.cifar10", SCALES["paper"]))
    text = markdown(place, lines(place), [])
    assert "NOT the papers' settings: 60 epochs in place of 200" in text
    assert ",no," in comma_separated(place, lines(place))
    assert warning(Place(tmp_path, experiment("neurips2020.table1", SCALES["paper"]))) == ""


def test_measures_have_names_of_their_own():
    for name in names():
        one = experiment(name, SCALES["paper"])
        for cell in one.cells:
            measures = one.measures(cell)
            assert len({m.slug() for m in measures}) == len(measures)


def test_gap_and_scatter_say_what_the_results_say(tmp_path):
    place = Place(tmp_path, experiment("iccv2021.figure1", SMOKE))
    random = np.random.default_rng(1)
    write(place, random)
    drawing = figure(place)
    points = np.concatenate([line.get_xydata() for line in drawing.axes[0].get_lines()])
    pearson = np.corrcoef(points.T)[0, 1]
    assert f"Pearson {pearson:.2f}" in drawing.axes[0].get_title()
    assert f"{len(points)} points" in drawing.axes[0].get_title()
    gaps = Place(tmp_path, experiment("neurips2020.figure1", SMOKE))
    write(gaps, random)
    bars = next(a for a in figure(gaps).axes if "gap" in a.get_title())
    read = lambda part: Attacked("pgd-20", "last", part).read(  # noqa: E731
        lambda m: gaps.result(gaps.experiment.jobs()[0], m)["value"]
    )
    assert f"{read('train') - read('test'):+.1f}" in [t.get_text() for t in bars.texts]


def test_landscape_flatness_and_weights_of_a_run(tmp_path):
    """Figure 4 of AWP and two measures of other figures on the same run, with the library."""
    place = Place(tmp_path, experiment("neurips2020.figure4", SMOKE))
    job = place.experiment.jobs()[0]
    assert run_job(place, job, quiet=True) == []
    run = runs.open(place.directory(job))
    bench = Bench(run, SMOKE, tmp_path / "parts", lambda name: tmp_path)
    found = Landscape("50%", 2).compute(bench)
    assert np.shape(found["loss"]) == (2, 5) and found["axis"][2] == 0
    centre = [curve[2] for curve in found["loss"]]
    assert centre[0] == pytest.approx(centre[1])  # both go through the weights
    assert np.isfinite(Flatness("average").compute(bench))
    weights = place.result(job, Weights())["value"]
    kernel = run.model("last").params
    sizes = {int(np.size(leaf)) for leaf in __import__("jax").tree.leaves(kernel)}
    assert sum(weights["counts"]) in sizes
    assert main(["neurips2020.figure4", f"--workdir={tmp_path}", "--gather"]) == 0
    folder = pathlib.Path(tmp_path) / "neurips2020.figure4" / "smoke"
    assert (folder / "figure4.png").stat().st_size > 10_000
    assert (folder / "figure4.pdf").read_bytes()[:5] == b"%PDF-"
