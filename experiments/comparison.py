"""AT against AT-AWP, run for real: robust overfitting with the one and without it with the other.

Not a table of a paper but the claim behind all of them, with everything that can be measured.
"""

from experiments import _build as build
from experiments import _panels as panels
from experiments._cells import Cell, Entry, Experiment
from experiments._measures import Attacked, Flatness, Landscape, Measure, gap
from experiments._scales import Scale
from experiments._work import Speed

_METHODS = ("AT", "AT-AWP", "TRADES", "TRADES-AWP", "AT-RWP")
_COLUMNS = ("natural", "FGSM", "PGD-20", "PGD-100", "CW-inf", "AA")
_CHECKPOINTS = ("best", "last")


def _measured(checkpoint: str) -> dict[str, tuple[Measure, str]]:
    """By column a measure, and what a reader must know of it."""
    chosen = "picked by PGD-20 on validation images" if checkpoint == "best" else ""
    found: dict[str, tuple[Measure, str]] = {}
    for column in _COLUMNS:
        attack = build.ATTACKS[column]
        # 1,000 test images, as papers that are short of time do.
        examples = 1000 if attack == "autoattack" else None
        found[f"{column} {checkpoint}"] = Attacked(attack, checkpoint, examples=examples), chosen
    found[f"PGD-20 train {checkpoint}"] = Attacked(build.PGD, checkpoint, "train"), chosen
    found[f"PGD-20 gap {checkpoint}"] = gap(build.PGD, checkpoint), "train minus test, in points"
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
                entries.append(Entry(method, column, cell, measure, note))
        entries.append(Entry(method, "seconds per epoch", cell, Speed(), "training alone"))
        entries.append(Entry(method, "model TFLOP/s", cell, Speed("tflops"), "training alone"))
    pair = [(method, cells[method]) for method in ("AT", "AT-AWP")]
    models = [(method, cell, which) for method, cell in pair for which in _CHECKPOINTS]
    landscapes = [(f"{m}, {which}", c, Landscape(which, directions=10)) for m, c, which in models]
    both = [(f"{method}\n{which}", cell, which) for method, cell, which in models]
    parts = ("train", "test")
    shown = [
        panels.curves("Robust accuracy (PGD-20)", pair, parts=parts),
        panels.curves("Natural accuracy", pair, "clean_accuracy", parts),
        panels.landscapes("Adversarial loss around the weights", landscapes),
        panels.gap_bars("Robust generalisation gap", both, build.PGD),
    ]
    for case in ("average", "worst"):
        flat = [(label, cell, Flatness(case, which)) for label, cell, which in both]
        title = f"{case.capitalize()}-case flatness (Stutz et al. 2021)"
        shown.append(panels.bars(title, flat, "checkpoint", "flatness (nats)"))
    caution = "NOT the papers' settings: 60 epochs in place of 200, bfloat16 compute."
    return Experiment(entries, shown, caution=caution)
