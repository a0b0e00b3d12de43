"""Random streams that share a key have numbers of their own, and each number has a name."""

import ast
import collections
import pathlib

import jax
import pytest

from awp_jax import streams

ROOT = pathlib.Path(__file__).parents[1]
NUMBERS = {name: value for name, value in vars(streams).items() if name.isupper()}


@pytest.mark.core
def test_streams_of_one_key_differ():
    groups = collections.defaultdict(dict)
    for name, number in NUMBERS.items():
        groups[name.partition("_")[0]][name] = number
    assert len(groups) >= 8 and all(0 <= number < 2**31 for number in NUMBERS.values())
    for found in groups.values():
        assert len(set(found.values())) == len(found), found
        keys = [jax.random.fold_in(jax.random.key(0), number) for number in found.values()]
        assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


@pytest.mark.core
def test_numbers_of_training_stay_as_they_are():
    # Results were made with these: another number is another run of the same seed.
    assert (streams.RUN_PARAMETERS, streams.RUN_ORDER, streams.RUN_OPTIMIZER) == (1, 2, 5)
    assert (streams.STEP_DROPOUT, streams.STEP_WEIGHTS) == (1, 2)
    assert (streams.STEP_MIXUP, streams.STEP_EXTRA) == (10, 11)
    assert (streams.EXAMPLE_AUGMENT, streams.EXAMPLE_ATTACK) == (0, 3)
    assert streams.EXAMPLE_ALIGNMENT == 4


def literals(tree):
    """Numbers that are handed to ``fold_in``, where a name was expected."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) == 2:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            number = node.args[1]
            if name == "fold_in" and isinstance(number, ast.Constant):
                yield number.value


def test_every_number_has_a_name():
    allowed = {"awp_jax/attacks/_gradient.py": [0]}  # the first pass of several
    found = {
        str(path.relative_to(ROOT)): list(literals(ast.parse(path.read_text())))
        for folder in ("awp_jax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert {name: numbers for name, numbers in found.items() if numbers} == allowed
    text = "".join(p.read_text() for p in ROOT.rglob("awp_jax/**/*.py") if p.name != "streams.py")
    text += "".join(p.read_text() for p in (ROOT / "experiments").glob("*.py"))
    assert [name for name in NUMBERS if f"streams.{name}" not in text] == []
