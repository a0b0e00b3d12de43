"""Runs the tables and figures of the papers: ``python -m experiments.run --help``."""

import argparse
import pathlib
import sys
import warnings
from collections.abc import Sequence

import absl.logging

from awp_jax.compilation import use_compilation_cache, use_fast_convolutions
from awp_jax.data import DataError
from awp_jax.files import StorageError, write_text
from awp_jax.reporting import markdown_table, save_figure
from awp_jax.training import NonFiniteError
from experiments._build import command
from experiments._cells import Experiment, Job, NotAvailable
from experiments._figure import figure
from experiments._registry import PAPERS, experiment, names, takes_imported
from experiments._runs import Place, availability, is_done, run_job
from experiments._scales import SCALES, scale_by_name
from experiments._tables import comma_separated, lines, markdown
from experiments._work import estimate

_ABOUT = (
    "Runs the cells of a table or a figure of a paper that are missing, goes on with those that "
    "were stopped, and writes the paper's numbers beside ours into WORKDIR/EXPERIMENT/SCALE/."
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description=_ABOUT,
        epilog="experiments: " + ", ".join(names()),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("experiments", nargs="+", help="such as neurips2020.table1; a paper; or all")
    add("--scale", default="smoke", help=f"{', '.join(SCALES)} (default: smoke)")
    add("--workdir", help="where runs and results lie")
    add("--only", help="only cells whose names have these parts, such as cifar10,linf")
    add("--seeds", help="only runs of these seeds, such as 0 or 0,1")
    add("--dry-run", action="store_true", help="list cells with estimated work; run nothing")
    add("--cell", type=int, help="run one share of the cells, from 0, and write no table")
    add("--cells", type=int, help="in how many shares; as many as there are cells by default")
    add("--gather", action="store_true", help="only write tables and figures of what is there")
    add(
        "--imported",
        help="run directories of published models ('awp-jax import'), separated by commas, for "
        "iccv2021.figure1 and iccv2021.figure9",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs experiments.

    Args:
        argv: Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0 done; 1 a loss became infinite, or the disk is full; 2 wrong use, bad input,
        or data of some cells is missing.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax reports much that users need not see
    use_fast_convolutions()
    use_compilation_cache()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("experiments.run: interrupted; the same command goes on.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    scale = scale_by_name(arguments.scale)
    wanted = _expanded(arguments.experiments)
    imported = [name.strip() for name in (arguments.imported or "").split(",") if name.strip()]
    chosen = [experiment(name, scale, imported) for name in wanted]
    if imported and not any(map(takes_imported, wanted)):
        raise ValueError(f"--imported is given, but {', '.join(wanted)} shows no published models.")
    if not arguments.workdir and not arguments.dry_run:
        raise ValueError("--workdir is missing.")
    status = 0
    for one, jobs in _selected(chosen, arguments.only, arguments.seeds):
        place = Place(arguments.workdir or "", one)
        jobs = share(jobs, arguments.cell, arguments.cells)
        if arguments.dry_run:
            print(describe(place, jobs, arguments.workdir is not None))
            continue
        if not arguments.gather:
            status = max(status, _execute(place, jobs))
        if arguments.cell is None or arguments.gather:
            print("\n".join(map(str, gather(place))))
    return status


def _expanded(wanted: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in wanted:
        if name == "all" or name in PAPERS:
            inside = [n for n in names() if name in ("all", n.partition(".")[0])]
            found |= dict.fromkeys(inside)
        else:
            found[name] = None
    return list(found)


def _selected(
    chosen: Sequence[Experiment], only: str | None, seeds: str | None
) -> list[tuple[Experiment, tuple[Job, ...]]]:
    """The cells of every experiment, before any is run; of several those that have some."""
    found, problem = [], None
    for one in chosen:
        try:
            found.append((one, select(one, only, seeds)))
        except ValueError as error:
            problem = error
    if problem and not found:
        raise problem
    return found


def select(one: Experiment, only: str | None, seeds: str | None = None) -> tuple[Job, ...]:
    """The cells that ``--only`` and ``--seeds`` ask for.

    Args:
        one: The experiment.
        only: Parts of names, all of which a cell must have; ``None`` for all cells.
        seeds: Numbers with commas; ``None`` for all seeds.

    Raises:
        ValueError: When no cell has them, with the names or the seeds there are.
    """
    jobs = one.jobs()
    if seeds is not None:
        wanted = {seed.strip() for seed in seeds.split(",")}
        jobs = tuple(job for job in jobs if str(job.seed) in wanted)
        if not jobs:
            known = ", ".join(map(str, sorted({job.seed for job in one.jobs()})))
            raise ValueError(
                f"No run of {one.full_name} has a seed of {seeds!r}; at scale {one.scale.name} "
                f"there are {known}."
            )
    if only is None:
        return jobs
    words = {word.strip() for word in only.split(",") if word.strip()}
    found = tuple(j for j in jobs if words <= set(j.cell.name.split(",")))
    if not found or not words:
        known = "\n".join(f"  {cell.name}" for cell in one.cells)
        raise ValueError(
            f"No cell of {one.full_name} has all of {only!r} in its name. There are:\n{known}"
        )
    return found


def share(jobs: Sequence[Job], cell: int | None, cells: int | None) -> tuple[Job, ...]:
    """The part of the cells that one machine of a job array runs.

    Args:
        jobs: All of them.
        cell: Index of the machine, from 0; ``None`` for all cells.
        cells: Number of machines; ``None``: one per cell.

    Raises:
        ValueError: For an index that is not below the number of shares.
    """
    if cell is None:
        if cells is not None:
            raise ValueError("--cells is given without --cell.")
        return tuple(jobs)
    count = len(jobs) if cells is None else cells
    if count < 1 or not 0 <= cell < count:
        raise ValueError(f"--cell is {cell}, but a number from 0 to {count - 1} was expected.")
    return tuple(jobs[cell::count])


def _execute(place: Place, jobs: Sequence[Job]) -> int:
    """Runs cells; the exit status: one that cannot be trained does not stop the others."""
    status = 0
    for job in jobs:  # before anything is trained
        try:
            place.check(job, place.config(job))
        except NotAvailable:
            continue
    for number, job in enumerate(jobs, start=1):
        head = f"{place.experiment.full_name} [{number}/{len(jobs)}] {job.label}"
        try:
            problems = run_job(place, job)
        except NotAvailable as error:
            print(f"{head}: {error}", file=sys.stderr)
            continue
        except NonFiniteError as error:
            print(f"{head}: {error}", file=sys.stderr)
            status = max(status, 1)
            continue
        except DataError as error:
            print(f"{head}: {error}", file=sys.stderr)
            status = 2
            continue
        print("\n".join([f"{head}: done", *problems]), file=sys.stderr, flush=True)
    return status


def gather(place: Place) -> list[pathlib.Path]:
    """Writes the table and the figure of what has been measured.

    Args:
        place: Where the experiment lies.

    Returns:
        The files.
    """
    one = place.experiment
    problems = dict.fromkeys(p for job in one.jobs() for p in availability(place, job))
    found = lines(place)
    files = [place.folder / f"{one.name}.md"]
    drawing = figure(place)
    write_text(files[0], markdown(place, found, list(problems)))
    if found:
        files.append(place.folder / f"{one.name}.csv")
        write_text(files[-1], comma_separated(place, found))
    if drawing is not None:
        files += save_figure(drawing, place.folder / one.name)
    return files


def describe(place: Place, jobs: Sequence[Job], with_state: bool) -> str:
    """What ``--dry-run`` prints: every cell with its work.

    Args:
        place: Where the experiment lies.
        jobs: The cells.
        with_state: Whether there is a work directory to look into.
    """
    one = place.experiment
    rows, steps, training, evaluation = [], 0, 0.0, 0.0
    problems: dict[str, None] = {}
    for index, job in enumerate(jobs):
        known = availability(place, job)
        problems |= dict.fromkeys(known)
        try:
            work = estimate(one, job)
        except NotAvailable:
            rows.append([str(index), job.cell.name, str(job.seed), "", "", "", "not available"])
            continue
        state = "see below" if known else "to run"
        if with_state and is_done(place, job):
            state = "done"
        numbers = [f"{work.training / 1e12:,.3g}", f"{work.evaluation / 1e12:,.3g}"]
        rows.append([str(index), job.cell.name, str(job.seed), f"{work.steps:,}", *numbers, state])
        steps, training = steps + work.steps, training + work.training
        evaluation += work.evaluation
    header = ["cell", "name", "seed", "steps", "training TFLOP", "evaluation TFLOP", "state"]
    text = [
        f"{one.full_name} at scale {one.scale.name}: {one.title}",
        "",
        markdown_table(header, rows),
        "",
        f"{len(jobs)} cells, {steps:,} steps, {training / 1e15:,.3g} PFLOP of training, "
        f"{evaluation / 1e15:,.3g} PFLOP of evaluation (runs that other cells share counted each "
        "time; attacks that stop early counted in full).",
    ]
    if jobs and one.scale.name == "paper":
        text.append(f"The first is: awp-jax train {command(jobs[0].cell, jobs[0].seed)}")
    text += [f"- {problem}" for problem in problems]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
