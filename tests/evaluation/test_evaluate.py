"""All attacks of a selection: unions, losses by hand, going on where it stopped, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import APGD, FGSM, PGD, AttackResult, Square
from awp_jax.evaluation import PartialResults, attacks_by_name, evaluate

KEY = jax.random.key(0)
EPSILON = 0.05


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(3)
    weights = generator.normal(size=(16, 2)).astype(np.float32)
    images = generator.uniform(0.2, 0.8, (23, 4, 4, 1)).astype(np.float32)
    logits = images.reshape(23, -1) @ weights
    labels = logits.argmax(1).astype(np.int32)
    labels[:5] = 1 - labels[:5]
    margins = logits[np.arange(23), labels] - logits[np.arange(23), 1 - labels]
    worst = margins - EPSILON * np.abs(weights[:, 0] - weights[:, 1]).sum()
    return Partial(linear, jnp.asarray(weights)), images, labels, worst


def plan():
    return [("apgd-ce", APGD(EPSILON, 5)), ("square", Square(EPSILON, 20))]


def run(problem, attacks, **options):
    logits_fn, images, labels, _ = problem
    options = {"epsilon": EPSILON, "batch_size": 10, **options}
    return evaluate(logits_fn, KEY, images, labels, attacks, **options)


def test_against_the_closed_form(problem):
    *_, worst = problem
    found = run(problem, {"fgsm": FGSM(EPSILON), "autoattack": plan()})
    fgsm, cascade = found.attacks["fgsm"], found.attacks["autoattack"]
    assert list(found.attacks) == ["clean", "fgsm", "autoattack"]
    assert fgsm["accuracy"] == cascade["accuracy"] == np.mean(worst > 0)
    assert found.union["accuracy"] == np.mean(worst > 0)
    right = np.arange(23) >= 5
    losses = np.log1p(np.exp(-worst))
    for key, which in (("loss", right | True), ("loss_correct", right), ("loss_wrong", ~right)):
        assert fgsm[key] == pytest.approx(losses[which].mean(), rel=1e-4)
        assert found.union[key] == pytest.approx(losses[which].mean(), rel=1e-4)
    assert fgsm["broke"] == cascade["broke"] == np.sum(worst[5:] <= 0)
    assert cascade["loss"] is None and cascade["median_steps"] is None
    assert [stage["name"] for stage in cascade["stages"]] == ["clean", "apgd-ce", "square"]


def test_steps_are_counted_over_what_was_broken(problem):
    found = run(problem, {"apgd-ce": APGD(EPSILON, 5)}).attacks
    assert found["clean"]["median_steps"] is None and found["clean"]["broke"] == 0
    assert 0 <= found["apgd-ce"]["median_steps"] <= 5


def test_an_attack_that_leaves_the_ball_is_projected_and_judged_anew(problem):
    def liar(logits_fn, key, images, labels):
        n = images.shape[0]
        return AttackResult(jnp.clip(images + 5.0, 0, 9), jnp.ones(n, bool), jnp.zeros(n))

    logits_fn, images, labels, _ = problem
    found = run(problem, {"liar": liar}).outcomes["liar"]
    assert np.abs(found.images - images).max() <= EPSILON + 1e-6 and found.images.max() <= 1
    np.testing.assert_array_equal(found.success, logits_fn(found.images).argmax(1) != labels)


def test_a_stopped_evaluation_goes_on_and_a_changed_one_begins_anew(problem, tmp_path):
    calls = []

    def counted(logits_fn, key, images, labels):
        calls.append(1)
        return PGD(EPSILON, 2)(logits_fn, key, images, labels)

    def stop(name, share):
        if name == "autoattack" and share >= 0.5:
            raise KeyboardInterrupt

    attacks = {"pgd": counted, "autoattack": plan()}
    whole = run(problem, attacks)
    calls.clear()
    partial = PartialResults(tmp_path / "partial", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        run(problem, attacks, partial=partial, progress=stop)
    assert len(calls) == 3 and len(list(tmp_path.rglob("*.npz"))) == 3
    told = []
    again = run(problem, attacks, partial=partial, progress=lambda *what: told.append(what))
    assert len(calls) == 3 and [name for name, _ in told[:2]] == ["clean", "pgd"]
    for name, outcome in whole.outcomes.items():
        np.testing.assert_array_equal(outcome.images, again.outcomes[name].images)
        np.testing.assert_array_equal(outcome.success, again.outcomes[name].success)
    assert again.union == whole.union
    run(problem, attacks, partial=PartialResults(tmp_path / "partial", {"seed": 1}))
    run(problem, attacks, partial=partial, epsilon=0.04)
    assert len(calls) == 9
    for file in tmp_path.rglob("*.npz"):  # torn files are as if they were not there
        file.write_bytes(file.read_bytes()[:50])
    assert run(problem, attacks, partial=partial).union == whole.union


def test_selections_by_name():
    found = attacks_by_name(["paper", "square-20", "fab-t"], epsilon="8/255", step_size="2/255")
    assert list(found) == [
        *("clean", "fgsm", "pgd-20", "pgd-100", "cw-100", "spsa", "autoattack", "square-20"),
        "fab-t",
    ]
    names = [name for name, _ in found["autoattack"]]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (found["square-20"].steps, found["fab-t"].steps) == (20, 100)
    assert dict(attacks_by_name(["rand"])["rand"])["apgd-ce"].eot == 20
    assert dict(attacks_by_name(["plus"])["plus"])["fab"].restarts == 5
    for name, match in (
        ("autoatack", "'autoattack'"),
        ("apgd", "Unknown attack"),
        ("pgd-0", "Unknown attack"),
    ):
        with pytest.raises(ValueError, match=match):
            attacks_by_name([name])
    with pytest.raises(ValueError, match="norm"):
        attacks_by_name(["autoattack"], norm="l1", epsilon=12)


def test_bad_input(problem):
    logits_fn, images, labels, _ = problem
    with pytest.raises(ValueError, match="NaN"):
        evaluate(lambda x: logits_fn(x) * jnp.nan, KEY, images, labels, {})
    with pytest.raises(ValueError, match="labels lie in"):
        evaluate(logits_fn, KEY, images, labels + 1, {})
    with pytest.raises(ValueError, match="empty"):
        evaluate(logits_fn, KEY, images[:0], labels[:0], {})
    zero = run(problem, {"fgsm": FGSM(0.0)}, epsilon=0)
    assert zero.attacks["fgsm"]["accuracy"] == zero.attacks["clean"]["accuracy"]
    wrong = evaluate(logits_fn, KEY, images[:5], labels[:5], {"autoattack": plan()})
    assert wrong.union["accuracy"] == 0 and wrong.union["loss_correct"] is None
