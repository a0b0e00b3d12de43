"""The table of an experiment: the paper's numbers, ours, and the difference."""

import csv
import io
import math
import statistics
from typing import NamedTuple

from awp_jax.reporting import markdown_table
from experiments._cells import SUBSTITUTE, Entry, Job
from experiments._measures import Attacked, Flatness, Landscape, Measure
from experiments._runs import Place
from experiments._values import Value, paper_numbers

NOT_RUN = "not run"


class Line(NamedTuple):
    """One number beside the paper's, where there are such: ``ours`` is the mean over ``seeds``.

    ``state`` is ``""``, ``"not run"``, or how many seeds are done; ``settings`` are attack,
    examples, epsilon and device, as text.
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

    In the order of the experiment; then rows made of others; then what only the paper has.
    """
    experiment = place.experiment
    published = paper_numbers(experiment.paper, experiment.name)
    found = [_line(place, e, published.pop((e.row, e.column), None)) for e in experiment.entries]
    if experiment.summary is not None:
        numbers = {(x.row, x.column): x.ours for x in found if x.ours is not None}
        for (row, column), number in experiment.summary(numbers).items():
            paper = published.pop((row, column), None)
            found.append(Line(row, column, paper, number, note=experiment.summary_note))
    for (row, column), value in published.items():
        found.append(Line(row, column, value, state=NOT_RUN))
    return found


def _line(place: Place, entry: Entry, paper: Value | None) -> Line:
    row, column, cell, measure, note = entry
    found = place.values(cell, measure)
    if not found:
        return Line(row, column, paper, state=NOT_RUN, note=note)
    values, seeds = [float(value) for value in found.values()], tuple(job.seed for job in found)
    mean, deviation = statistics.fmean(values), statistics.stdev(values) if values[1:] else None
    wanted = len(place.experiment.jobs(cell))
    state = "" if len(values) == wanted else f"{len(values)} of {wanted} seeds"
    how = "; ".join(dict.fromkeys(_settings(place, j, m) for j in found for m in measure.parts()))
    return Line(row, column, paper, mean, deviation, seeds, state, note, how)


def _settings(place: Place, job: Job, measure: Measure) -> str:
    found = place.result(job, measure)
    used, value = found["settings"], found["value"]
    words = [f"{key} {chosen}" for key, chosen in used.items()]
    if isinstance(measure, Attacked):
        words = [used["attack"], f"{value['examples']} {measure.part} examples"]
        words.append(f"epsilon {value['epsilon']}")
    return ", ".join([*words, found["device"]])


def warning(place: Place) -> str:
    """What differs from the paper's settings, for every table and figure; empty for nothing."""
    scale = place.experiment.scale
    if scale.name == "paper":
        return place.experiment.caution
    return f"NOT the paper's settings: scale {scale.name} ({scale.differs})."


def conditions(place: Place) -> list[str]:
    """What holds for all numbers and curves of an experiment, and may be otherwise in the paper."""
    experiment, scale = place.experiment, place.experiment.scale
    trained = [job for job in experiment.jobs() if not job.cell.imported]
    text = []
    if kept := sorted({place.config(job).data.validation_examples for job in trained}):
        counts = " or ".join(f"{count:,}" for count in kept)
        text.append(
            f"Trained without {counts} of the training images, which choose the checkpoint 'best'; "
            "the papers train on all of them."
        )
    measures = [m for cell in experiment.cells for m in experiment.measures(cell)]
    surfaces = {(m.dims, m.part): m for m in measures if isinstance(m, Landscape)}
    for (dims, part), surface in sorted(surfaces.items(), key=lambda item: item[0]):
        used = surface.settings(scale)
        text.append(
            f"{dims}-D landscapes: PGD-{scale.steps(10)} anew at each of {used['points'] ** dims} "
            f"points, on {used['examples']:,} {part} images."
        )
    if any(isinstance(m, Flatness) for m in measures):
        used = Flatness().settings(scale)
        text.append(
            f"Flatness: on {used['examples']:,} images, PGD-{scale.steps(20)}, "
            f"{scale.draws} draws (average case), the worst of {scale.restarts} restarts (worst "
            f"case), reference loss by {used['reference_restarts']} restarts."
        )
    return text


def markdown(place: Place, found: list[Line], problems: list[str]) -> str:
    """The table for people, with notes below; ``problems`` are of cells that cannot be run."""
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
        ours = NOT_RUN if line.ours is None else _number(line.ours, line.deviation)
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
        numbers = (*(line.paper or Value(None)), line.ours, line.deviation)
        seeds = " ".join(map(str, line.seeds))
        at_paper = _at_paper_settings(place, line)
        words = (scale, at_paper, line.state, line.note, line.settings)
        # csv writes None as an empty field
        writer.writerow([line.row, line.column, *numbers, seeds, line.difference, *words])
    return buffer.getvalue()


def _at_paper_settings(place: Place, line: Line) -> str:
    """Whether a number was made as the paper made it; see ``conditions`` for the images."""
    if line.ours is None or warning(place) or SUBSTITUTE in line.note:
        return "no"
    return "but for validation images"
