"""Agreement with torchattacks and foolbox on the same weights and images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digits_network import EPSILON, from_torch
from longer import some

from awp_jax.attacks import APGD, FAB, PGD, APGDTargeted, FABTargeted, Square, autoattack
from awp_jax.balls import input_norms

torchattacks = pytest.importorskip("torchattacks")
NORMS = ("linf", "l2")
THEIR_NORM = {"linf": "Linf", "l2": "L2"}
# Of Square; Linf is noisier, and cheaper in the peer.
QUERIES = {"linf": 1000, "l2": 300}
TARGETED_STEPS = 50  # of nine runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def robust_accuracy(digits, images):
    return 100 * float((digits.logits_fn(jnp.asarray(images)).argmax(1) == digits.labels).mean())


def theirs(digits, attack, torch_digits):
    _, images, labels = torch_digits
    return robust_accuracy(digits, from_torch(attack(images, labels)))


@pytest.fixture(scope="module")
def peer(digits, torch_digits):
    """``peer(name, norm, seed)``: which examples are robust against torchattacks, each run once."""
    module, images, labels = torch_digits

    def make(name, norm, seed):
        common = {"norm": THEIR_NORM[norm], "eps": EPSILON[norm]}
        if name in ("ce", "dlr"):
            return torchattacks.APGD(module, **common, steps=100, loss=name, seed=seed)
        if name == "apgd-t":
            return torchattacks.APGDT(module, **common, steps=TARGETED_STEPS)
        if name == "fab-t":
            return torchattacks.FAB(module, **common, steps=30, multi_targeted=True)
        options = {"n_queries": QUERIES[norm], "resc_schedule": False, "seed": seed}
        return torchattacks.Square(module, **common, **options)

    @functools.cache
    def run(name, norm, seed=0):
        found = jnp.asarray(from_torch(make(name, norm, seed)(images, labels)))
        return np.asarray(digits.logits_fn(found).argmax(1) == digits.labels)

    return run


def ours(digits, attack, seed=0):
    result = attack(digits.logits_fn, jax.random.key(seed), digits.images, digits.labels)
    return 100 * float(1 - result.success.mean())


def test_the_two_networks_are_the_same(digits, torch_digits):
    module, images, _ = torch_digits
    np.testing.assert_allclose(
        digits.logits_fn(digits.images), module(images).numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_agrees_with_torchattacks_and_foolbox(digits, torch_digits, norm):
    foolbox = pytest.importorskip("foolbox")
    module, images, labels = torch_digits
    epsilon, steps = EPSILON[norm], 20
    size = 2.5 * epsilon / steps
    mine = ours(digits, PGD(epsilon, steps, norm=norm, start="none"))
    assert 20 < mine < 80
    peer = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    peer = peer(module, eps=epsilon, alpha=size, steps=steps, random_start=False)
    assert mine == pytest.approx(theirs(digits, peer, torch_digits), abs=0.5)
    peer = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    peer = peer(abs_stepsize=size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(module, bounds=(0, 1))
    _, clipped, _ = peer(model, images, labels, epsilons=epsilon)
    assert mine == pytest.approx(robust_accuracy(digits, from_torch(clipped)), abs=0.5)


def test_momentum_agrees_with_torchattacks(digits, torch_digits):
    epsilon = EPSILON["linf"]
    peer = torchattacks.MIFGSM(torch_digits[0], eps=epsilon, alpha=epsilon / 5, steps=10, decay=1.0)
    mine = PGD(epsilon, 10, step_size=epsilon / 5, start="none", momentum=1.0)
    assert ours(digits, mine) == pytest.approx(theirs(digits, peer, torch_digits), abs=0.5)


# One run of a randomly started attack is 0.3 (APGD-CE) to 0.6 (APGD-DLR) points away from the mean
# of many on 500 images, theirs as ours: means over seeds are compared.
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("loss", "tolerance"), [("cross_entropy", 0.6), ("dlr", 1.5)])
def test_apgd_agrees_with_torchattacks(digits, peer, norm, loss, tolerance):
    name, seeds = {"cross_entropy": "ce"}.get(loss, loss), range(6)
    attack = APGD(EPSILON[norm], norm=norm, loss=loss)
    mine = np.mean([ours(digits, attack, seed) for seed in seeds])
    assert mine == pytest.approx(100 * np.mean([peer(name, norm, s) for s in seeds]), abs=tolerance)


@pytest.mark.parametrize("norm", NORMS)
def test_fab_agrees_with_torchattacks(digits, peer, norm):
    mine = ours(digits, FABTargeted(EPSILON[norm], steps=30, norm=norm))
    assert mine == pytest.approx(100 * peer("fab-t", norm).mean(), abs=1.5)


@pytest.mark.parametrize("norm", NORMS)
def test_fab_radii_agree_with_torchattacks(digits, torch_digits, norm):
    mine = FAB(1.0, steps=30, norm=norm).nearest(
        digits.logits_fn, jax.random.key(0), digits.images, digits.labels
    )
    peer = torchattacks.FAB(torch_digits[0], norm=THEIR_NORM[norm], eps=1e3, steps=30)
    found = from_torch(peer(*torch_digits[1:]))
    radius = input_norms(found - digits.images, norm)
    both = np.isfinite(mine.radius) & (radius > 0) & (mine.radius > 0)
    assert both.mean() > 0.9
    ratio = np.asarray(mine.radius / radius)[both]
    assert np.median(np.abs(ratio - 1)) < 0.02
    wrong = digits.logits_fn(mine.images).argmax(1) != digits.labels
    assert bool(wrong[np.isfinite(mine.radius)].all())


@pytest.mark.parametrize("norm", some(NORMS, {"linf"}))
def test_square_agrees_with_torchattacks(digits, peer, norm):
    attack, seeds = Square(EPSILON[norm], QUERIES[norm], norm, released_corners=True), range(2)
    mine = np.mean([ours(digits, attack, seed) for seed in seeds])
    theirs = 100 * np.mean([peer("square", norm, seed) for seed in seeds])
    assert mine == pytest.approx(theirs, abs=1.5)
    # The paper's windows reach the last row and column too: on 8 by 8 pixels worth some points.
    assert ours(digits, Square(EPSILON[norm], QUERIES[norm], norm)) < theirs


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_targeted_agrees_with_torchattacks(digits, peer, norm):
    mine = ours(digits, APGDTargeted(EPSILON[norm], TARGETED_STEPS, norm))
    assert mine == pytest.approx(100 * peer("apgd-t", norm).mean(), abs=0.6)


# In one norm: what brings the attacks together does not know it.
def test_the_union_agrees_with_torchattacks(digits, peer):
    norm, epsilon = "linf", EPSILON["linf"]
    targeted = APGDTargeted(epsilon, TARGETED_STEPS, norm)
    names = ("ce", "apgd-t", "fab-t", "square")
    union = 100 * np.logical_and.reduce([peer(name, norm) for name in names]).mean()
    attacks = [
        "apgd-ce",
        ("apgd-t", targeted),
        ("fab-t", FABTargeted(epsilon, 30, norm)),
        ("square", Square(epsilon, QUERIES[norm], norm)),
    ]
    result = autoattack(
        digits.logits_fn,
        jax.random.key(0),
        digits.images,
        digits.labels,
        norm=norm,
        epsilon=epsilon,
        version="custom",
        attacks=attacks,
        batch_size=500,
    )
    assert 20 < 100 * result.accuracy < 80
    assert 100 * result.accuracy == pytest.approx(union, abs=0.6)
    assert 100 * result.accuracy <= ours(digits, targeted) + 0.2
