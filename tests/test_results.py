"""What results share: repr, save, plot; under jit as well."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from awp_jax import attacks, evaluation, landscape, results
from awp_jax.reporting import Measured

LOSSES = np.array([[0.5, 2.0, 1.0], [0.7, 1.0, 3.0]], np.float32)
WRONG = LOSSES > 0.9
SCALAR = np.float32(0.25)


def _attack():
    return attacks.AttackResult(
        jnp.zeros((3, 2, 2, 1)), jnp.array([True, False, True]), jnp.array([1.0, 0.1, 2.5])
    )


def _evaluation():
    images, labels = jnp.full((2, 4, 4, 1), 0.9).at[1].set(0.51), jnp.array([0, 0])
    chosen = {"fgsm": attacks.FGSM("8/255"), "own": attacks.PGD("8/255", steps=2)}
    return evaluation.evaluate(_logits, jax.random.key(0), images, labels, chosen)


def _logits(images):
    return (images.mean((1, 2)) - 0.5) * jnp.array([[1.0, -1.0]])


def _ensemble():
    images, labels = jnp.full((2, 4, 4, 1), 0.9).at[1].set(0.51), jnp.array([0, 0])
    key = jax.random.key(0)
    return attacks.autoattack(_logits, key, images, labels, attacks=["apgd-ce"])


def _diagnosis():
    return evaluation.Diagnosis(
        checks=(evaluation.Check("one", True, "because"),),
        epsilons=(0.0, 0.1, 0.2),
        by_epsilon=(0.9, 0.5, 0.0),
        steps=(1, 5),
        by_steps=(0.6, 0.5),
        others={"square": 0.55},
        norm="linf",
        epsilon=0.1,
        examples=100,
        clean=0.9,
    )


GRID = np.linspace(-1, 1, 3)
MADE = {
    "attack": _attack,
    "nearest": lambda: attacks.NearestResult(jnp.zeros((3, 4)), jnp.array([0.0, 0.5, jnp.inf])),
    "autoattack": _ensemble,
    "evaluation": _evaluation,
    "per_image": lambda: _evaluation().per_image([0, 0]),
    "diagnosis": _diagnosis,
    "average": lambda: landscape.AverageFlatness(SCALAR, SCALAR, LOSSES.mean(1), LOSSES, WRONG),
    "worst": lambda: landscape.WorstCaseFlatness(
        SCALAR, SCALAR, LOSSES.mean(1), SCALAR, LOSSES, WRONG
    ),
    "robust": lambda: landscape.RobustLoss(SCALAR, SCALAR, SCALAR, LOSSES, WRONG),
    "hessian": lambda: landscape.HessianSpectrum(np.array([3.0, 1.0]), np.zeros(2), 20),
    "pac_bayes": lambda: landscape.PACBayes(
        np.array([0.1, 1.0]), SCALAR, *[np.array([0.3, 0.9])] * 5, np.ones((2, 3))
    ),
    "perturbed": lambda: landscape.PerturbedLoss(
        np.array([0.0, 0.1]), np.array([1.0, 2.0]), np.array([[1.0, 1.0], [1.1, 1.3]])
    ),
    "histogram": lambda: landscape.WeightHistogram(
        np.array([1, 2, 1]), np.linspace(-1, 1, 4), SCALAR, SCALAR, SCALAR
    ),
    "curve": lambda: landscape.Surface((GRID,), GRID**2, np.ones(3)),
    "plane": lambda: landscape.Surface((GRID, GRID), np.add.outer(GRID**2, GRID), np.ones((3, 3))),
}
PLAIN = {"evaluation", "diagnosis"}


@pytest.mark.parametrize("name", MADE)
def test_every_result_prints_short_is_saved_and_drawn(name, tmp_path):
    found = MADE[name]()
    text = repr(found)
    assert 1 <= len(text.splitlines()) <= results.MOST_LINES
    assert type(found).__name__ in text or name == "diagnosis"
    ending = ".json" if name in PLAIN else ".npz"
    found.save(tmp_path / f"found{ending}")
    if name in PLAIN:
        json.loads((tmp_path / "found.json").read_text())
    else:
        with np.load(tmp_path / "found.npz") as arrays:
            for field, value in found._asdict().items():
                if isinstance(value, np.ndarray | jax.Array):
                    np.testing.assert_array_equal(arrays[field], value)
    with pytest.raises(ValueError, match=f"a name that ends in {ending} was expected"):
        found.save(tmp_path / "found.txt")
    count = 2 if name == "diagnosis" else 1
    given = Figure().subplots(1, count)
    drawn = found.plot(given)
    assert np.asarray(drawn == given).all()
    new = found.plot()
    assert all(axes.has_data() for axes in np.atleast_1d(new))
    with pytest.raises(ValueError, match="matplotlib axes were expected"):
        found.plot(3)


def test_repr_says_what_it_comes_to():
    assert repr(_attack()).splitlines() == [
        "AttackResult(2 of 3 (66.7%) with success)",
        "  images: float32[3, 2, 2, 1] in [0, 0]",
        "  success: bool[3], 2 true",
        "  loss: float32[3] in [0.1, 2.5]",
    ]
    assert "apgd-ce: 50.00% left, 1 broken" in repr(_ensemble())
    assert len(repr(_ensemble()).splitlines()) <= 8
    assert "checkpoints ['best'] evaluated" in repr(Measured({}, {"checkpoints": {"best": {}}}, []))
    both = attacks.worst_of_models([_logits, _logits])
    assert repr(both) == "WorstOfModels(logits_fn, loss SmallestLoss, success every_model_fooled)"


def test_repr_of_tracers_shapes_and_axes():
    said = []

    @jax.jit
    def attacked(found):
        said.append(repr(found))
        return found

    found = attacked(_attack())
    assert "success: bool[3]" in said[0] and "in [" not in said[0]
    assert isinstance(found, attacks.AttackResult)
    repr(jax.eval_shape(attacked, _attack()))
    for kind in (make().__class__ for make in MADE.values()):
        if hasattr(kind, "_fields") and kind is not evaluation.Evaluation:
            if kind is not evaluation.PerImage:
                assert repr(kind(*[None] * len(kind._fields)))
                assert repr(kind(*[0] * len(kind._fields)))
    images, success, loss, steps = _attack()  # as ever
    assert steps is None and jax.tree.map(lambda leaf: leaf, _attack()).loss.shape == (3,)
    del images, success, loss


def test_long_text_is_cut():
    text = "\n".join(map(str, range(40)))
    lines = results.cut(text, "print(found.table())").splitlines()
    assert len(lines) == 15 and lines[-1] == "... and 26 more lines: print(found.table())"
    assert results.cut("one") == "one"
    assert results.short(np.array([1.0, np.nan])) == "float64[2] in [1, 1], not all finite"
    assert results.short([1] * 500).endswith(", ...]")
    assert results.short({"a": 1.0}) == "a: 1"


def test_without_matplotlib_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match="Drawing needs matplotlib: pip install 'awp_jax.plot.'."
    ):
        _attack().plot()


def test_notebooks_show_figures_that_pyplot_has_not_made():
    figure = results.new_figure(2, 1)
    figure.subplots().plot([0, 1])
    assert figure._repr_png_().startswith(b"\x89PNG") and repr(figure).startswith("<Figure size")
