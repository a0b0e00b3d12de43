"""Published models in figures, and the numbers that are made of others."""

import json

import numpy as np
import pytest

from awp_jax import config as schema
from awp_jax.training import plain
from experiments import SCALES, experiment, iccv2021, names
from experiments._build import best_point, correlations, takes_imported
from experiments._measures import BEST_EPOCH, best_epoch, rise
from experiments._panels import figure
from experiments._runs import Place
from experiments._tables import lines, markdown
from experiments._work import estimate
from experiments.run import main

SMOKE = SCALES["smoke"]


@pytest.fixture
def run(tmp_path):
    """What is read of an imported run before it is measured."""
    directory = tmp_path / "carmon2019"
    directory.mkdir()
    config = schema.default()
    config.model.name = "wrn-28-10"
    (directory / "config.json").write_text(json.dumps(plain(config)))
    return directory


def test_imported_runs_are_cells_of_the_figures_that_show_them(run, tmp_path):
    assert {n for n in names() if takes_imported(n)} == {"iccv2021.figure1", "iccv2021.figure9"}
    one = experiment("iccv2021.figure1", SMOKE, [str(run)])
    cell = one.cell("imported,carmon2019")
    config = cell.at(SMOKE, 0)
    assert (config.model.name, config.data.name) == ("wrn-28-10", "cifar10")  # not the scale's
    place = Place(tmp_path / "work", one)
    job = next(j for j in one.jobs() if j.cell == cell)
    work = estimate(one, job)
    assert work.steps == work.training == 0 < work.evaluation
    # Where measures lie: never in the run itself, which is the user's.
    assert run not in place.directory(job).parents
    for measure in one.measures(cell):
        path = place.directory(job) / "measures" / f"{measure.slug()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {"loss": 1.5, "accuracy": 0.5} if "attacked" in measure.slug() else 0.25
        path.write_text(json.dumps({"settings": measure.settings(SMOKE), "value": value}))
    line = figure(place).axes[0].get_lines()[-1]
    assert line.get_label() == "carmon2019 (imported)" and line.get_marker() == "^"
    np.testing.assert_array_equal(line.get_xydata(), [[0.25, 1.5]])
    assert str(run) in markdown(place, lines(place), [])


def test_without_any_the_results_say_so(tmp_path):
    place = Place(tmp_path, experiment("iccv2021.figure1", SMOKE))
    assert "name these by --imported" in markdown(place, lines(place), [])


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["iccv2021.figure1", "--imported=nowhere"], "nowhere holds no config.json"),
        (["iccv2021.figure1", "--imported={run},{run}"], "--imported names two runs 'carmon2019'"),
        (["iccv2021.figure2", "--imported={run}"], "iccv2021.figure2 shows no published models."),
    ],
)
def test_bad_imported_runs_are_one_sentence(arguments, said, run, tmp_path, capsys):
    filled = [a.format(run=run) for a in arguments]
    assert main([*filled, f"--workdir={tmp_path / 'new'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_numbers_made_of_others():
    robust = [(1, 0.3, 0.2), (2, 0.5, 0.1), (3, 0.5, 0.4)]
    records = [
        {"epoch": e, "validation": {"robust_accuracy": v}, "test": {"robust_accuracy": t}}
        for e, v, t in robust
    ]
    assert best_epoch(records) == 2  # the first of equals, as training keeps it
    assert BEST_EPOCH.read(lambda m: records) == 2
    assert iccv2021._best_percent(records) == pytest.approx(200 / 3)
    found = {"loss": [[3.0, 1.0, 2.0], [5.0, 1.0, 6.0]]}
    assert rise(found) == pytest.approx((4 + 1 + 4) / 3 - 1)
    sweep = {("c = 0.1", "a"): 3.0, ("c = 0.2", "a"): 4.0, ("c = 0.2", "b"): 0.0}
    assert best_point(sweep, "a", "best") == {("best", "text"): 0.2}
    assert best_point(sweep, "a", "best", -1) == {("best", "text"): 0.1}
    assert best_point({}, "a", "best") == {}


def test_correlations_are_those_of_numpy():
    loss, flat = [1.0, 2.0, 4.0, 3.0], [0.1, 0.4, 0.2, 0.9]
    numbers = {(f"m{i}", "robust loss"): v for i, v in enumerate(loss)}
    numbers |= {(f"m{i}", "flatness worst"): v for i, v in enumerate(flat)}
    found = correlations(numbers, of="robust loss")
    assert set(found) == {("Pearson worst", "text"), ("Spearman worst", "text")}
    assert found["Pearson worst", "text"] == pytest.approx(np.corrcoef(loss, flat)[0, 1])
    ranks = [np.argsort(np.argsort(v)) for v in (loss, flat)]
    assert found["Spearman worst", "text"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
