"""Runs the tables and figures of the papers: ``python -m experiments.run --help``."""

import argparse
import pathlib
import sys
import warnings
from collections.abc import Sequence

import absl.logging

from awp_jax import checks
from awp_jax.compilation import use_compilation_cache, use_fast_convolutions
from awp_jax.data import DataError
from awp_jax.extras import MissingExtraError
from awp_jax.files import StorageError, write_text
from awp_jax.reporting import markdown_table, save_figure
from awp_jax.training import NonFiniteError
from experiments._build import experiment, names, takes_imported
from experiments._cells import Experiment, Job
from experiments._panels import figure
from experiments._runs import Place, run_job
from experiments._scales import SCALES
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
    """Runs experiments; returns the exit status.

    0 done; 1 a loss became infinite, or the disk is full; 2 wrong use, bad input, or data of some
    cells is missing.
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
    except (ValueError, OSError, MissingExtraError) as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        return 1 if isinstance(error, StorageError) else 2
    except KeyboardInterrupt:
        print("experiments.run: interrupted; the same command goes on.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    scale = SCALES[checks.choice(arguments.scale, SCALES, "scale")]
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
    """Papers and ``all`` as the names of their experiments."""
    inside = {w: [n for n in names() if w in ("all", n.partition(".")[0])] for w in wanted}
    return list(dict.fromkeys(name for w in wanted for name in inside[w] or [w]))


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
    """The cells whose names have all parts of ``only``, with these seeds.

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
    """The part that one machine of a job array runs: number ``cell`` of ``cells`` shares.

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
        place.claim(job, write=False)
    for number, job in enumerate(jobs, start=1):
        head = f"{place.experiment.full_name} [{number}/{len(jobs)}] {job.label}"
        try:
            problems = run_job(place, job)
        except (NonFiniteError, DataError) as error:
            print(f"{head}: {error}", file=sys.stderr)
            status = max(status, 2 if isinstance(error, DataError) else 1)
            continue
        print("\n".join([f"{head}: done", *problems]), file=sys.stderr, flush=True)
    return status


def gather(place: Place) -> list[pathlib.Path]:
    """Writes the table and the figure of what has been measured; returns the files."""
    one = place.experiment
    problems = dict.fromkeys(filter(None, map(place.lacks, one.jobs())))
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
    """What ``--dry-run`` prints: every cell with its work, and in a work directory its state."""
    one = place.experiment
    estimates = [estimate(one, job) for job in jobs]
    problems = [place.lacks(job) for job in jobs]
    rows = []
    for index, (job, work, problem) in enumerate(zip(jobs, estimates, problems, strict=True)):
        done = with_state and place.is_done(job)
        state = "done" if done else "see below" if problem else "to run"
        numbers = [f"{flops / 1e12:,.3g}" for flops in (work.training, work.evaluation)]
        rows.append([str(index), job.cell.name, str(job.seed), f"{work.steps:,}", *numbers, state])
    header = ["cell", "name", "seed", "steps", "training TFLOP", "evaluation TFLOP", "state"]
    training, evaluation = (sum(w[i] for w in estimates) / 1e15 for i in (1, 2))
    text = [
        f"{one.full_name} at scale {one.scale.name}: {one.title}",
        "",
        markdown_table(header, rows),
        "",
        f"{len(jobs)} cells, {sum(w.steps for w in estimates):,} steps, {training:,.3g} PFLOP of "
        f"training, {evaluation:,.3g} PFLOP of evaluation (runs that other cells share counted "
        "each time; attacks that stop early counted in full).",
    ]
    if jobs and one.scale.name == "paper":
        text.append(f"The first is: awp-jax train {jobs[0].cell.command(jobs[0].seed)}")
    text += [f"- {problem}" for problem in dict.fromkeys(filter(None, problems))]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
