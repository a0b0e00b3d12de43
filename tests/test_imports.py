"""What is imported when: no circles, the core without extras, and packages when they are used."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

import pytest

import awp_jax
from awp_jax import cli, extras
from awp_jax.cli._config import load, named

CLONE = pathlib.Path(__file__).parents[1]
ROOT = CLONE / "awp_jax"
# Its commands and JAX come when they are called, so that help comes at once.
LAZY = {"cli/__init__.py"}
CORE = ("ascent", "attacks", "balls", "landscape", "objectives", "weights")
BEYOND = ("data", "evaluation", "parallel", "reporting")


def hidden(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in (inner for function in functions for inner in ast.walk(function)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("awp_jax"):
            yield node.module
        if isinstance(node, ast.Import):
            yield from (n.name for n in node.names if n.name.startswith("awp_jax"))


@pytest.mark.core
def test_no_import_of_ours_hides_in_a_function():
    files = {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}
    assert {name for name, path in files.items() if list(hidden(path))} == LAZY


# A machine on which only jax, numpy and optax were installed (which bring absl and scipy).
BARE = f"""
import sys
from importlib.machinery import PathFinder
class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {sorted(set(extras.BROUGHT_BY) - {"absl"})}:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def bare(code):
    """Runs Python where every extra is missing; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", BARE + code], cwd=CLONE, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.core
def test_the_core_needs_no_extra():
    bare(
        f"""
import awp_jax, jax, jax.numpy as jnp, optax
for name in {CORE + BEYOND}:
    getattr(awp_jax, name)
params, x = {{"w": jnp.ones((3, 2))}}, jnp.ones((4, 3))
grad_fn = jax.grad(lambda p: jnp.mean((x @ p["w"]) ** 2))
optimizer = awp_jax.weights.awp(optax.sgd(0.1), gamma=0.01)
updates, _ = optimizer.update(grad_fn(params), optimizer.init(params), params, grad_fn=grad_fn)
assert jnp.abs(updates["w"]).min() > 0
found = awp_jax.attacks.PGD(0.1, steps=2)(
    lambda x: x @ params["w"], jax.random.key(0), x, jnp.zeros(4, int)
)
assert found.images.shape == x.shape
"""
    )


@pytest.mark.core
def test_a_missing_extra_is_one_sentence():
    text = bare(
        """
import importlib, inspect, pydoc
import awp_jax
from awp_jax import cli, progress, results
from awp_jax.data import load
for name in ("models", "interop", "config", "training", "runs"):
    try:
        importlib.import_module(f"awp_jax.{name}")
    except ModuleNotFoundError as error:
        print(error)
for call in (lambda: awp_jax.models, lambda: load("digits"), lambda: load("tfds:mnist"),
             lambda: results.new_figure(1, 1), lambda: progress.Progress(1, show="bar")):
    try:
        call()
    except awp_jax.extras.MissingExtraError as error:
        print(error)
import sys
sys.stderr = sys.stdout
print(cli.main(["train"]), cli.main(["train", "--help"]), cli.main(["--help"]))
assert "weights" in dir(awp_jax) and "runs" not in dir(awp_jax)
pydoc.render_doc(awp_jax)  # help() looks at every name of dir()
"""
    )
    for sentence in (
        "awp_jax.models needs flax: pip install 'awp_jax[models]'.",
        "awp_jax.interop needs flax: pip install 'awp_jax[models]'.",
        "awp_jax.config needs ml-collections: pip install 'awp_jax[train]'.",
        "awp_jax.training needs flax: pip install 'awp_jax[train]'.",
        "awp_jax.runs needs flax: pip install 'awp_jax[train]'.",
        "The data set digits needs scikit-learn: pip install 'awp_jax[data]'.",
        "tfds:mnist needs tensorflow-datasets: pip install 'awp_jax[tfds]'.",
        "Drawing needs matplotlib: pip install 'awp_jax[plot]'.",
        "progress='bar' needs tqdm: pip install 'awp_jax[train]'.",
        "awp-jax train needs ml-collections: pip install 'awp_jax[train]'.",
        "2 2 0",
    ):
        assert sentence in text.splitlines(), text


@pytest.mark.core
def test_the_readme_names_every_extra():
    setup = configparser.ConfigParser()
    setup.read(CLONE / "setup.cfg")
    install = (CLONE / "README.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    named = set(re.findall(r"\w+", install))
    assert set(setup["options.extras_require"]) - {"docs", "test"} <= named


def test_a_command_that_draws_says_so_at_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["landscape", "--workdir=nowhere"]) == 2
    expected = "awp-jax landscape needs matplotlib: pip install 'awp_jax[plot]'.\n"
    assert capsys.readouterr().err == expected


def test_a_module_of_no_extra_is_missing_as_ever():
    with pytest.raises(ModuleNotFoundError, match="No module named 'mine'"):
        with extras.needed_by("awp_jax.models"):
            raise ModuleNotFoundError("No module named 'mine'", name="mine")


@pytest.mark.core
def test_packages_come_when_they_are_used():
    code = (
        "import sys, awp_jax; print('jax' in sys.modules, 'awp_jax.weights' in sys.modules); "
        "print(awp_jax.weights.awp.__name__, awp_jax.attacks.PGD.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, text=True, capture_output=True)
    assert done.stdout.split() == ["False", "False", "awp", "PGD"], done.stderr
    with pytest.raises(AttributeError, match="module 'awp_jax' has no attribute 'wieghts'"):
        awp_jax.wieghts  # noqa: B018
    assert set(awp_jax.__all__) <= set(dir(awp_jax))


@pytest.mark.core
def test_checkers_see_the_packages():
    """Those under TYPE_CHECKING are those that ``__getattr__`` imports."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (seen,) = (
        {alias.name for alias in node.body[0].names}
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    assert seen == set(awp_jax.__all__) - {"cite"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"cli"}
    assert packages <= seen


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(CLONE / "setup.cfg")
    return parser


def requirements(text):
    return {re.split(r"[><=\[]", line)[0]: line for line in text.split()}


@pytest.mark.core
def test_every_extra_has_its_sentence():
    brought = setup_cfg()["options.extras_require"]
    for package, extra in extras.BROUGHT_BY.values():
        assert package in requirements(brought[extra]), f"{package} is not in [{extra}]"
    named = {package for package, _ in extras.BROUGHT_BY.values()} | {"awp_jax"}
    for extra in set(brought) - {"test", "docs"}:  # which are for who works on this library
        assert set(requirements(brought[extra])) <= named, extra
    assert set(requirements(setup_cfg()["options"]["install_requires"])) == {
        "jax",
        "numpy",
        "optax",
    }


@pytest.mark.core
def test_the_oldest_versions_are_those_of_the_metadata():
    parser = setup_cfg()
    lists = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    least = {line.replace(">=", "==") for text in lists for line in text.split() if ">=" in line}
    oldest = (CLONE / ".ci" / "oldest.txt").read_text().splitlines()
    assert {line for line in oldest if line and not line.startswith("#")} == least


@pytest.mark.core
def test_citations():
    whole = (CLONE / "CITATION.cff").read_text()
    found = awp_jax.cite()
    assert awp_jax.__version__ in found and f"version: {awp_jax.__version__}" in whole
    titles = re.findall(r"^  title = \{(.*)\},$", found, re.M)
    assert len(titles) == 5 and found.count("{") == found.count("}")
    for title in titles:
        assert title in whole
    for names in re.findall(r"author = \{([^{}]+)\}", found):
        for name in names.split(" and "):
            assert f"family-names: {name.split(',')[0].strip()}" in whole


@pytest.mark.core
def test_a_config_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("quickstart:at") == load(f"{CLONE / 'configs' / 'quickstart.py'}:at")
    assert set(named()) == {path.stem for path in (CLONE / "configs").glob("*.py")}
    with pytest.raises(ValueError, match="Unknown config 'quikstart'.*mean 'quickstart'"):
        load("quikstart:at")
    (tmp_path / "quickstart").write_text("def get_config():\n    return {'seed': 5}\n")
    assert load("quickstart").seed == 5  # a file comes first
