"""Every experiment at every scale: its cells, their configs, their work."""

import dataclasses

import pytest

from awp_jax import checks
from awp_jax import config as schema
from awp_jax.training import plain
from experiments import SCALES, experiment, names, paper_table
from experiments._cells import digest
from experiments._work import estimate

# Cells of every table, counted in the paper; Table 3 of the first version needs a surrogate on
# CIFAR-10 and a copy of each of the six models on MNIST.
CELLS = {
    "arxiv_v1.table1": 4,
    "arxiv_v1.table2": 14,
    "arxiv_v1.table3": 14 + 1 + 6,
    "arxiv_v1.footnote4": 3,
    "neurips2020.table1": 12,
    "neurips2020.table2": 10,
    "neurips2020.table3": 12,
    "neurips2020.table4": 6,
    "neurips2020.table5": 6,
    "ijcai2022.table1": 18,
    "ijcai2022.table2": 9,
    "iccv2021.table1": 19,
    "comparison.cifar10": 5,
}
FIGURES = {"arxiv_v1": (1, 2, 3), "neurips2020": range(1, 12), "ijcai2022": (1, 2)}
FIGURES["iccv2021"] = (1, 2, 4, 5, 6, 7, 8, 9)


def configs(scale):
    for name in names():
        one = experiment(name, scale)
        first = {j.cell.name: j for j in reversed(one.jobs())}
        for job in first.values():
            yield name, job, job.cell.at(scale, job.seed)


def test_all_tables_and_figures_are_there():
    wanted = {f"{paper}.figure{n}" for paper, numbers in FIGURES.items() for n in numbers}
    assert set(names()) == wanted | set(CELLS)


# Figure 3 of AWP has random perturbations of twice the weights' size.
@pytest.mark.filterwarnings("ignore:weights.gamma is")
@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_unique_and_their_configs_valid(scale):
    count = 0
    for name, job, found in configs(SCALES[scale]):
        count += 1
        assert found.seed == job.seed, name
        assert schema.validate(found).to_json() == found.to_json()
    assert count > 150
    for name in names():
        one = experiment(name, SCALES[scale])
        assert len({(j.cell.name, j.seed) for j in one.jobs()}) == len(one.jobs())
        assert all(len(note) > 20 for note in one.notes), name  # sentences, not letters
        assert all(one.measures(cell) or "surrogate" in cell.name or "copy" in cell.name
                   for cell in one.cells), name  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_tables_have_the_papers_cells(name):
    one = experiment(name, SCALES["paper"])
    assert len(one.cells) == CELLS[name]
    published = {key for key, v in paper_table(*name.split(".")).items() if v.mean is not None}
    entered = {(e.row, e.column) for e in one.entries}
    groups = {key for key in published if key[0] in ("Good", "Average", "Poor")}
    own = {key for key in entered if "validation" in key[1] or name.startswith("comparison")}
    assert published - groups >= entered - own and entered >= published - groups
    assert {e.cell.name for e in one.entries} <= {cell.name for cell in one.cells}
    runs = {"neurips2020": 5, "ijcai2022": 5, "comparison": 3}.get(one.paper, 1)
    assert len(one.jobs()) == runs * len(one.cells)


def test_table2_reports_the_best_checkpoint_per_attack_and_the_one_of_validation():
    one = experiment("neurips2020.table2", SCALES["paper"])
    by = {(e.row, e.column): e.measure for e in one.entries}
    compared = [m.checkpoint for m in by["AT", "AA"].parts()]
    assert {"best", "last", "50%", "90%"} <= set(compared)
    assert [m.checkpoint for m in by["AT", "AA, validation"].parts()] == ["best"]
    results = {m: {"accuracy": 0.5 + 0.01 * i} for i, m in enumerate(by["AT", "AA"].parts())}
    assert by["AT", "AA"].read(results.get) == pytest.approx(50 + len(compared) - 1)
    assert by["AT", "AA, validation"].read(results.get) == pytest.approx(50)


def test_configs_are_those_of_the_papers():
    def config(name, cell):
        one = experiment(name, SCALES["paper"])
        return one.cell(cell).paper_config()

    awp = config("neurips2020.table1", "cifar100,l2,at-awp")
    assert (awp.attack.norm, awp.attack.epsilon, awp.attack.step_size) == (
        "l2",
        "128/255",
        "15/255",
    )
    assert (awp.data.name, awp.weights.gamma, awp.epochs) == ("cifar100", "0.01", 200)
    wide = config("neurips2020.table2", "table2,trades-awp")
    assert (wide.model.name, wide.weights.gamma, wide.objective.beta) == ("wrn-34-10", "0.005", 6.0)
    assert config("neurips2020.figure2", "cifar10,linf,at-awp,steps=5").weights.steps == 5
    cyclic = config("neurips2020.figure7", "cifar10,linf,at,cyclic")
    assert (cyclic.schedule.name, cyclic.optimizer.learning_rate) == ("cyclic", 0.2)
    fgsm = config("arxiv_v1.footnote4", "cifar10,at-awp,fgsm").attack
    assert (fgsm.steps, fgsm.step_size) == (1, "8/255")
    # First version, section 4.2: epsilon / 10; section 4.1 and the caption of Figure 1: 0.01.
    steps = {
        ("table2", "mnist,at"): 0.03,
        ("table2", "cifar10-wrn,at"): 0.8 / 255,
        ("table1", "cifar10,at"): 0.01,
        ("figure1", "cifar10-wrn,at,wrn-28-10"): 0.01,
    }
    for (name, cell), step in steps.items():
        text = config(f"arxiv_v1.{name}", cell).evaluation.step_size
        assert checks.radius(text) == pytest.approx(step)
    flat = config("iccv2021.table1", "at")
    assert (flat.epochs, flat.batch_size, flat.attack.steps) == (150, 128, 7)
    assert (flat.optimizer.learning_rate, flat.optimizer.weight_decay) == (0.05, 0.005)
    assert [round(m * 150) for m in flat.schedule.milestones] == [60, 90, 120]
    larger = config("iccv2021.table1", "larger-epsilon")
    assert (larger.attack.epsilon, larger.evaluation.epsilon) == ("9/255", "8/255")


def test_commands_are_those_of_the_config_files():
    one = experiment("neurips2020.figure2", SCALES["paper"])
    cell = one.cell("cifar10,linf,at-awp,gamma=0.02")
    assert cell.command(3) == (
        "--config=configs/neurips2020.py:cifar10,linf,at-awp --config.weights.gamma=0.02 "
        "--config.seed=3"
    )


def test_scales_shrink_what_costs_and_keep_the_method():
    one = {name: experiment("neurips2020.table2", s) for name, s in SCALES.items()}
    cell = one["small"].cell("table2,trades-awp")
    paper, small, smoke = (cell.at(SCALES[s], 0) for s in ("paper", "small", "smoke"))
    assert (small.epochs, small.data.train_examples, small.model.name) == (20, 5000, "wrn-16-2")
    assert (small.weights.start_epoch, smoke.weights.start_epoch) == (1, 0)  # epoch 10 of 200
    assert (smoke.data.name, smoke.model.name, smoke.epochs) == ("digits", "mlp", 2)
    cpu, trial = (cell.at(SCALES[s], 0) for s in ("cpu", "trial"))
    assert (cpu.model.name, cpu.data.downsample, cpu.weights.start_epoch) == (
        "preact-resnet-10", 2, 2,
    )  # fmt: skip
    # A trial compiles what the paper's scale runs: two steps of the same model and attack.
    assert (trial.model, trial.attack) == (paper.model, paper.attack)
    assert (trial.epochs, trial.data.train_examples // trial.batch_size) == (1, 2)
    for config in (small, smoke, cpu, trial):
        assert config.objective.name == "trades"
        assert config.weights.method == "awp"
        assert config.weights.gamma == paper.weights.gamma
    # What only another data set or schedule tells apart is one run at smoke.
    table1 = experiment("neurips2020.table1", SCALES["smoke"])
    runs = {digest(j.cell.at(SCALES["smoke"], j.seed)) for j in table1.jobs()}
    assert len(runs) == 4  # two norms, two methods


def test_the_comparison_has_the_papers_settings_but_for_its_length():
    one = experiment("comparison.cifar10", SCALES["paper"])
    mine, papers = {}, {}
    for method in ("at", "at-awp", "trades", "trades-awp"):
        table = experiment("neurips2020.figure1", SCALES["paper"])
        cell = dataclasses.replace(table.cells[0], config=f"neurips2020:cifar10,linf,{method}")
        mine[method], papers[method] = one.cell(method).at(one.scale, 0), cell.at(one.scale, 0)
        assert (mine[method].epochs, mine[method].model.dtype) == (60, "bfloat16")
        papers[method].epochs, papers[method].model.dtype = 60, "bfloat16"
        papers[method].checkpoint.keep_every_epochs = 6
        papers[method].weights.start_epoch = papers[method].weights.start_epoch * 60 // 200
    assert {m: plain(c) for m, c in mine.items()} == {m: plain(c) for m, c in papers.items()}
    # What stands beside its numbers is what the papers' own tables have.
    known = paper_table("comparison", "cifar10")
    for method in ("AT", "AT-AWP"):
        for column in ("best", "last"):
            row = f"CIFAR-10 Linf {method}"
            natural = paper_table("neurips2020", "table3")[row, f"natural {column}"]
            robust = paper_table("neurips2020", "table1")[f"Linf {method}", f"CIFAR-10 {column}"]
            assert known[method, f"natural {column}"] == natural
            assert known[method, f"PGD-20 {column}"] == robust
    for column in ("best", "last"):
        rwp = paper_table("ijcai2022", "table1")["Linf AT-RWP", f"CIFAR-10 {column}"]
        assert known["AT-RWP", f"PGD-20 {column}"] == rwp


def preact_resnet_18():
    """FLOPs of its convolutions on 32 x 32 images, by hand; taps on the padding do not count."""
    taps = (3 * 32 - 2) ** 2  # of a 3 x 3 kernel over the image
    total = taps * 3 * 64 + 4 * taps * 64 * 64
    for size, width in ((16, 128), (8, 256), (4, 512)):
        taps, strided = (3 * size - 2) ** 2, (3 * size - 1) ** 2
        total += 3 * taps * width**2 + (strided + size**2) * width * width // 2
    return 2 * (total + 512 * 10)


def test_work_is_counted_from_the_forward_pass():
    one = experiment("neurips2020.table1", SCALES["paper"])
    jobs = {j.cell.name: j for j in one.jobs() if j.seed == 0}
    at, awp = (estimate(one, jobs[f"cifar10,linf,{m}"]) for m in ("at", "at-awp"))
    assert at.steps == 200 * 383  # 49,000 images in batches of 128, the last smaller
    # AT is 10 attack passes of 2 and 1 of 3, 200 epochs of 49,000 images.
    evaluations = 200 * 3000 * 42
    forward = at.training / (200 * 49_000 * 23 + evaluations)
    assert forward == pytest.approx(preact_resnet_18(), rel=0.02)  # BatchNorm and ReLU beside
    # AWP adds one gradient in the weights.
    assert awp.training / at.training == pytest.approx(
        1 + 3 * 9.8e6 / (9.8e6 * 23 + 25.2e6), rel=1e-3
    )


def test_every_cell_has_an_estimate():
    """Also randomised models; at smoke, where all have the same small network."""
    for name in names():
        one = experiment(name, SCALES["smoke"])
        for job in one.jobs():
            work = estimate(one, job)
            assert work.steps > 0 and work.training > 0 and work.evaluation >= 0, job.label
    one = experiment("arxiv_v1.table1", SCALES["smoke"])
    work = {job.cell.name: estimate(one, job) for job in one.jobs()}
    pni, random = work["cifar10,at-pni"], work["cifar10,at,random"]
    assert pni.training == random.training
    assert pni.evaluation == 20 * random.evaluation  # every pass is an average of 20


def test_work_counts_unlabelled_images_and_rotations():
    def work(name, *cells):
        one = experiment(name, SCALES["paper"])
        return [estimate(one, j) for c in cells for j in one.jobs() if j.cell.name == c]

    rst, trades = work("neurips2020.figure1", "cifar10,linf,rst", "cifar10,linf,trades")
    assert rst.steps == trades.steps == 200 * 383  # 128 labelled images each
    # TRADES: 10 attack passes of 2, one on clean images, 2 of 3; all but evaluations doubles.
    passes, evaluations = 200 * 49_000 * 27, 200 * 3000 * 42
    expected = (2 * passes + evaluations) / (passes + evaluations)
    assert rst.training / trades.training == pytest.approx(expected, rel=1e-3)
    # PGD-7 is 14 passes, a gradient in the weights 3, of an image or of it and four rotations.
    turned, at = work("iccv2021.table1", "self-supervision", "at")
    assert turned.training / at.training == pytest.approx((14 + 3 * 5) / (14 + 3), rel=0.02)


@pytest.mark.parametrize("scale", SCALES)
def test_landscapes_have_a_centre_at_every_scale(scale):
    for points in (SCALES[scale].points, SCALES[scale].points_2d):
        assert points >= 3 and points % 2 == 1
