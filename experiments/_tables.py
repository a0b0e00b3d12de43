"""The table of an experiment: the paper's numbers, ours, and the difference."""

import contextlib
import csv
import io
import math
import statistics
from typing import Any, NamedTuple

from awp_jax.reporting import markdown_table
from experiments._analyses import Flatness, Landscape, scale_steps
from experiments._cells import SUBSTITUTE, Entry, Job, NotAvailable
from experiments._measures import Attacked, Measure, Unavailable
from experiments._runs import Place
from experiments._values import Value, paper_table, paper_values

NOT_RUN = "not run"


class Line(NamedTuple):
    """One number beside the paper's.

    Attributes:
        row: As in the paper.
        column: As in the paper.
        paper: What the paper reports; ``None`` for what it does not have.
        ours: Mean over the seeds that are done; ``None`` for none.
        deviation: Standard deviation over seeds; ``None`` for fewer than two.
        seeds: Which are done.
        state: ``""``, ``"not run"``, or why it is not available.
        note: What a reader must know of the number.
        settings: Attack, examples, epsilon, device, as text.
    """

    row: str
    column: str
    paper: Value | None
    ours: float | None = None
    deviation: float | None = None
    seeds: tuple[int, ...] = ()
    state: str = ""
    note: str = ""
    settings: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.ours is None or self.paper is None or self.paper.mean is None:
            return None
        return self.ours - self.paper.mean


def lines(place: Place) -> list[Line]:
    """Every number of an experiment's table, from files alone.

    Args:
        place: Where the experiment lies.

    Returns:
        In the order of the experiment; then rows made of others; then what only the paper has.
    """
    experiment = place.experiment
    published = _published(experiment.paper, experiment.name)
    found = []
    for entry in experiment.entries:
        paper = published.pop((entry.row, entry.column), None)
        found.append(_line(place, entry, paper))
    if experiment.summary is not None:
        numbers = {(x.row, x.column): x.ours for x in found if x.ours is not None}
        for (row, column), number in experiment.summary(numbers).items():
            paper = published.pop((row, column), None)
            found.append(Line(row, column, paper, number, note=experiment.summary_note))
    for (row, column), value in published.items():
        found.append(Line(row, column, value, state=NOT_RUN))
    return found


def _published(paper: str, name: str) -> dict[tuple[str, str], Value]:
    if name in paper_values(paper)["tables"]:
        return {k: v for k, v in paper_table(paper, name).items() if v.mean is not None}
    texts = paper_values(paper)["figures"][name]["values"]
    return {(row, "text"): Value(number) for row, number in texts.items()}


def _line(place: Place, entry: Entry, paper: Value | None) -> Line:
    jobs = [j for j in place.experiment.jobs() if j.cell.name == entry.cell]
    values: list[float] = []
    seeds: list[int] = []
    settings: dict[str, None] = {}
    state = NOT_RUN
    for job in jobs:
        try:
            for part in entry.measure.parts():
                part.check()
            read = reader(place, job)
            values.append(float(entry.measure.read(read)))
            seeds.append(job.seed)
            settings |= {_settings(place, job, part): None for part in entry.measure.parts()}
        except Missing:
            continue
        except (NotAvailable, Unavailable) as error:
            state = str(error)
    if not values:
        return Line(entry.row, entry.column, paper, state=state, note=entry.note)
    return Line(
        entry.row,
        entry.column,
        paper,
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
        tuple(seeds),
        "" if len(values) == len(jobs) else f"{len(values)} of {len(jobs)} seeds",
        entry.note,
        "; ".join(settings),
    )


class Missing(LookupError):
    """A measure has no result yet."""


def reader(place: Place, job: Job) -> Any:
    """A function from a measure to its result; it raises ``Missing`` where there is none."""

    def get(measure: Measure) -> Any:
        found = place.result(job, measure)
        if found is None:
            raise Missing
        return found["value"]

    return get


def _settings(place: Place, job: Job, measure: Measure) -> str:
    found = place.result(job, measure)
    words = [found["device"]]
    if isinstance(measure, Attacked):
        used, value = found["settings"], found["value"]
        words = [used["attack"], f"epsilon {value['epsilon']}", *words]
        words.insert(1, f"{value['examples']} {measure.part} examples")
    else:
        words = [f"{k} {v}" for k, v in found["settings"].items()] + words
    return ", ".join(words)


def warning(place: Place) -> str:
    """What differs from the paper's settings, for every table and figure; empty for nothing."""
    scale = place.experiment.scale.name
    if scale == "paper":
        return place.experiment.caution
    what = {
        "trial": "two steps of eight images; nothing is learnt",
        "cpu": "1,000 training images at half the height and width, 40 epochs, PreActResNet-10 of "
        "width 12, smaller shifts, at most 500 test images, 100 for attacks of thousands of passes",
        "smoke": "digits without AutoAugment and extra data, a small MLP, two epochs, few steps",
        "small": "5,000 training images, 20 epochs, a narrower network, fewer test images",
    }[scale]
    return f"NOT the paper's settings: scale {scale} ({what})."


def conditions(place: Place) -> list[str]:
    """What holds for all numbers and curves of an experiment, and may be otherwise in the paper.

    Args:
        place: Where the experiment lies.
    """
    experiment, scale = place.experiment, place.experiment.scale
    kept = set()
    for job in experiment.jobs():
        with contextlib.suppress(NotAvailable):
            if not job.cell.imported:
                kept.add(place.config(job).data.validation_examples)
    text = []
    if kept:
        counts = " or ".join(f"{count:,}" for count in sorted(kept))
        text.append(
            f"Trained without {counts} of the training images, which choose the checkpoint 'best'; "
            "the papers train on all of them."
        )
    measures = [m for cell in experiment.cells for m in experiment.measures(cell.name)]
    steps = scale_steps(scale, 10)
    for dims in (1, 2):
        found = [m for m in measures if isinstance(m, Landscape) and m.dims == dims]
        for part in sorted({m.part for m in found}):
            used = next(m for m in found if m.part == part).settings(scale)
            text.append(
                f"{dims}-D landscapes: PGD-{steps} anew at each of {used['points'] ** dims} "
                f"points, on {used['examples']:,} {part} images."
            )
    flat = next((m for m in measures if isinstance(m, Flatness)), None)
    if flat is not None:
        used = flat.settings(scale)
        text.append(
            f"Flatness: on {used['examples']:,} images, PGD-{scale_steps(scale, 20)}, "
            f"{scale.draws} draws (average case), the worst of {scale.restarts} restarts (worst "
            f"case), reference loss by {used['reference_restarts']} restarts."
        )
    return text


def markdown(place: Place, found: list[Line], problems: list[str]) -> str:
    """The table for people, with notes below.

    Args:
        place: Where the experiment lies.
        found: From ``lines``.
        problems: Cells that are not available, one sentence each.
    """
    experiment = place.experiment
    head = [f"# {experiment.full_name}: {experiment.title}", ""]
    caution = warning(place)
    if caution:
        head += [f"**{caution}** Differences below are between different experiments.", ""]
    head += _overview(found)
    remarks: dict[str, int] = {}
    rows = []
    for line in found:
        texts = [t for t in (line.note, line.settings) if t]
        if line.state and line.state != NOT_RUN:
            texts.insert(0, line.state)
        marks = [remarks.setdefault(text, len(remarks) + 1) for text in texts]
        ours = line.state if line.state == NOT_RUN else "not available"
        if line.ours is not None:
            ours = _number(line.ours, line.deviation)
            ours += f" (n={len(line.seeds)})" if line.seeds else ""
        paper = "-" if line.paper is None else _number(line.paper.mean, line.paper.deviation)
        gap = "" if line.difference is None else f"{line.difference:+.2f}"
        notes = " ".join(f"[{m}]" for m in sorted(marks))
        rows.append([line.row, line.column, paper, ours, gap, notes])
    if rows:
        header = ["row", "column", "paper", "ours", "difference", "notes"]
        head += [markdown_table(header, rows), ""]
    head += [f"[{number}] {text}." for text, number in remarks.items()]
    if problems:
        head += ["", "Not available:", "", *(f"- {p}" for p in problems)]
    if remaining := (*experiment.notes, *conditions(place)):
        head += ["", *(f"- {text}" for text in remaining)]
    if experiment.panels:
        head += ["", f"![{experiment.title}]({experiment.name}.png)"]
    return "\n".join(head).replace("..", ".") + "\n"


def _overview(found: list[Line]) -> list[str]:
    """Our numbers alone, a row each; nothing where that says no more than the long table."""
    ours = [line for line in found if line.ours is not None]
    rows, columns = (
        list(dict.fromkeys(values)) for values in ([x.row for x in ours], [x.column for x in ours])
    )
    if len(rows) < 2 or len(columns) < 4:
        return []
    known = {(x.row, x.column): _number(x.ours, x.deviation) for x in ours}
    table = [[column, *(known.get((row, column), "") for row in rows)] for column in columns]
    return ["Ours at a glance:", "", markdown_table(["", *rows], table), ""]


def _number(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "not in the text"
    # Two digits after the point, or as many as small numbers need to show two of their own.
    digits = 2 if not 0 < abs(mean) < 1 else max(2, 1 - math.floor(math.log10(abs(mean))))
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def comma_separated(place: Place, found: list[Line]) -> str:
    """The table for programs: one number per line, full precision."""
    scale = place.experiment.scale.name
    header = ["row", "column", "paper", "paper_sd", "ours", "ours_sd", "seeds", "difference"]
    header += ["scale", "paper_settings", "state", "note", "settings"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for line in found:
        paper = line.paper or Value(None)
        writer.writerow(
            [
                line.row,
                line.column,
                *(_blank(v) for v in (*paper, line.ours, line.deviation)),
                " ".join(map(str, line.seeds)),
                _blank(line.difference),
                scale,
                _at_paper_settings(place, line),
                line.state,
                line.note,
                line.settings,
            ]
        )
    return buffer.getvalue()


def _at_paper_settings(place: Place, line: Line) -> str:
    """Whether a number was made as the paper made it; see ``conditions`` for the images."""
    if line.ours is None or warning(place) or SUBSTITUTE in line.note:
        return "no"
    return "but for validation images"


def _blank(value: float | None) -> Any:
    return "" if value is None else value
