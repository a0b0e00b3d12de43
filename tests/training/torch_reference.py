"""AWP training steps in PyTorch, written from the paper: what the JAX step is compared with.

AWP, NeurIPS 2020, https://arxiv.org/abs/2004.05884: equations 9 to 17 and algorithm 2. Objectives:
TRADES (https://arxiv.org/abs/1901.08573) and MART (Wang et al., ICLR 2020).
"""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


def lengths(images):
    """The L2 norm of each example, to broadcast against ``images``."""
    return images.flatten(1).norm(dim=1)[:, None, None, None]


class Block(nn.Module):
    """Pre-activation residual block; a 1x1 shortcut of the activated input where shapes differ."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class ResidualNet(nn.Module):
    """Stem, stages of ``(channels, stride)`` with one block each, BatchNorm, pool, dense layer.

    ``names`` are those of the stages, the last BatchNorm and the dense layer.
    """

    def __init__(self, stem, stages, classes, *, names=("layer", "bn", "linear"), mean=(), std=()):
        super().__init__()
        self.names, self.depth = names, len(stages)
        self.mean, self.std = mean, std
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        channels = stem
        for index, (outputs, stride) in enumerate(stages):
            setattr(
                self, f"{names[0]}{index + 1}", nn.ModuleList([Block(channels, outputs, stride)])
            )
            channels = outputs
        setattr(self, names[1], nn.BatchNorm2d(channels))
        setattr(self, names[2], nn.Linear(channels, classes))

    def forward(self, images):
        x = images
        if self.mean:
            x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]
        x = self.conv1(x)
        for index in range(self.depth):
            for block in getattr(self, f"{self.names[0]}{index + 1}"):
                x = block(x)
        x = F.relu(getattr(self, self.names[1])(x)).mean((2, 3))
        return getattr(self, self.names[2])(x)


def shadow(net):
    """The same network on the same parameters, with BatchNorm statistics of its own."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters()})


def randomise_batch_norm(net, seed):
    """BatchNorm parameters and statistics away from 0 and 1, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)


@dataclasses.dataclass
class Reference:
    """One way of training, for ``step``.

    ``mistake`` names one deliberate error, to show that a comparison would notice it.
    """

    objective: str = "at"  # natural, at, trades, mart
    weight: float = 6.0  # beta of TRADES, lambda of MART
    gamma: float = 0.0  # 0: no weight perturbation
    weight_steps: int = 1  # K2
    alternations: int = 1  # A
    size: int = 2  # the norm of eqs. 10 and 15: 1 or 2
    norm: str = "linf"
    epsilon: float = 8 / 255
    attack_steps: int = 10  # K1
    step_size: float = 2 / 255
    attack_batch_norm: str = "batch"  # batch, running, released
    mistake: str = ""
    proxy: nn.Module | None = None  # as `shadow` makes it; None: a new one for every use

    def step(self, net, optimizer, images, labels, adversarial=None, start=None):
        """Algorithm 2: moves ``net``; returns the loss at w + v.

        ``adversarial`` are fixed images in place of the attack's, ``start`` is where it starts.
        """
        given = adversarial
        layers = [p for p in net.parameters() if p.ndim > 1 or self.mistake == "all perturbed"]
        center = [p.detach().clone() for p in layers]  # w
        v = [torch.zeros_like(p) for p in layers]

        def place(displacement):
            for p, w, d in zip(layers, center, displacement, strict=True):
                torch.add(w, d, out=p.data)

        for _ in range(self.alternations):
            adversarial = given
            if given is None and self.objective != "natural":
                adversarial = self._attack(net, images, labels, start)
            for _ in range(self.weight_steps if self.gamma else 0):
                v = self._ascend(net, layers, center, v, images, adversarial, labels)
                place(v)

        net.train()
        loss = self._loss(net, images, adversarial, labels)
        optimizer.zero_grad()
        loss.backward()
        if self.mistake == "decay at w":
            place([torch.zeros_like(d) for d in v])
        optimizer.step()
        if self.mistake != "decay at w":
            for p, d in zip(layers, v, strict=True):
                p.data -= d
        if self.attack_batch_norm == "released":  # a pass for the log, with the new weights
            with torch.no_grad():
                net(images)
        return loss.item()

    def _ascend(self, net, layers, center, v, images, adversarial, labels):
        """Equations 10 and 15, at net = w + v; eta2 = gamma / (A K2)."""
        # On a copy, so that the running statistics do not see it.
        proxy = net if self.mistake == "ascent moves statistics" else self._shadow(net)
        proxy.train()
        loss = self._loss(proxy, images, adversarial, labels)
        grads = torch.autograd.grad(loss, layers)
        step = self.gamma / (self.alternations * self.weight_steps)
        moved = []
        for w, d, g in zip(center, v, grads, strict=True):
            size = w.norm(self.size)
            d = d + step * size * g / g.norm(self.size)
            length = d.norm(self.size)
            if length > self.gamma * size:
                d = d * (self.gamma * size / length)
            moved.append(d)
        return moved

    def _loss(self, net, images, adversarial, labels):
        """The mean loss; clean images go through the network first."""
        if self.objective == "natural":
            return F.cross_entropy(net(images), labels)
        if self.objective == "at":
            return F.cross_entropy(net(adversarial), labels)
        if self.mistake == "adversarial first":
            attacked, clean = net(adversarial), net(images)
        else:
            clean, attacked = net(images), net(adversarial)
        log_clean, log_attacked = clean.log_softmax(1), attacked.log_softmax(1)
        if self.mistake == "clean side detached":
            log_clean = log_clean.detach()
        kl = (log_clean.exp() * (log_clean - log_attacked)).sum(1)
        if self.objective == "trades":
            return F.cross_entropy(clean, labels) + self.weight * kl.mean()
        chosen = labels[:, None]
        wrong = attacked.softmax(1).scatter(1, chosen, -1.0).max(1).values
        bce = F.cross_entropy(attacked, labels, reduction="none")
        bce = bce - torch.log(1.0001 - wrong + 1e-12)
        right = clean.softmax(1).gather(1, chosen)[:, 0]
        return (bce + self.weight * kl * (1.0000001 - right)).mean()

    def _shadow(self, net):
        return shadow(net) if self.proxy is None else self.proxy

    def _attack(self, net, images, labels, start):
        """Equation 9 (16 for TRADES) at net = w + v, or its L2 counterpart."""
        target = net if self.attack_batch_norm == "released" else self._shadow(net)
        target.train(self.attack_batch_norm != "running")
        # No gradient in the weights, which the released code computes and throws away.
        target.requires_grad_(False)
        try:
            return self._ascend_images(target, images, labels, start)
        finally:
            target.requires_grad_(True)

    def _ascend_images(self, target, images, labels, start):
        clean = None
        if self.objective == "trades":
            with torch.no_grad():
                clean = target(images).log_softmax(1)

        def ascended(x):
            logits = target(x)
            if clean is None:
                return F.cross_entropy(logits, labels, reduction="sum")
            return (clean.exp() * (clean - logits.log_softmax(1))).sum()

        x = images if start is None else start
        for _ in range(self.attack_steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ascended(x), x)
            x = x.detach()
            if self.norm == "linf":
                x = x + self.step_size * gradient.sign()
                x = torch.maximum(torch.minimum(x, images + self.epsilon), images - self.epsilon)
            else:
                # The released L2 attack adds 1e-10 to the length, which makes steps shorter by 1e-7
                # where the KL is near its minimum; here a direction has length 1.
                x = x + self.step_size * gradient / lengths(gradient)
                length = lengths(x - images)
                x = images + (x - images) * (self.epsilon / length).clamp(max=1.0)
            x = x.clamp(0, 1)
        if self.attack_batch_norm == "released":  # the pass that picks among restarts
            with torch.no_grad():
                ascended(x)
        return x
