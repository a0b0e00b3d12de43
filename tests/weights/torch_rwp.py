"""RWP in PyTorch, written from the paper and the released code's order: accumulate, then rescale.

Robust Weight Perturbation for Adversarial Training, IJCAI 2022, https://arxiv.org/abs/2205.14826:
equation 8 and algorithm 1.
"""

import torch
import torch.nn.functional as F
from torch import nn


def network(sizes=(6, 8, 4), seed=0):
    """A multi-layer perceptron in float64."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def losses(net, images, adversarial, labels, objective, beta=6.0):
    """What is ascended, and the cross-entropy that decides, each ``[batch]``."""
    attacked = net(adversarial)
    entropy = F.cross_entropy(attacked, labels, reduction="none")
    if objective == "at":
        return entropy, entropy
    clean = net(images)
    log_clean, log_attacked = clean.log_softmax(1), attacked.log_softmax(1)
    kl = (log_clean.exp() * (log_clean - log_attacked)).sum(1)
    return F.cross_entropy(clean, labels, reduction="none") + beta * kl, entropy


def rwp(net, images, adversarial, labels, *, objective, gamma, c_min, steps, weights=None):
    """``(v of every kernel, number of selected examples at every step)``; the net is unchanged."""
    kernels = [p for p in net.parameters() if p.ndim > 1]
    center = [p.detach().clone() for p in kernels]
    size = torch.sqrt(sum((w**2).sum() for w in center))
    summed = [torch.zeros_like(w) for w in center]
    v, selected = [torch.zeros_like(w) for w in center], []
    for _ in range(steps):
        for p, w, d in zip(kernels, center, v, strict=True):
            p.data = w + d
        values, entropy = losses(net, images, adversarial, labels, objective)
        mask = (entropy <= c_min).double()
        selected.append(int(mask.sum()))
        if not selected[-1]:
            break
        if weights is not None:
            values = values * weights * len(weights) / weights.sum()
        grads = torch.autograd.grad((mask * values).sum() / len(labels), kernels)
        summed = [s + g for s, g in zip(summed, grads, strict=True)]
        length = torch.sqrt(sum((s**2).sum() for s in summed))
        v = [gamma * size * s / length for s in summed]
    for p, w in zip(kernels, center, strict=True):
        p.data = w
    return v, selected


def kernels_of(tree):
    """The kernels of ``{"0": {"kernel", "bias"}, ...}`` in order, transposed as in PyTorch."""
    return [tree[name]["kernel"].T for name in sorted(tree)]


def params_of(net):
    """The parameters as nested dicts of numpy arrays in JAX's layout."""
    linear = [module for module in net if isinstance(module, nn.Linear)]
    return {
        str(place): {
            "kernel": module.weight.detach().numpy().T.copy(),
            "bias": module.bias.detach().numpy().copy(),
        }
        for place, module in enumerate(linear)
    }
