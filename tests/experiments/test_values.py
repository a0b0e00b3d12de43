"""The published numbers, against what the papers' running text says of them."""

import pathlib

import numpy as np
import pytest

from experiments import names, paper_table, paper_values

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
TABLES = [
    (paper, table)
    for paper in ("arxiv_v1", "neurips2020", "ijcai2022", "iccv2021", "comparison")
    for table in paper_values(paper)["tables"]
]

# paper, table, row, column, number: each is quoted in the text, away from the table.
QUOTED = [
    # "our proposed ... A = 1 already achieves 51.19% robust accuracy on test set"
    ("arxiv_v1", "table1", "Madry+", "PGD-20", 51.19),
    # "get the robust accuracy of 46.50% in Table 1"
    ("arxiv_v1", "table1", "RWP", "PGD-20", 46.50),
    # footnote 4: "its robust accuracy is 43.68%", "(Madry) with 46.36% robust accuracy"
    ("arxiv_v1", "footnote4", "Madry+ K1 = 1", "PGD-20", 43.68),
    ("arxiv_v1", "footnote4", "Madry", "PGD-20", 46.36),
    ("arxiv_v1", "table1", "Madry", "PGD-20", 46.36),
    # section 5.3: "52.79% of vanilla AT -> 55.39% of AT-AWP"
    ("neurips2020", "table1", "Linf AT", "CIFAR-10 best", 52.79),
    ("neurips2020", "table1", "Linf AT-AWP", "CIFAR-10 best", 55.39),
    ("neurips2020", "table4", "AT", "robust best", 52.79),
    # section 5.2: "vanilla AT achieves 52.32% ... boosts the performance to 55.54% ... 58.55%"
    ("ijcai2022", "table1", "Linf AT", "CIFAR-10 best", 52.32),
    ("ijcai2022", "table1", "Linf AT-AWP", "CIFAR-10 best", 55.54),
    ("ijcai2022", "table1", "Linf AT-RWP", "CIFAR-10 best", 58.55),
]


@pytest.mark.core
@pytest.mark.parametrize("paper,table,row,column,number", QUOTED)
def test_numbers_are_those_that_the_text_quotes(paper, table, row, column, number):
    assert paper_table(paper, table)[row, column].mean == number


@pytest.mark.core
@pytest.mark.parametrize("paper,table", TABLES)
def test_tables_are_complete(paper, table):
    known = paper_values(paper)["tables"][table]
    assert all(len(row) == len(known["columns"]) for row in known["rows"].values())
    for value in paper_table(paper, table).values():
        if value.mean is not None:
            assert 0.1 < value.mean < 100
            assert value.deviation is None or 0 < value.deviation < 1.5
    assert f"{paper}.{table}" in names()


def test_what_the_text_says_of_whole_tables():
    table1, table3 = (paper_table("neurips2020", t) for t in ("table1", "table3"))
    for (row, column), value in table1.items():  # "we omit the standard deviations"
        data, which = column.split()
        assert value == table3[f"{data} {row}", f"robust {which}"]
        assert value.deviation <= 0.40
    # Tables 4 and 5 repeat AT and AT-AWP on CIFAR-10.
    for table, norm in (("table4", "Linf"), ("table5", "L2")):
        for (row, column), value in paper_table("neurips2020", table).items():
            if row in ("AT", "AT-AWP"):
                assert value == table3[f"CIFAR-10 {norm} {row}", column]
    # "We can see that AT-AWP consistently improves the test robustness for all cases."
    ours = {key: v.mean for key, v in table1.items()}
    assert all(
        ours[f"{n} AT-AWP", c] > ours[f"{n} AT", c] for (r, c) in ours for n in [r.split()[0]]
    )
    # IJCAI: "improving over vanilla AT by 6.23%, and is 3.01% better than AT-AWP"
    best = {r: v.mean for (r, c), v in paper_table("ijcai2022", "table1").items() if "10 best" in c}
    assert best["Linf AT-RWP"] - best["Linf AT"] == pytest.approx(6.23)
    assert best["Linf AT-RWP"] - best["Linf AT-AWP"] == pytest.approx(3.01)
    # First version: "robustness on strong attacks like CW is higher than weak attacks like FGSM",
    # black-box; and AWP improves every white-box number.
    black = {key: v.mean for key, v in paper_table("arxiv_v1", "table3").items()}
    weaker = [
        (row, column)
        for (row, column), value in black.items()
        if "FGSM" in column and value and black[row, column.replace("FGSM", "CW-inf")] <= value
    ]
    # 97.00 against 97.41 and 97.20 against 97.49, in spite of the sentence.
    assert weaker == [("Madry+", "MNIST FGSM"), ("TRADES", "MNIST FGSM")]
    white = {key: v.mean for key, v in paper_table("arxiv_v1", "table2").items()}
    attacked = [(r, c) for (r, c), v in white.items() if v and "+" not in r and "natural" not in c]
    assert all(white[f"{r}+", c] > white[r, c] for r, c in attacked)


def test_groups_of_the_iccv_table_are_the_means_of_their_rows():
    table = {key: v.mean for key, v in paper_table("iccv2021", "table1").items()}
    rows = list(paper_values("iccv2021")["tables"]["table1"]["rows"])[:-3]
    assert len(rows) == 19
    limits = {"Good": (0, 57), "Average": (57, 60), "Poor": (60, 100)}
    for group, (low, high) in limits.items():
        inside = [r for r in rows if low <= table[r, "RErr test"] < high]
        for column in ("RErr test", "RErr train", "flatness average", "RErr early stopping"):
            mean = np.mean([table[r, column] for r in inside])
            assert mean == pytest.approx(table[group, column], abs=0.06)
        # Printed as 2.00, 2.9 and 4.67, while the rows give 1.97, 2.97 and 4.64.
        worst = np.mean([table[r, "flatness worst"] for r in inside])
        assert worst == pytest.approx(table[group, "flatness worst"], abs=0.08)


@pytest.mark.parametrize(
    "paper,table", [("neurips2020", "table1"), ("ijcai2022", "table1"), ("iccv2021", "table1")]
)
def test_docstrings_of_configs_agree(paper, table):
    text = (CONFIGS / f"{paper}.py").read_text()
    for (row, column), value in paper_table(paper, table).items():
        if paper != "iccv2021":
            assert f"{value.mean:.2f}" in text, (row, column)
        elif row not in ("Good", "Average", "Poor") and column != "RErr train":
            form = ".2f" if "flatness" in column else ".1f"
            assert format(value.mean, form) in text, (row, column)
