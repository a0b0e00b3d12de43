"""All attacks of a selection: unions, losses by hand, going on where it stopped, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax import models
from awp_jax.attacks import APGD, FGSM, PGD, AttackResult, Square
from awp_jax.balls import InputBall, input_norms
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


def test_a_ball_with_bounds_of_its_own(problem):
    logits_fn, images, labels, worst = problem
    ball = InputBall("linf", EPSILON, low=np.full((4, 4, 1), -3.0), high=3.0)
    shifted = Partial(lambda w, x: linear(w, x + 2.0), logits_fn.args[0])
    below_zero = images - 2.0
    found = evaluate(shifted, KEY, below_zero, labels, {"fgsm": FGSM(ball=ball)}, ball=ball)
    assert found.attacks["fgsm"]["accuracy"] == np.mean(worst > 0)
    with pytest.raises(ValueError, match="hold \\[-6"):
        evaluate(shifted, KEY, below_zero - 5.0, labels, {"fgsm": FGSM(ball=ball)}, ball=ball)


def test_what_was_kept_for_one_mask_is_not_taken_for_another(tmp_path):
    # Of arrays above 1,000 entries repr shows the ends alone.
    images = np.full((4, 40, 40, 1), 0.5, np.float32)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(1600, 2)), jnp.float32)
    model, found = Partial(linear, weights), {}
    labels = np.asarray(model(images).argmax(1), np.int32)
    for column in (12, 25):
        mask = np.zeros((40, 40, 1), bool)
        mask[20, column] = True
        ball, partial = InputBall("linf", 0.5, mask=mask), PartialResults(tmp_path, {})
        attacks = {"fgsm": FGSM(ball=ball)}
        outcomes = evaluate(model, KEY, images, labels, attacks, ball=ball, partial=partial)[2]
        found[column] = np.unique(np.nonzero(outcomes["fgsm"].images[0] != 0.5)[1]).tolist()
    assert found == {12: [12], 25: [25]}


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
        ("apgd", r"Unknown attack.*pgd-N, .*square\[-N\]"),
        ("pgd-0", "Unknown attack"),
        ("corruption", "paper, corruptions, .*Did you mean 'corruptions'"),
    ):
        with pytest.raises(ValueError, match=match):
            attacks_by_name([name])
    with pytest.raises(ValueError, match="norm"):
        attacks_by_name(["autoattack"], norm="l3", epsilon=0.5)
    assert attacks_by_name(["apgd-ce"], norm="l1", epsilon=12)["apgd-ce"].larger_radii


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


def flipping(weights, images, key):
    return linear(weights, images) * jnp.where(jax.random.bernoulli(key, 0.3), -1.0, 1.0)


def test_verdicts_on_a_randomised_model_average_over_passes(problem):
    logits_fn, images, labels, worst = problem
    random = Partial(flipping, *logits_fn.args)
    attack = {"pgd": PGD(EPSILON, 2, step_size=EPSILON, eot=3)}
    found = evaluate(random, KEY, images, labels, attack, epsilon=EPSILON, eot=300)
    right = np.arange(23) >= 5
    share = found.outcomes["clean"].error[right]
    assert len(set(share)) == 1 and share[0] == pytest.approx(0.3, abs=0.1)
    clean, robust = (right * (1 - 2 * share[0]) + share[0]).mean(), np.mean(worst > 0)
    assert found.attacks["clean"]["accuracy"] == pytest.approx(clean)
    np.testing.assert_array_equal(found.outcomes["clean"].success, ~right)
    # The mean gradient points where the model is right most of the time.
    attacked = robust * (1 - share[0]) + (1 - robust) * share[0]
    assert found.attacks["pgd"]["accuracy"] == pytest.approx(attacked, abs=0.05)
    assert found.union["accuracy"] <= found.attacks["pgd"]["accuracy"]
    cascade = [("apgd-ce", APGD(EPSILON, 3, eot=2))]
    again = evaluate(random, KEY, images, labels, {"rand": cascade}, epsilon=EPSILON, eot=300)
    outcome = again.outcomes["rand"]
    assert set(outcome.error) == set(found.outcomes["clean"].error)
    assert again.attacks["rand"]["accuracy"] == pytest.approx(np.mean(1 - outcome.error))


def test_attacks_crafted_on_a_surrogate(problem):
    logits_fn, images, labels, worst = problem
    right = np.arange(23) >= 5
    same = run(problem, {"fgsm": FGSM(EPSILON)}, surrogate_fn=logits_fn)
    assert same.attacks["fgsm"]["accuracy"] == np.mean(worst > 0)
    opposite = Partial(linear, -logits_fn.args[0])
    helps = run(problem, {"fgsm": FGSM(EPSILON)}, surrogate_fn=opposite)
    assert helps.attacks["fgsm"]["accuracy"] == np.mean(right)  # clean errors stay errors
    with pytest.raises(ValueError, match="autoattack looks at its own model"):
        run(problem, {"autoattack": plan()}, surrogate_fn=logits_fn)
    three = Partial(linear, jnp.ones((16, 3)))
    with pytest.raises(ValueError, match="surrogate has 3 classes, but the target has 2"):
        run(problem, {"fgsm": FGSM(EPSILON)}, surrogate_fn=three)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_feature_attack_by_name(norm):
    epsilon = {"linf": 0.2, "l2": 0.8}[norm]
    model = models.create("mlp", image_shape=(4, 4, 1), num_classes=3, width=16, depth=1)
    params, batch_stats = model.init(KEY)
    images = np.random.default_rng(0).uniform(0, 1, (20, 4, 4, 1)).astype(np.float32)
    params["linear"]["bias"] -= model.apply(params, batch_stats, images, mode="running")[0].mean(0)
    logits_fn = model.logits_fn(params, batch_stats)
    labels = np.asarray(logits_fn(images).argmax(1), np.int32)
    assert len(set(labels)) > 1
    named = attacks_by_name(["feature-8"], norm=norm, epsilon=epsilon)
    found = evaluate(logits_fn, KEY, images, labels, named, norm=norm, epsilon=epsilon)
    outcome = found.outcomes["feature-8"]
    assert found.attacks["feature-8"]["broke"] >= 5
    length = input_norms(jnp.asarray(outcome.images - images), norm)
    assert float(length.max()) <= epsilon + 1e-6
    # Whatever batches it is cut into, images are imitated from the whole set.
    cut = evaluate(logits_fn, KEY, images, labels, named, norm=norm, epsilon=epsilon, batch_size=7)
    np.testing.assert_array_equal(cut.outcomes["feature-8"].success, outcome.success)
    with pytest.raises(ValueError, match="needs the model's features"):
        evaluate(lambda x: logits_fn(x), KEY, images, labels, named, norm=norm, epsilon=epsilon)


def test_names_for_randomised_models():
    named = attacks_by_name(["fgsm", "cw-5", "apgd-t", "rand"], eot=7)
    assert (named["fgsm"].eot, named["cw-5"].eot, named["apgd-t"].eot) == (7, 7, 7)
    assert [attack.eot for _, attack in named["rand"]] == [7, 7]
    for name in ("square", "autoattack", "plus", "spsa", "fab", "feature"):
        with pytest.raises(ValueError, match=f"{name} cannot attack a randomised model"):
            attacks_by_name([name], eot=7)


def test_outputs_that_are_no_logits(problem):
    logits_fn, images, labels, _ = problem
    for function in (lambda x: (logits_fn(x), x), lambda x: {"logits": logits_fn(x)}):
        with pytest.raises(ValueError, match="an array of logits alone was expected"):
            evaluate(function, KEY, images, labels, {})
