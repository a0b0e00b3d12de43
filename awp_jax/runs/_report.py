"""Runs side by side: one table, learning curves, landscapes, from their files alone."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from awp_jax import results
from awp_jax.files import write_text
from awp_jax.reporting import (
    Measured,
    comparison_panel,
    evaluation_note,
    evaluation_table,
    falls_after_best,
    landscape_comparison,
    learning_curves,
    noise_note,
    read_landscape,
    robust_accuracies,
    save_figure,
    seed_table,
)
from awp_jax.runs._kept import OTHERS, read_evaluation
from awp_jax.training import WorkdirError, read_config, read_metrics


class Report(NamedTuple):
    """Runs side by side.

    Attributes:
        table: Markdown: accuracies of every run, means over seeds, and what else was measured.
        curves: By name of the run, the lines of its ``metrics.jsonl``.
        landscapes: By name of the run, its one-dimensional landscape, where there is one.
        measured: By name of the run, what says how robust it is.
    """

    table: str
    curves: dict[str, list[Any]]
    landscapes: dict[str, dict[str, Any]]
    measured: dict[str, Measured]

    def plot(self, axes: Any = None) -> Any:
        """Draws test accuracies as bars: for each attack one of every run.

        Of the checkpoint ``best`` where it was measured; an attack that a run was not measured
        under has no bar.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes, width=6.4)
        comparison_panel(axes, {name: one.evaluation or {} for name, one in self.measured.items()})
        return axes

    def figures(self) -> dict[str, Any]:
        """Matplotlib figures by name: ``learning_curves``, ``landscape``."""
        found = {}
        if any(self.curves.values()):  # imported runs have none
            notes = dict.fromkeys(
                evaluation_note(self.measured[name].config, records)
                for name, records in self.curves.items()
                if records
            )
            found["learning_curves"] = learning_curves(
                self.curves, self.landscapes, "\n".join(notes)
            )
        if self.landscapes:
            found["landscape"] = landscapes_together(self.landscapes, self.measured)
        return found

    def save(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
        """Writes ``report.md`` and the figures, as PNG and PDF; returns the files."""
        folder = pathlib.Path(folder)
        files = [
            file
            for name, figure in self.figures().items()
            for file in save_figure(figure, folder / name)
        ]
        write_text(folder / "report.md", self.table + "\n")
        return [folder / "report.md", *files]

    def __repr__(self) -> str:
        return results.cut(self.table, "print(found.table)")


def measured_of(workdir: pathlib.Path) -> Measured:
    """What a run directory says of robust accuracy."""
    return Measured(read_config(workdir), read_evaluation(workdir), read_metrics(workdir))


def landscapes_together(
    landscapes: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Measured]
) -> Any:
    """The figure that compares landscapes of runs.

    Args:
        landscapes: By name of the run, from ``awp_jax.reporting.read_landscape``.
        measured: By name of the run, from ``measured_of``.

    Returns:
        A matplotlib figure.
    """
    steps = {
        name: {which: one["step"] for which, one in found["checkpoints"].items()}
        for name, found in landscapes.items()
    }
    runs = {name: measured[name] for name in landscapes}
    return landscape_comparison(landscapes, *robust_accuracies(runs, steps))


def compare(workdirs: Sequence[str | pathlib.Path]) -> Report:
    """Evaluated runs side by side.

    Args:
        workdirs: Run directories, of different names.

    Returns:
        A ``Report``; ``print`` shows its table, ``save`` writes it with figures.

    Raises:
        WorkdirError: For a directory that is no run, or has not been evaluated.
        ValueError: For two of one name.
    """
    measured: dict[str, Measured] = {}
    landscapes: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for workdir in map(pathlib.Path, workdirs):
        name = workdir.name
        if name in measured:
            raise ValueError(f"Two run directories are called {name!r}.")
        measured[name] = measured_of(workdir)
        evaluation = measured[name].evaluation
        if evaluation is None:
            raise WorkdirError(
                f"{workdir} has not been evaluated: run awp-jax evaluate --workdir={workdir} first."
            )
        for one in evaluation.get(OTHERS, []):
            if not one.get("superseded"):  # of weights that the run no longer has
                others[f"{name} ({len(others) + 1})"] = one
        if (workdir / "landscape.json").exists():
            landscape = read_landscape(workdir)
            if landscape["settings"]["dims"] == 1:
                landscapes[name] = landscape
    evaluations = {name: run.evaluation or {} for name, run in measured.items()}
    table = evaluation_table(evaluations)
    noisy = {name: noise_note(run.config) for name, run in measured.items()}
    for note in dict.fromkeys(filter(None, noisy.values())):
        table += f" {', '.join(name for name in noisy if noisy[name] == note)}: {note}."
    falls = falls_after_best(evaluations)
    if falls:
        table += f"\n\n{falls}"
    over_seeds = seed_table(evaluations)
    if over_seeds:
        table += f"\n\nMean and standard deviation over seeds:\n\n{over_seeds}"
    if others:
        table += "\n\nAlso measured, with other settings or on fewer examples:\n\n"
        table += evaluation_table(others)
    curves = {name: list(run.records) for name, run in measured.items()}
    return Report(table, curves, landscapes, measured)
