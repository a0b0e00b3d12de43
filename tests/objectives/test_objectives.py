"""Objectives, against the formulas of the papers' PyTorch code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awp_jax import objectives
from awp_jax.attacks import cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(4, 6, 4)) * 2
LABELS = np.array([0, 1, 2, 3, 3, 0])


def torch_trades(torch, clean, adversarial, labels, beta):
    functional = torch.nn.functional
    natural = functional.cross_entropy(clean, labels)
    robust = functional.kl_div(
        functional.log_softmax(adversarial, 1), functional.softmax(clean, 1), reduction="batchmean"
    )
    return natural + beta * robust


def torch_mart(torch, clean, adversarial, labels, weight, floor=0.0):
    functional = torch.nn.functional
    p_adversarial, p_clean = functional.softmax(adversarial, 1), functional.softmax(clean, 1)
    top_two = torch.argsort(p_adversarial, dim=1)[:, -2:]
    wrong = torch.where(top_two[:, -1] == labels, top_two[:, -2], top_two[:, -1])
    boosted = functional.cross_entropy(adversarial, labels) + functional.nll_loss(
        torch.log(1.0001 - p_adversarial + 1e-12), wrong
    )
    if floor:  # as released
        log_adversarial = torch.log(p_adversarial + floor)
    else:
        log_adversarial = functional.log_softmax(adversarial, 1)
    divergence = functional.kl_div(log_adversarial, p_clean, reduction="none").sum(1)
    label_probability = p_clean.gather(1, labels[:, None])[:, 0]
    return boosted + weight * torch.mean(divergence * (1.0000001 - label_probability))


def compare(objective, formula, rtol):
    torch = pytest.importorskip("torch")
    names = (*objective.inputs, *["teacher"] * bool(objective.teacher))
    tensors = [torch.tensor(LOGITS[place], requires_grad=True) for place in range(len(names))]
    expected = formula(torch, *tensors, torch.tensor(LABELS))
    expected.backward()
    tensors = tensors[: len(objective.inputs)]  # the step hands over the teacher's as constants

    def loss(*logits):
        return objective.loss(dict(zip(names, logits, strict=True)), jnp.asarray(LABELS)).mean()

    places = tuple(range(len(objective.inputs)))
    value, gradients = jax.value_and_grad(loss, places)(*jnp.asarray(LOGITS[: len(names)]))
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        scale = np.linalg.norm(tensor.grad.numpy())
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=0, atol=rtol * scale)
        assert scale > 0


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_equals_pytorch(beta, x64):
    def formula(torch, clean, adversarial, labels):
        # beta 0 still has the adversarial logits in its graph.
        return torch_trades(torch, clean, adversarial, labels, beta)

    if beta:
        compare(objectives.trades(beta), formula, 1e-12)
    else:
        value = objectives.trades(0.0).loss(_both(), jnp.asarray(LABELS))
        np.testing.assert_allclose(value, cross_entropy(jnp.asarray(LOGITS[0]), LABELS), rtol=1e-12)


def _both():
    return {"clean": jnp.asarray(LOGITS[0]), "adversarial": jnp.asarray(LOGITS[1])}


@pytest.mark.parametrize("weight", [5.0, 6.0])
def test_mart_equals_pytorch(weight, x64):
    compare(objectives.mart(weight), lambda *args: torch_mart(*args, weight), 1e-12)


def test_mart_equals_the_released_code_up_to_its_floor(x64):
    compare(objectives.mart(5.0), lambda *args: torch_mart(*args, 5.0, floor=1e-12), 1e-9)


def torch_ard(torch, clean, adversarial, teacher, labels, alpha, temperature, released=False):
    functional = torch.nn.functional
    divergence = torch.nn.KLDivLoss(reduction="none")(
        functional.log_softmax(adversarial / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
    )
    # PyTorch's default, as released: a mean over classes too, of which its newer versions warn.
    divergence = divergence.mean() if released else divergence.sum() / len(labels)
    if alpha == 1:
        return alpha * temperature * temperature * divergence + 0 * clean.sum()
    natural = functional.cross_entropy(clean, labels)
    return alpha * temperature * temperature * divergence + (1.0 - alpha) * natural


@pytest.mark.parametrize(("alpha", "temperature"), [(0.9, 30.0), (0.5, 1.0), (0.0, 3.0)])
def test_ard_equals_pytorch(alpha, temperature, x64):
    def formula(*tensors):
        return torch_ard(*tensors, alpha, temperature)

    objective = objectives.ard(alpha, temperature)
    if alpha:
        compare(objective, formula, 1e-12)
    else:
        logits = _both() | {"teacher": jnp.asarray(LOGITS[2])}
        expected = cross_entropy(jnp.asarray(LOGITS[0]), LABELS)
        np.testing.assert_allclose(objective.loss(logits, jnp.asarray(LABELS)), expected)


def test_ard_is_the_released_loss_times_the_classes(x64):
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(array) for array in (*LOGITS[:3], LABELS)]
    released = torch_ard(torch, *tensors, 1.0, 30.0, released=True)
    logits = _both() | {"teacher": jnp.asarray(LOGITS[2])}
    found = objectives.ard().loss(logits, jnp.asarray(LABELS)).mean()
    np.testing.assert_allclose(found, 4 * released.item(), rtol=1e-12)


def test_hat_equals_pytorch(x64):
    def formula(torch, clean, adversarial, helper, teacher, labels):
        seen = teacher.argmax(dim=1)
        assert not torch.equal(seen, labels)
        helped = torch.nn.functional.cross_entropy(helper, seen, reduction="mean")
        return torch_trades(torch, clean, adversarial, labels, 2.5) + 0.7 * helped

    compare(objectives.hat(2.5, 0.7), formula, 1e-12)


def torch_dkl(torch, clean, adversarial, weights, alpha, beta):
    """The sums over pairs of classes, as the paper and its code write them."""
    functional, classes = torch.nn.functional, clean.size(1)
    delta_n = clean.view(-1, classes, 1) - clean.view(-1, 1, classes)
    delta_a = adversarial.view(-1, classes, 1) - adversarial.view(-1, 1, classes)
    pairs = weights.view(-1, classes, 1) @ weights.view(-1, 1, classes)
    squares = 0.25 * (torch.pow(delta_n - delta_a, 2) * pairs).sum() / clean.size(0)
    soft = functional.softmax(clean, dim=1).detach()
    return beta * squares - alpha * (soft * functional.log_softmax(adversarial, -1)).sum(1).mean()


def test_ikl_equals_pytorch(x64):
    means = np.random.default_rng(1).dirichlet(np.ones(4), 6)
    objective = objectives.ikl(20.0, 4.0)

    def formula(torch, clean, adversarial, labels):
        robust = torch_dkl(torch, clean, adversarial, torch.tensor(means), 4.0, 20.0)
        return torch.nn.functional.cross_entropy(clean, labels) + robust

    def loss(logits, labels):
        return objective.loss(logits | {"class_means": jnp.asarray(means)}, labels)

    compare(dataclasses.replace(objective, loss=loss), formula, 1e-12)


def test_dkl_has_the_gradients_of_kl(x64):
    """Theorem 1 of the paper; in closed form p_i (log p_i/q_i - KL), and q - p."""
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in LOGITS[:2])

    def loss(clean, adversarial):
        return objectives.decoupled_kl(clean, adversarial).sum()

    clean, adversarial = jax.grad(loss, (0, 1))(*jnp.asarray(LOGITS[:2]))
    kl = (p * np.log(p / q)).sum(1, keepdims=True)
    np.testing.assert_allclose(clean, p * (np.log(p / q) - kl), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(adversarial, q - p, rtol=1e-10, atol=1e-13)
    # With the gradients of both and other weights it would be another: IKL is none of these.
    torch = pytest.importorskip("torch")
    n, a = (torch.tensor(z) for z in LOGITS[:2])
    expected = torch_dkl(torch, n, a, torch.softmax(n, 1), 1.0, 1.0)
    found = objectives.decoupled_kl(*jnp.asarray(LOGITS[:2])).mean()
    np.testing.assert_allclose(found, expected.item(), rtol=1e-12)


def test_smoothing_spreads_labels_and_not_what_a_teacher_says(x64):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    clean, adversarial, helper, teacher = (torch.tensor(array) for array in LOGITS)
    labels = torch.tensor(LABELS)
    logits = dict(zip(("clean", "adversarial", "helper", "teacher"), LOGITS, strict=True))

    def natural(x):
        return functional.cross_entropy(x, labels, label_smoothing=0.3)

    robust = torch_trades(torch, clean, adversarial, labels, 6.0)
    robust = robust - functional.cross_entropy(clean, labels)
    expected = {
        "natural": natural(clean),
        "at": natural(adversarial),
        "trades": natural(clean) + robust,
        "ard": 0.8 * torch_ard(torch, clean, adversarial, teacher, labels, 1.0, 5.0)
        + 0.2 * natural(clean),
        "hat": natural(clean) + robust + 0.5 * functional.cross_entropy(helper, teacher.argmax(1)),
        "ikl": natural(clean)
        + torch_dkl(torch, clean, adversarial, torch.full_like(clean, 0.25), 4.0, 20.0),
    }
    for name in set(objectives.NAMES) - {"mart"}:
        objective = objectives.create(name, alpha=0.8, temperature=5.0, label_smoothing=0.3)
        arrays = {key: jnp.asarray(value) for key, value in logits.items()}
        arrays["class_means"] = jnp.full((6, 4), 0.25)
        found = objective.loss(arrays, jnp.asarray(LABELS)).mean()
        np.testing.assert_allclose(found, expected[name].item(), rtol=1e-12, err_msg=name)


@pytest.mark.core
def test_trades_and_mart_by_hand(x64):
    # clean p = (3/4, 1/4), adversarial q = (1/2, 1/2), label 0.
    logits = {"clean": jnp.array([[np.log(3), 0.0]]), "adversarial": jnp.zeros((1, 2))}
    labels = jnp.array([0])
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    found = objectives.trades(6.0).loss(logits, labels)
    np.testing.assert_allclose(found, [np.log(4 / 3) + 6 * kl], rtol=1e-12)
    found = objectives.mart(5.0).loss(logits, labels)
    boosted = np.log(2) - np.log(1.0001 - 0.5 + 1e-12)
    np.testing.assert_allclose(found, [boosted + 5 * kl * (1.0000001 - 0.75)], rtol=1e-12)


def test_at_and_natural_are_cross_entropy(x64):
    labels = jnp.asarray(LABELS)
    for objective, index in ((objectives.natural(), 0), (objectives.at(), 1)):
        found = objective.loss(_both(), labels)
        log_sum = np.log(np.exp(LOGITS[index]).sum(1))
        np.testing.assert_allclose(found, log_sum - LOGITS[index][np.arange(6), LABELS], rtol=1e-12)
    assert objectives.natural().inputs == ("clean",)
    assert objectives.at().inputs == ("adversarial",)
    assert objectives.natural().attack_loss is None


def test_what_the_attack_ascends(x64):
    clean, adversarial = jnp.asarray(LOGITS[:2])
    labels = jnp.asarray(LABELS)
    for objective in (objectives.at(), objectives.mart(), objectives.ard()):
        found = objective.attack_loss(adversarial, labels, None)
        np.testing.assert_allclose(found, cross_entropy(adversarial, labels), rtol=1e-12)
        assert not objective.attack_uses_clean_logits
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in LOGITS[:2])
    for objective in (objectives.trades(), objectives.hat(), objectives.ikl()):
        found = objective.attack_loss(adversarial, labels, clean)
        np.testing.assert_allclose(found, (p * np.log(p / q)).sum(1), rtol=1e-12)
        assert objective.attack_uses_clean_logits
    released = {"at": ("batch", "uniform"), "trades": ("running", "gaussian")}
    released["mart"] = released["hat"] = released["ikl"] = released["trades"]
    released["ard"] = released["at"]
    for name, (mode, start) in released.items():
        objective = objectives.create(name)
        assert (objective.attack_batch_norm, objective.start) == (mode, start)


@pytest.mark.core
@pytest.mark.parametrize("name", objectives.NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_give_finite_losses_and_gradients(name, dtype):
    rows = [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4] * 3, [-1e4] * 3, [0.0] * 3]
    with jax.enable_x64(dtype == "float64"):
        rows = jnp.array(rows, dtype)
        clean, adversarial = jnp.repeat(rows, 5, axis=0), jnp.tile(rows, (5, 1))
        objective = objectives.create(name)

        @jax.jit
        @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
        def gradients_and_losses(clean, adversarial, labels):
            logits = {"clean": clean, "adversarial": adversarial, "helper": adversarial}
            others = {"teacher": clean[::-1], "class_means": jax.nn.softmax(clean)}
            losses = objective.loss(logits | others, labels)
            return losses.sum(), losses

        for label in range(3):
            gradients, losses = gradients_and_losses(clean, adversarial, jnp.full(25, label))
            assert losses.shape == (25,) and losses.dtype == dtype
            for array in (losses, *gradients):
                assert bool(jnp.isfinite(array).all())


def test_create_and_bad_arguments():
    for name in objectives.NAMES:
        assert objectives.create(name).name == name
    with pytest.raises(ValueError, match="Unknown objective 'trade'.*Did you mean 'trades'"):
        objectives.create("trade")
    with pytest.raises(ValueError, match="beta is -1"):
        objectives.create("trades", beta=-1)
    with pytest.raises(ValueError, match="lambda is 'six'"):
        objectives.create("mart", lambda_="six")
    with pytest.raises(ValueError, match="beta is nan"):
        objectives.trades(float("nan"))
    with pytest.raises(ValueError, match=r"alpha is 1.5, but a number in \[0, 1\]"):
        objectives.create("ard", alpha=1.5)
    with pytest.raises(ValueError, match="temperature is 0, but a positive number"):
        objectives.ard(temperature=0)
    with pytest.raises(ValueError, match="class_temperature is 0, but a positive number"):
        objectives.create("ikl", class_temperature=0)
    with pytest.raises(ValueError, match="helper_scale is -1"):
        objectives.hat(helper_scale=-1)
    with pytest.raises(ValueError, match="'helper' behind 'adversarial'"):
        objectives.Objective("mine", ("clean", "helper"), None, None)
