"""Attacks where JAX promotes no types by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import attacks

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(16, 10)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(0.2, 0.8, (6, 4, 4, 1)), jnp.float32)


def logits_fn(images):
    return images.reshape(images.shape[0], -1) @ WEIGHTS


LABELS = logits_fn(IMAGES).argmax(1).at[0].set(3)
ALL = {
    "fgsm": attacks.FGSM(0.1),
    "fgsm-rs": attacks.FGSMRS(0.1),
    "n-fgsm": attacks.NFGSM(0.1),
    "pgd-l1": attacks.PGD(1.0, steps=3, norm="l1"),
    "pgd-momentum": attacks.PGD(0.1, steps=3, momentum=0.9, restarts=2),
    "cw": attacks.CW(0.1, steps=3),
    "apgd": attacks.APGD(0.1, 7),
    "apgd-l2-dlr": attacks.APGD(0.5, 7, norm="l2", loss="dlr"),
    "apgd-l1": attacks.APGD(2.0, 7, norm="l1", larger_radii=True),
    "apgd-t": attacks.APGDTargeted(0.1, 7),
    "fab": attacks.FAB(0.1, 3),
    "fab-t-l2": attacks.FABTargeted(0.5, 3, norm="l2"),
    "fab-l1": attacks.FAB(2.0, 3, norm="l1"),
    "square": attacks.Square(0.1, 5),
    "square-l2": attacks.Square(0.5, 5, norm="l2"),
    "square-l1": attacks.Square(2.0, 5, norm="l1"),
    "spsa": attacks.SPSA(0.1, 2),
    "feature": attacks.FeatureAttack(logits_fn, 0.1, steps=3, restarts=2),
    "ddn": attacks.DDN(3),
    "fmn": attacks.FMN(3),
}


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_promoted(name):
    with jax.numpy_dtype_promotion("strict"):
        found = ALL[name](logits_fn, jax.random.key(0), IMAGES, LABELS)
    assert found.images.dtype == jnp.float32 and np.isfinite(found.images).all()
    wrong = logits_fn(jnp.asarray(found.images)).argmax(1) != LABELS
    assert (np.asarray(wrong) >= np.asarray(getattr(found, "success", False))).all()


def test_autoattack_promotes_nothing():
    with jax.numpy_dtype_promotion("strict"):
        found = attacks.autoattack(logits_fn, jax.random.key(0), IMAGES, LABELS, epsilon=0.05)
    assert [row.name for row in found.rows][:2] == ["clean", "apgd-ce"]
