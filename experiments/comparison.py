"""AT against AT-AWP, run for real: robust overfitting with the one and without it with the other.

Not a table of a paper but the claim behind all of them, with everything that can be measured.
"""

from experiments._analyses import Flatness, Landscape
from experiments._build import ATTACKS, gap, make
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import Attacked, Measure
from experiments._panels import Bars, Curves, GapBars
from experiments._scales import Scale
from experiments._speed import Speed
from experiments._weight_panels import Landscapes

_METHODS = ("AT", "AT-AWP", "TRADES", "TRADES-AWP", "AT-RWP")
_COLUMNS = ("natural", "FGSM", "PGD-20", "PGD-100", "CW-inf", "AA")
_CHECKPOINTS = ("best", "last")
_PGD = "pgd-20"


def _measured(checkpoint: str) -> dict[str, tuple[Measure, str]]:
    """By column a measure, and what a reader must know of it."""
    chosen = "picked by PGD-20 on validation images" if checkpoint == "best" else ""
    found: dict[str, tuple[Measure, str]] = {}
    for column in _COLUMNS:
        attack = ATTACKS[column]
        # 1,000 test images, as papers that are short of time do.
        examples = 1000 if attack == "autoattack" else None
        found[f"{column} {checkpoint}"] = Attacked(attack, checkpoint, examples=examples), chosen
    found[f"PGD-20 train {checkpoint}"] = Attacked(_PGD, checkpoint, "train"), chosen
    found[f"PGD-20 gap {checkpoint}"] = gap(_PGD, checkpoint), "train minus test, in points"
    for case in ("average", "worst"):
        note = f"{case}-case flatness of Stutz et al. 2021, in nats; lower is flatter"
        found[f"{case} flatness {checkpoint}"] = Flatness(case, checkpoint), note
    return found


def _cifar10(scale: Scale) -> Experiment:
    cells = {m: Cell(m.lower(), f"comparison:cifar10,{m.lower()}", seeds=3) for m in _METHODS}
    entries = []
    for method, cell in cells.items():
        for checkpoint in _CHECKPOINTS:
            for column, (measure, note) in _measured(checkpoint).items():
                entries.append(Entry(method, column, cell.name, measure, note))
        entries.append(Entry(method, "seconds per epoch", cell.name, Speed(), "training alone"))
        entries.append(Entry(method, "model TFLOP/s", cell.name, Speed("tflops"), "training alone"))
    pair = ("AT", "AT-AWP")
    names = [(m, cells[m].name) for m in pair]
    landscapes = tuple(
        (f"{m}, {c}", cells[m].name, Landscape(c, directions=10))
        for m in pair
        for c in _CHECKPOINTS
    )
    both = [(f"{m}\n{c}", cells[m].name, c) for m in _METHODS for c in _CHECKPOINTS]
    panels = [
        Curves("Robust accuracy (PGD-20)", tuple(names), parts=("train", "test")),
        Curves("Natural accuracy", tuple(names), "clean_accuracy", ("train", "test")),
        Landscapes("Adversarial loss around the weights", landscapes),
        GapBars("Robust generalisation gap", tuple(both[:4]), _PGD),
        *(
            Bars(
                f"{case.capitalize()}-case flatness (Stutz et al. 2021)",
                tuple((label, cell, Flatness(case, c)) for label, cell, c in both[:4]),
                "checkpoint",
                "flatness (nats)",
            )
            for case in ("average", "worst")
        ),
    ]
    return make(
        "comparison",
        "cifar10",
        scale,
        cells.values(),
        entries=entries,
        panels=panels,
        caution="NOT the papers' settings: 60 epochs in place of 200, bfloat16 compute.",
        notes=("Curves are of the first seed; numbers are means over the seeds.",),
    )


EXPERIMENTS = {"cifar10": _cifar10}
