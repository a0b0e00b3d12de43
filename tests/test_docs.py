"""The documentation: every example runs, every public name is explained."""

import doctest
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import sys

import jax
import pytest
from reader import READER, python_blocks

import awp_jax

# What only an extra of setup.cfg brings; modules that need it are skipped where it is missing.
EXTRAS = {
    "array_record",
    "equinox",
    "foolbox",
    "grain",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "torchattacks",
    "wandb",
}


def _modules():
    found = pkgutil.walk_packages(awp_jax.__path__, "awp_jax.", onerror=lambda name: None)
    return ["awp_jax", *(info.name for info in found if not info.name.endswith("__main__"))]


def _import(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in EXTRAS:
            pytest.skip(f"{name} needs {error.name}")
        raise


MODULES = _modules()
PACKAGES = [name for name in MODULES if importlib.util.find_spec(name).submodule_search_locations]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = _import(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        report = []
        runner.run(test, out=report.append)
        assert not runner.failures, f"{test.name}\n{''.join(report)}"


GUIDES = pathlib.Path(__file__).parents[1].joinpath("docs")


@pytest.mark.parametrize("name", sorted(path.name for path in GUIDES.glob("*.md")))
def test_guides_run(name, tmp_path, monkeypatch):
    """The Python blocks of a page, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    text = (GUIDES / name).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
    page = {}
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        if file := re.match(r"# (\w+\.py)\n", block[1]):  # what the reader saves
            (tmp_path / file[1]).write_text(block[1])
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, file[1].removesuffix(".py"), raising=False)
            continue
        code = "\n" * line + block[1]  # so that errors name the line of the page
        try:
            exec(compile(code, str(GUIDES / name), "exec"), page)
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] in EXTRAS:
                pytest.skip(f"{name} needs {error.name}")
            raise


TUTORIALS = GUIDES / "tutorials"


@pytest.mark.filterwarnings("ignore:(weights|averaging).start_epoch")  # of epochs cut to one
@pytest.mark.parametrize("name", sorted(path.name for path in TUTORIALS.glob("*.md")))
def test_tutorials_run(name, tmp_path, monkeypatch):
    """As ``make docs`` runs them, for one epoch and on few images."""
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def show():
        for axes in (
            axes for number in pyplot.get_fignums() for axes in pyplot.figure(number).axes
        ):
            texts = (
                [text.get_text() for text in axes.get_legend().texts] if axes.get_legend() else []
            )
            assert len(set(texts)) == len(texts), texts
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    monkeypatch.syspath_prepend(GUIDES.parent)  # their configs
    monkeypatch.chdir(tmp_path)
    text, page = (TUTORIALS / name).read_text(), {}
    text = re.sub(r"^EPOCHS, EXAMPLES = \d+, \d+$", "EPOCHS, EXAMPLES = 1, 50", text, flags=re.M)
    text = re.sub(r"^EPOCHS = \d+$", "EPOCHS = 1", text, flags=re.M)
    text = re.sub(r"^STEPS = \d+ ", "STEPS = 60 ", text, flags=re.M)
    text = re.sub(r"^EXAMPLES = \d+$", "EXAMPLES = 50", text, flags=re.M)
    blocks = list(re.finditer(r"^```\{code-cell\} python3\n(.*?)^```$", text, re.M | re.S))
    assert len(blocks) >= 2
    for block in blocks:
        code = "\n" * (text[: block.start()].count("\n") + 1) + block[1]
        exec(compile(code, str(TUTORIALS / name), "exec"), page)


def test_every_public_name_has_a_place_in_the_reference():
    pages = "".join(path.read_text() for path in (GUIDES / "api").glob("*.md"))
    shown = set(re.findall(r"automodule:: ([\w.]+)", pages))
    assert shown <= set(MODULES)
    inside = {"awp_jax", "awp_jax.cli"}  # the package itself; words around awp_jax.runs
    assert not set(PACKAGES) - shown - inside
    listed = set(re.findall(r"^(\w+)$", (GUIDES / "api" / "index.md").read_text(), re.M))
    assert {path.stem for path in (GUIDES / "api").glob("*.md")} - {"index"} <= listed


def test_the_readme_runs():
    text = (GUIDES.parent / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    page = {}
    exec(READER, page)
    blocks = python_blocks(text)
    for block in blocks:
        exec(block, page)
    new, _ = page["step"](page["params"], page["state"], page["images"], page["labels"])
    assert not jax.numpy.array_equal(new["kernel"], page["params"]["kernel"])
    assert page["grads"]["kernel"].shape == (16, 3) and page["found"].images.shape == (6, 4, 4, 1)
    assert 0 <= page["whole"].accuracy <= 1 and len(blocks) == 3


def test_files_that_pages_name_are_there():
    for page in (
        GUIDES.parent / "README.md",
        *GUIDES.glob("**/*.md"),
        *GUIDES.glob("../results/*/README.md"),
    ):
        text = page.read_text()
        named = re.findall(r"\]\(([^)#:]+)\)", text)  # links and pictures
        named += re.findall(
            r"`((?:docs|tests|benchmarks|results|configs|experiments)/[\w./-]+)`", text
        )
        for name in named:
            beside = (page.parent / name, GUIDES.parent / name)
            assert any(path.exists() for path in beside), f"{page} names {name}, which is not there"


def test_no_cell_of_the_table_of_landscapes_is_empty():
    lines = (GUIDES / "landscapes.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert len(rows) == 8 and all(len(row) == 4 and all(row) for row in rows)


def test_configs_that_commands_name_are_there():
    for page in (GUIDES.parent / "README.md", *GUIDES.glob("**/*.md")):
        # FILE.yaml and ... stand for anything.
        for name in re.findall(r"--config=(?!FILE|\.\.\.)([\w./-]+)", page.read_text()):
            assert (GUIDES.parent / name).is_file(), f"{page} names {name}, which is not there"


@pytest.mark.core
@pytest.mark.parametrize("name", MODULES)
def test_modules_have_docstrings(name):
    assert (_import(name).__doc__ or "").strip(), f"{name} has no docstring"


def _public(module):
    for name, value in vars(module).items():
        ours = getattr(value, "__module__", "") or ""
        if name.startswith("_") or inspect.ismodule(value) or not ours.startswith("awp_jax"):
            continue
        if inspect.isclass(value) or inspect.isroutine(value):
            yield name, value


def _explained(value):
    text = (value.__doc__ or "").strip()
    # Dataclasses and named tuples without a docstring get their signature as one.
    return bool(text) and not (inspect.isclass(value) and text.startswith(f"{value.__name__}("))


@pytest.mark.core
@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_have_docstrings(name):
    missing = [public for public, value in _public(_import(name)) if not _explained(value)]
    assert not missing, f"without a docstring in {name}: {', '.join(missing)}"


def test_the_check_of_docstrings_can_fail():
    import collections
    import dataclasses

    @dataclasses.dataclass
    class Silent:
        number: int = 0

    assert not _explained(Silent)
    assert not _explained(collections.namedtuple("Point", "x y"))
    assert not _explained(lambda: None)
    assert _explained(jax.jit)


def test_weights_of_an_equinox_model():
    equinox = pytest.importorskip("equinox")
    import jax.numpy as jnp

    from awp_jax.weights import value_and_grad

    model = equinox.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_array)
    x = jax.random.normal(jax.random.key(1), (8, 4))

    def loss_fn(params):
        return jnp.mean(jax.vmap(equinox.combine(params, static))(x) ** 2)

    value, grads = jax.jit(value_and_grad(loss_fn, gamma=0.01))(params)
    assert float(value) > float(loss_fn(params))
    assert grads.layers[0].weight.shape == (8, 4) and grads.activation is None
