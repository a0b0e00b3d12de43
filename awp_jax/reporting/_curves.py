"""Figures of learning curves from run directories."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from awp_jax.reporting._landscape_curves import change_panel
from awp_jax.reporting._style import COLOURS, MARKERS, SETS
from awp_jax.results import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    landscapes: Mapping[str, Mapping[str, Any]] | None = None,
    note: str = "",
) -> "Figure":
    """Clean and robust accuracy over epochs, and the robust generalisation gap.

    Args:
        runs: By name, the records of ``metrics.jsonl`` (``awp_jax.training.read_metrics``).
        landscapes: By name, one-dimensional landscapes (``read_landscape``), for a panel more.
        note: Above the panels: what the numbers need, such as ``evaluation_note`` says.

    Returns:
        A matplotlib figure; save it with ``save_figure``.

    Raises:
        ValueError: When no run has been evaluated while it trained.
    """
    count = 4 if landscapes else 3
    figure = new_figure(3.5 * count, 3.4)
    axes = figure.subplots(1, count)
    titles = ("Natural accuracy", "Robust accuracy", "Robust generalisation gap")
    drawn = False
    for index, (name, records) in enumerate(runs.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        evaluations = [r for r in records if r["kind"] == "evaluation"]
        drawn = drawn or bool(evaluations)
        for place, kind in enumerate(("clean_accuracy", "robust_accuracy")):
            for part, style in SETS.items():
                points = [(r["epoch"], 100 * r[part][kind]) for r in evaluations if part in r]
                if points:
                    axes[place].plot(
                        *zip(*points, strict=True),
                        style,
                        color=colour,
                        label=f"{name}, {part}",
                        marker=marker if part == "test" else None,
                        markersize=4,
                    )
        gaps = [
            (r["epoch"], 100 * (r["train"]["robust_accuracy"] - r["test"]["robust_accuracy"]))
            for r in evaluations
            if "train" in r
        ]
        if gaps:
            axes[2].plot(
                *zip(*gaps, strict=True), color=colour, label=name, marker=marker, markersize=4
            )
    if not drawn:
        raise ValueError("None of the runs holds evaluations: were they trained?")
    axes[2].axhline(0, color="0.6", linewidth=0.8)
    if landscapes:
        change_panel(axes[3], landscapes, list(runs))
    for axis, title in zip(axes[:3], titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylabel("train minus test (points)" if "gap" in title else "accuracy (%)")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    if note:
        figure.suptitle(note, fontsize=8)
    return figure


def evaluation_note(
    config: Mapping[str, Any], records: Sequence[Mapping[str, Any]], device: str = ""
) -> str:
    """What the numbers of a learning curve need, as one line.

    Args:
        config: Of the run, as ``awp_jax.training.read_config`` gives it.
        records: Of ``metrics.jsonl``.
        device: What it ran on, if that is known.

    Returns:
        Data, model, attack, radius, the number of examples of each set, and the seed.
    """
    attack, settings = config["attack"], config["evaluation"]
    last: Mapping[str, Any] = next((r for r in records if r["kind"] == "evaluation"), {})
    counts = ", ".join(f"{last[part]['examples']} {part}" for part in SETS if part in last)
    parts = [
        f"{config['data']['name']}, {config['model']['name']}",
        f"PGD-{settings['steps']}, {attack['norm']} epsilon "
        f"{settings['epsilon'] or attack['epsilon']}, step "
        f"{settings['step_size'] or attack['step_size']}",
        f"{counts} examples" if counts else "",
        noise_note(config),
        f"seed {config['seed']}",
        device,
    ]
    return "; ".join(part for part in parts if part)


def noise_note(config: Mapping[str, Any]) -> str:
    """That training labels are wrong, where they are: train accuracies are against these."""
    share = config["data"].get("label_noise", 0.0)
    return f"train: {100 * share:g} % of its labels drawn at random" if share else ""


def save_figure(figure: "Figure", path: str | pathlib.Path) -> list[pathlib.Path]:
    """Saves a figure as PNG and as PDF.

    Args:
        figure: Any matplotlib figure.
        path: Without suffix; the folder is made when it is not there.

    Returns:
        The two files.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files
