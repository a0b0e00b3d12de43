"""Running, stopping, spreading and gathering a tiny experiment; and what bad input says."""

import csv
import json
import os
import time

import pytest

from awp_jax import landscape
from awp_jax.files import StorageError
from awp_jax.training import train
from experiments import SCALES, Entry, Experiment, _tables, experiment, run
from experiments._measures import Curvature, Learning
from experiments._runs import Place, run_job
from experiments.run import main, select, share

NAME = "neurips2020.table1"
SMOKE = SCALES["smoke"]


def place(workdir, name=NAME):
    return Place(workdir, experiment(name, SMOKE))


def job(one, cell="cifar10,linf,at"):
    return next(j for j in one.experiment.jobs() if j.cell.name == cell)


def numbers(workdir, name=NAME):
    path = workdir / name / "smoke" / f"{name.partition('.')[2]}.csv"
    with open(path) as file:
        return {(r["row"], r["column"]): r for r in csv.DictReader(file)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory in which one cell of Table 1 has run, through the command line."""
    workdir = tmp_path_factory.mktemp("finished")
    assert main([NAME, f"--workdir={workdir}", "--only=cifar10,linf,at"]) == 0
    return workdir


def test_a_cell_is_trained_measured_and_reported(finished):
    found = numbers(finished)
    assert len(found) == 24
    line = found["Linf AT", "CIFAR-10 last"]
    assert (line["paper"], line["paper_sd"], line["paper_settings"]) == ("44.44", "0.39", "no")
    accuracy = float(line["ours"])
    assert 0 < accuracy < 100
    assert float(line["difference"]) == pytest.approx(accuracy - 44.44)
    assert line["settings"] == "pgd-5, 50 test examples, epsilon 0.05, cpu"
    # The number is that of the run's own evaluation of the same images, but for the random start.
    one = place(finished)
    directory = one.directory(job(one))
    records = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = [r for r in records if r["kind"] == "evaluation"]
    assert 100 * evaluated[-1]["test"]["robust_accuracy"] == pytest.approx(accuracy, abs=20)
    # At smoke SVHN is the same run; L2 is another, which was not asked for.
    assert found["Linf AT", "SVHN last"]["ours"] == line["ours"]
    assert found["L2 AT", "CIFAR-10 last"]["state"] == "not run"
    text = (finished / NAME / "smoke" / "table1.md").read_text()
    assert "NOT the paper's settings" in text and "| 44.44 ± 0.39 |" in text
    assert "picked on held-out training images" in text


def test_what_is_done_is_not_done_again(finished, capsys):
    one = place(finished)
    directory = one.directory(job(one))
    measures = sorted((directory / "measures").iterdir())
    metrics = (directory / "metrics.jsonl").stat().st_mtime_ns
    removed = measures[0]
    kept = {path: path.stat().st_mtime_ns for path in measures[1:]}
    before = json.loads(removed.read_text())["value"]
    removed.unlink()
    assert run_job(one, job(one), quiet=True) == []
    after = json.loads(removed.read_text())["value"]
    assert {k: v for k, v in after.items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (directory / "metrics.jsonl").stat().st_mtime_ns == metrics  # not trained again


def test_a_cell_that_was_cut_goes_on(finished, tmp_path):
    one, reference = place(tmp_path), place(finished)
    config, directory = one.config(job(one)), one.directory(job(one))
    one.claim(job(one))
    train(config, directory, max_steps=7, progress=None)  # in the first of two epochs
    assert main([NAME, f"--workdir={tmp_path}", "--only=cifar10,linf,at"]) == 0
    assert directory.name == reference.directory(job(reference)).name
    for key, line in numbers(tmp_path).items():
        assert line == numbers(finished)[key]


def test_cells_are_spread_and_gathered(finished, tmp_path):
    arguments = [NAME, f"--workdir={tmp_path}", "--only=cifar10,linf,at"]
    os.symlink(finished / "runs", tmp_path / "runs")  # as if another machine had trained it
    assert main([*arguments, "--cell=0", "--cells=1"]) == 0
    folder = tmp_path / NAME / "smoke"
    assert not (folder / "table1.csv").exists()  # one machine writes no table
    assert main([NAME, f"--workdir={tmp_path}", "--gather"]) == 0
    ours = numbers(tmp_path)["Linf AT", "CIFAR-10 best"]["ours"]
    assert ours == numbers(finished)["Linf AT", "CIFAR-10 best"]["ours"]


def test_shares_are_a_partition():
    jobs = experiment("neurips2020.table1", SCALES["paper"]).jobs()
    assert len(jobs) == 60
    for count in (None, 1, 7, 60, 100):
        parts = [share(jobs, i, count) for i in range(count or len(jobs))]
        assert sorted(j.label for p in parts for j in p) == sorted(j.label for j in jobs)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_picks_by_parts_of_names():
    one = experiment(NAME, SCALES["paper"])
    assert {j.cell.name for j in select(one, "cifar10,linf")} == {
        "cifar10,linf,at",
        "cifar10,linf,at-awp",
    }
    assert len(select(one, "at")) == 30 and len(select(one, None)) == 60
    assert {j.seed for j in select(one, "at", "0,3")} == {0, 3}
    with pytest.raises(ValueError, match="seed of '7'; at scale paper there are 0, 1, 2, 3, 4"):
        select(one, "at", "7")


def test_dry_run_lists_cells_with_their_work(finished, capsys):
    began = time.perf_counter()
    assert main([NAME, "--scale=paper", "--dry-run", "--only=cifar10,linf"]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "| cifar10,linf,at " in line]
    assert len(rows) == 5 and all("| 76,600 |" in row and "to run" in row for row in rows)
    assert "10 cells, 766,000 steps" in text
    assert "awp-jax train --config=configs/neurips2020.py:cifar10,linf,at" in text
    assert main([NAME, "--dry-run", f"--workdir={finished}"]) == 0
    rows = capsys.readouterr().out.splitlines()
    state = {row.split("|")[2].strip(): row.split("|")[-2].strip() for row in rows if "| 0 " in row}
    assert state["cifar10,linf,at"] == "done" and state["cifar10,l2,at"] == "to run"
    assert time.perf_counter() - began < 60  # nothing is trained


def test_of_several_experiments_those_run_that_have_the_cells(capsys):
    assert main(["neurips2020.table2", NAME, "--dry-run", "--only=svhn,linf"]) == 0
    text = capsys.readouterr().out
    assert "neurips2020.table1 at scale smoke" in text and "table2" not in text
    assert main(["neurips2020.table2", NAME, "--dry-run", "--only=svhm"]) == 2
    assert "has all of 'svhm' in its name. There are:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["neurips2020.tabel1"], "Did you mean 'neurips2020.table1'? There are:"),
        (["nothing"], "  iccv2021: table1, figure1, figure2, figure4"),
        ([NAME, "--only=cifar11"], "There are:\n  svhn,linf,at\n"),
        ([NAME, "--cell=12"], "--cell is 12, but a number from 0 to 11 was expected."),
        ([NAME, "--cell=-1"], "--cell is -1, but a number from 0 to 11"),
        ([NAME, "--cells=3"], "--cells is given without --cell."),
        ([NAME, "--scale=tiny"], "Unknown scale 'tiny'; known: paper, small, cpu, trial, smoke."),
    ],
)
def test_bad_arguments_are_said_in_one_sentence(arguments, said, tmp_path, capsys):
    assert main([*arguments, f"--workdir={tmp_path / 'new'}"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_work_directory_is_needed(capsys):
    assert main([NAME]) == 2
    assert "--workdir is missing." in capsys.readouterr().err


def test_another_version_of_a_cell_is_refused(finished, tmp_path, capsys):
    one = place(tmp_path)
    config = one.config(job(one))
    with config.unlocked():
        config.optimizer.momentum = 0.8  # what an earlier version had
    one.claim(job(one))
    assert main([NAME, f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "holds another version of cell 'cifar10,linf,at seed 0'" in said
    assert "(it differs in optimizer.momentum)" in said
    assert not (tmp_path / "runs").exists()  # nothing was trained, of no cell
    path = next((tmp_path / NAME / "smoke" / "cells").glob("cifar10_linf_at-seed0.json"))
    path.write_text("{")
    assert main([NAME, f"--workdir={tmp_path}"]) == 2
    assert "is damaged: delete it." in capsys.readouterr().err


def test_a_version_with_more_config_keys_goes_on(finished, capsys):
    claims = finished / NAME / "smoke" / "cells" / "cifar10_linf_at-seed0.json"
    text = claims.read_text()
    earlier = json.loads(text)
    assert earlier["config"].pop("averaging") and earlier["config"]["data"].pop("cutout") == 0
    claims.write_text(json.dumps(earlier))
    assert main([NAME, f"--workdir={finished}", "--only=cifar10,linf,at"]) == 0
    assert "[1/1] cifar10,linf,at seed 0: done" in capsys.readouterr().err
    earlier["config"]["data"]["cutout"] = 3
    claims.write_text(json.dumps(earlier))
    assert main([NAME, f"--workdir={finished}", "--only=cifar10,linf,at"]) == 2
    assert "differs in data.cutout)" in capsys.readouterr().err
    claims.write_text(text)


def test_results_of_other_settings_are_not_taken(finished):
    one = place(finished)
    measure = one.experiment.measures(job(one).cell)[0]
    found = one.result(job(one), measure)
    path = one.directory(job(one)) / "measures" / f"{measure.slug()}.json"
    text = path.read_text()
    found["settings"]["examples"] = 7
    path.write_text(json.dumps(found))
    assert one.missing(job(one)) == [measure]
    path.write_text(text[:40])  # torn
    assert one.missing(job(one)) == [measure]
    path.write_text(text)
    assert one.missing(job(one)) == []


def test_what_a_run_cannot_give_is_said_and_the_rest_is_measured(tmp_path, monkeypatch):
    cell = experiment("neurips2020.figure4", SMOKE).cells[0]
    measures = [Curvature("last", 2.0), Learning()]
    entries = [Entry("a row", str(i), cell, measure) for i, measure in enumerate(measures)]
    one = Place(tmp_path, Experiment(entries, paper="neurips2020", name="figure4", scale=SMOKE))

    def rescaled(*given):
        raise ValueError("This network has no twin.")

    monkeypatch.setattr(landscape, "rescaled", rescaled)
    only = one.experiment.jobs()[0]
    assert run_job(one, only, quiet=True) == ["This network has no twin."]
    assert one.missing(only) == measures[:1]
    monkeypatch.undo()
    assert run_job(one, only, quiet=True) == [] and one.missing(only) == []


def test_a_full_disk_is_one_sentence_and_status_1(tmp_path, monkeypatch, capsys):
    def full(*given):
        raise StorageError("config.json cannot be written (No space left on device)")

    monkeypatch.setattr(run, "run_job", full)
    assert main([NAME, f"--workdir={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_surrogate_that_is_not_finished_is_finished_first(tmp_path):
    """With cells spread over machines it may not be there, or be half trained by another one."""
    one = place(tmp_path, "arxiv_v1.table3")
    copy = job(one, "mnist,at,copy")
    train(one.config(copy), one.directory(copy), max_steps=7, progress=None)
    assert run_job(one, job(one, "mnist,at"), quiet=True) == []
    lines = (one.directory(copy) / "metrics.jsonl").read_text().splitlines()
    epochs = [r["epoch"] for r in map(json.loads, lines) if r["kind"] == "evaluation"]
    assert epochs == [1, 2]
    assert run_job(one, copy, quiet=True) == []  # nothing is left to do
    assert one.missing(job(one, "mnist,at")) == []


def test_files_of_the_user_that_are_missing_are_named_before_and_after(tmp_path, capsys):
    arguments = ["neurips2020.table2", "--scale=trial", f"--workdir={tmp_path}"]
    for cell, words in (
        ("rst", "needs unlabelled images with labels in tiny-images-500k.npz, which is not there"),
        ("pre-training", "starts at the run runs/pre-trained, which is not there: make it by"),
    ):
        assert main([*arguments, f"--only={cell}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"Cell 'table2,{cell}' {words}" in error
        assert (
            f"Cell 'table2,{cell}' {words}"
            in (tmp_path / "neurips2020.table2" / "trial" / "table2.md").read_text()
        )
        assert main([*arguments, f"--only={cell}", "--dry-run"]) == 0
        assert f"- Cell 'table2,{cell}' {words}" in capsys.readouterr().out
    assert not list((tmp_path / "runs").glob("*"))


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AWP_JAX_DATA", raising=False)
    assert main([NAME, "--scale=small", f"--workdir={tmp_path}", "--only=svhn,linf"]) == 2
    said = capsys.readouterr().err
    assert "train_32x32.mat" in said and "http" in said and "AWP_JAX_DATA" in said
    assert "[2/2] svhn,linf,at-awp" in said  # one cell without data does not stop the others
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_small_numbers_keep_two_digits_of_their_own():
    texts = [
        _tables._number(*given)
        for given in ((52.789, 0.4), (0.0096, 0.0012), (0, 0), (0.123, None))
    ]
    assert texts == ["52.79 ± 0.40", "0.0096 ± 0.0012", "0.00 ± 0.00", "0.12"]
