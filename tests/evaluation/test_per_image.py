"""What happened to each image, against the closed form of a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from awp_jax.attacks import APGD, FGSM, PGD
from awp_jax.evaluation import evaluate, read_per_image
from awp_jax.evaluation._per_image import together

EPSILON = 0.05


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def nothing(logits_fn, key, images, labels):
    """An attack that does not move."""
    return PGD(EPSILON, steps=0, start="none")(logits_fn, key, images, labels)


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
    return Partial(linear, jnp.asarray(weights)), images, labels, margins, worst


def run(problem, attacks, **options):
    logits_fn, images, labels = problem[:3]
    return evaluate(
        logits_fn, jax.random.key(0), images, labels, attacks, epsilon=EPSILON, batch_size=10,
        **options,
    )  # fmt: skip


def test_against_the_closed_form(problem, tmp_path):
    _, _, labels, margins, worst = problem
    cascade = [("still", nothing), ("apgd-ce", APGD(EPSILON, 5))]
    evaluation = run(problem, {"nothing": nothing, "fgsm": FGSM(EPSILON), "both": cascade})
    found = evaluation.per_image(labels)
    assert found.stages.tolist() == ["clean", "nothing", "fgsm", "both/still", "both/apgd-ce"]
    wrong, broken = margins < 0, worst < 0
    np.testing.assert_array_equal(found.broken_by, np.where(wrong, 0, np.where(broken, 2, -1)))
    assert 0 < (broken & ~wrong).sum() < 18
    np.testing.assert_array_equal(found.clean_prediction, np.where(wrong, 1 - labels, labels))
    np.testing.assert_array_equal(found.prediction[1], np.where(broken, 1 - labels, labels))
    np.testing.assert_array_equal(found.prediction[2], np.where(broken, 1 - labels, labels))
    clean, fgsm = np.log1p(np.exp(-margins)), np.log1p(np.exp(-worst))
    np.testing.assert_allclose(found.clean_loss, clean, rtol=1e-4)
    np.testing.assert_allclose(found.loss[1], fgsm, rtol=1e-4)
    expected = np.where(wrong, clean, np.where(broken, fgsm, np.nan))
    np.testing.assert_allclose(found.broken_loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.stage[2], np.where(wrong, 0, np.where(broken, 4, -1)))
    assert (found.loss[2][broken & ~wrong] > np.log(2)).all()
    for name, row in evaluation.attacks.items():
        if name != "clean":
            assert found.accuracy(name) == row["accuracy"]
    assert found.accuracy() == evaluation.union["accuracy"]
    assert found.names()[5:] == ["fgsm" if b else None for b in broken[5:]]
    assert found.counts()["fgsm"] == (broken & ~wrong).sum() and sum(found.counts().values()) == 23
    with pytest.raises(ValueError, match="Did you mean 'fgsm'"):
        found.accuracy("fgms")
    with pytest.raises(ValueError, match="labels have shape \\(2,\\)"):
        evaluation.per_image([0, 1])
    found.save(tmp_path / "found.npz")
    for one, other in zip(found, read_per_image(tmp_path / "found.npz"), strict=True):
        np.testing.assert_array_equal(one, other)
    np.savez(tmp_path / "other.npz", labels=labels)
    with pytest.raises(ValueError, match="is damaged: it holds no clean_prediction"):
        read_per_image(tmp_path / "other.npz")


def test_attacks_of_two_calls_are_those_of_one(problem):
    labels = problem[2]
    cascade = [("still", nothing), ("apgd-ce", APGD(EPSILON, 5))]
    attacks = {"nothing": nothing, "both": cascade, "fgsm": FGSM(EPSILON)}
    whole = run(problem, attacks).per_image(labels)
    first = run(problem, {k: attacks[k] for k in ("nothing", "both")}).per_image(labels)
    second = run(problem, {"fgsm": attacks["fgsm"]}).per_image(labels)
    joined = together(first, second)
    for name in whole._fields:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), err_msg=name)
    # Measured again, an attack takes the place of itself, last.
    again = together(whole, run(problem, {"both": cascade}).per_image(labels))
    assert again.attacks.tolist() == ["nothing", "fgsm", "both"]
    assert again.stages.tolist() == ["clean", "nothing", "fgsm", "both/still", "both/apgd-ce"]
    assert set(again.broken_by.tolist()) == {-1, 0, 2}
    other = second._replace(labels=1 - labels)
    assert together(first, other) is other
    alone = run(problem, {}).per_image(labels)
    assert alone.accuracy() == np.mean(problem[3] > 0) and alone.prediction.shape == (0, 23)


def flipping(weights, images, key):
    return linear(weights, images) * jnp.where(jax.random.bernoulli(key, 0.3), -1.0, 1.0)


def test_of_a_randomised_model_most_passes_decide(problem):
    logits_fn, images, labels, margins, _ = problem
    attack = {"own": PGD(EPSILON, 1, step_size=1e-9, start="none", eot=2), "rand": None}
    attack["rand"] = [("apgd-ce", APGD(EPSILON, 2, eot=2))]
    found = evaluate(
        Partial(flipping, *logits_fn.args), jax.random.key(0), images, labels, attack,
        epsilon=EPSILON, eot=100,
    )  # fmt: skip
    one = found.per_image(labels)
    np.testing.assert_array_equal(one.clean_prediction, np.where(margins < 0, 1 - labels, labels))
    np.testing.assert_array_equal(one.prediction[0], one.clean_prediction)
    for name in attack:
        assert one.accuracy(name) == pytest.approx(found.attacks[name]["accuracy"], abs=1e-6)
    np.testing.assert_array_equal(one.stage[1] >= 0, one.success[1])


def test_progress_inside_a_batch(problem, capsys):
    shares = []

    def tell(name, share):
        shares.append((name, share))

    run(problem, {"pgd": PGD(EPSILON, 12)}, progress=tell)
    found = [share for name, share in shares if name == "pgd"]
    assert found == sorted(found) and found[-1] == 1.0
    assert len(found) > 3  # three batches, and looks in between
    assert capsys.readouterr() == ("", "")
    run(problem, {"pgd": PGD(EPSILON, 2)}, progress="text")
    assert capsys.readouterr().err.strip().endswith("pgd: 100% done")
    with pytest.raises(ValueError, match="Unknown progress 'loud'"):
        run(problem, {}, progress="loud")
