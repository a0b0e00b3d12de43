"""Tables and figures from plain results."""

import copy

import pytest

from awp_jax import config
from awp_jax.reporting import (
    attack_table,
    evaluation_note,
    evaluation_table,
    falls_after_best,
    learning_curves,
    markdown_table,
    noise_note,
    save_figure,
    seed_table,
)
from awp_jax.training import plain


def result(method, robust_train, robust_test):
    def cell(accuracy, examples):
        return {"accuracy": accuracy, "loss": 1.5, "examples": examples, "seconds": 0.1}

    measured = {
        "step": 30,
        "epoch": 10.0,
        "train": {"clean": cell(0.9, 600), "pgd-20": cell(robust_train, 600)},
        "test": {"clean": cell(0.8, 797), "pgd-20": cell(robust_test, 797)},
    }
    return {
        "method": method,
        "seed": 3,
        "norm": "linf",
        "epsilon": "8/255",
        "step_size": "2/255",
        "restarts": 1,
        "selection": "validation",
        "device": "cpu",
        "data": "digits",
        "model": "mlp",
        "checkpoints": {"best": measured, "last": measured},
    }


@pytest.mark.core
def test_the_table_holds_every_number_and_what_it_needs():
    table = evaluation_table({"a": result("AT", 0.7, 0.5), "b": result("AT-AWP", 0.65, 0.52)})
    lines = table.splitlines()
    assert len(lines) == 2 + 2 + 2  # the best and the last are the same state
    assert "| 20.00" in lines[2] and "| 13.00" in lines[3] and "| best, last" in lines[3]
    for text in (
        "seed 3",
        "linf epsilon 8/255",
        "600 train, 797 test",
        "best chosen on validation",
    ):
        assert text in lines[-1]


def test_what_was_lost_after_the_best_is_one_sentence():
    def run(best, last):
        found = result("AT", 0.7, best)
        late = copy.deepcopy(found["checkpoints"]["best"])
        late["test"]["pgd-20"]["accuracy"], late["step"] = last, 90
        found["checkpoints"]["last"] = late
        return found

    told = falls_after_best({"at": run(0.65, 0.573), "awp": run(0.5, 0.512)})
    assert told == "PGD-20 test accuracy from best to last checkpoint, points: at -7.7, awp +1.2."
    assert falls_after_best({"at": result("AT", 0.7, 0.5)}) == ""  # one state


def test_wrong_labels_are_told_where_they_were_trained_on():
    values = config.default()
    assert noise_note(plain(values)) == ""
    values.data.label_noise = 0.3
    told = "train: 30 % of its labels drawn at random"
    assert noise_note(plain(values)) == told
    assert told in evaluation_note(plain(values), [])


def test_the_gap_is_that_of_pgd_wherever_pgd_was_run():
    with_cw = result("AT", 0.7, 0.5)
    for part in ("train", "test"):
        measured = with_cw["checkpoints"]["best"][part]
        measured["cw-20"] = {**measured["pgd-20"], "accuracy": 0.4, "loss": 9.0}
    table = evaluation_table({"a": with_cw})
    assert "| 20.00" in table and "1.500" in table and "9.000" not in table
    assert "gap and robust loss: PGD-20" in table


def test_markdown():
    assert markdown_table(("a", "bb"), [("x", "y")]) == "| a | bb |\n|---|----|\n| x | y  |"


def test_curves_are_drawn_and_saved(tmp_path):
    def evaluation(epoch):
        part = {"clean_accuracy": 0.5, "robust_accuracy": 0.1 * epoch}
        return {"kind": "evaluation", "epoch": epoch, "train": part, "test": part}

    figure = learning_curves({"at": [evaluation(1), evaluation(2)], "at-awp": [evaluation(1)]})
    assert [axis.get_xlabel() for axis in figure.axes] == ["epoch"] * 3
    lines = figure.axes[1].get_lines()
    assert [tuple(line.get_ydata()) for line in lines[:2]] == [(10.0, 20.0), (10.0, 20.0)]
    files = save_figure(figure, tmp_path / "figures" / "curves")
    assert [f.suffix for f in files] == [".png", ".pdf"] and all(f.stat().st_size for f in files)


def test_what_the_numbers_of_a_curve_need():
    values = config.default()
    values.seed, values.attack.epsilon = 3, "8/255"
    part = {"clean_accuracy": 0.5, "robust_accuracy": 0.1, "examples": 40}
    records = [{"kind": "train"}, {"kind": "evaluation", "epoch": 1, "test": part, "train": part}]
    note = evaluation_note(plain(values), records)
    assert "cifar10, preact-resnet-18; PGD-" in note and "linf epsilon 8/255" in note
    assert "40 train, 40 test examples; seed 3" in note or "40 test, 40 train" in note
    assert learning_curves({"at": records[1:]}, note=note).get_suptitle() == note


def test_runs_without_evaluations_are_one_sentence():
    with pytest.raises(ValueError, match="None of the runs holds evaluations"):
        learning_curves({"at": [{"kind": "train", "epoch": 1}]})


def test_runs_that_differ_in_their_seed_are_averaged():
    runs = {f"a-{seed}": {**result("AT", 0.7 + seed / 50, 0.5), "seed": seed} for seed in range(3)}
    runs["b"] = result("AT-AWP", 0.6, 0.5)  # one seed: no row
    lines = seed_table(runs).splitlines()
    assert len(lines) == 4 and "AT-AWP" not in "".join(lines)
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    row = dict(zip(header, cells, strict=True))
    # 70, 72, 74: mean 72, deviation 2.
    assert row["PGD-20 train"] == "72.00 ± 2.00" and row["PGD-20 test"] == "50.00 ± 0.00"
    assert row["PGD-20 gap"] == "22.00 ± 2.00" and row["seeds"] == "3"
    assert seed_table({"b": result("AT-AWP", 0.6, 0.5)}) == ""
    other = {**result("AT", 0.7, 0.5), "seed": 1, "epsilon": "4/255"}
    assert seed_table({"a": result("AT", 0.7, 0.5), "c": other}) == ""


def test_corruptions_are_no_attack():
    corrupted = copy.deepcopy(result("AT", 0.7, 0.5))
    for part in ("train", "test"):
        measured = corrupted["checkpoints"]["best"][part]
        del measured["pgd-20"]
        measured["corruptions"] = {**measured["clean"], "accuracy": 0.09}
    union = {"accuracy": 0.8, "strongest": "clean", "attacks": []}
    corrupted["unions"] = {"best": {"test": union}, "last": {"test": union}}
    assert "together" not in attack_table(corrupted) and "9.00" in attack_table(corrupted)
    table = seed_table({"a": corrupted, "b": {**corrupted, "seed": 4}})
    assert "corruptions test" in table and "gap" not in table


def test_runs_that_were_attacked_differently_keep_all_their_numbers():
    other = result("AT-AWP", 0.6, 0.5)
    for part in ("train", "test"):
        cells = other["checkpoints"]["best"][part]
        cells["square-100"] = {**cells.pop("pgd-20"), "accuracy": 0.123}
    table = evaluation_table({"a": result("AT", 0.7, 0.51), "b": other})
    header, _, first, second = table.splitlines()[:4]
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    rows = [
        dict(zip(columns, (c.strip() for c in line.strip("|").split("|")), strict=True))
        for line in (first, second)
    ]
    assert rows[0]["PGD-20 test"] == "51.00" and rows[0]["Square-100 test"] == ""
    assert rows[1]["Square-100 test"] == "12.30" and rows[1]["PGD-20 test"] == ""
    assert "a: seed 3" in table and "b: seed 3" in table
