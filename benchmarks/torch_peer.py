"""The training step in PyTorch that ours is timed against: networks and reference of the tests.

Eager is the released way: float32, the default layout, one kernel after another. It is kinder than
the released code, whose attack also computes gradients in the weights and throws them away. Tuned
adds channels_last and ``torch.compile``, on a GPU also bfloat16 autocast and fused SGD.
"""

import contextlib
import pathlib
import sys

import torch
import torch.nn.functional as F

_TESTS = pathlib.Path(__file__).parents[1] / "tests"
for folder in ("models", "training"):
    sys.path.insert(0, str(_TESTS / folder))

from torch_models import MnistNet, PreActBlock, ResidualNet, WideNet  # noqa: E402
from torch_reference import Reference, shadow  # noqa: E402


def mnist_net():
    """The CNN of TRADES with the dropout that it trains with."""
    net = MnistNet()
    net.classifier["fc1"].register_forward_hook(
        lambda module, inputs, out: F.dropout(F.relu(out), 0.5, module.training)
    )
    return net


NETWORKS = {
    "digits-resnet": lambda: ResidualNet(PreActBlock, 1, 10, 12, (1, 1, 1, 1)),
    "mnist-cnn": mnist_net,
    "preact-resnet-18": lambda: ResidualNet(PreActBlock, 3, 10, 64, (2, 2, 2, 2)),
    "wrn-34-10": lambda: WideNet(34, 10, 3, 10),
}


class Normalised(torch.nn.Module):
    """Mean and deviation before the network, as ours has them inside."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images):
        return self.net((images - self.mean) / self.std)


def compiler_works():
    """Whether ``torch.compile`` can build code here."""
    try:
        return float(torch.compile(lambda x: x.sin() + 1)(torch.zeros(4)).sum()) == 4.0
    except Exception:  # whatever the toolchain lacks
        return False


class Peer:
    """One model with its optimiser; ``step()`` trains on a batch that stays on the device."""

    def __init__(self, name, classifier, settings, images, labels, *, device, tuned=False):
        """``settings``: keywords of ``Reference``; images ``[batch, height, width, channels]``."""
        torch.manual_seed(0)
        net = NETWORKS[name]()
        if classifier.mean:
            net = Normalised(net, classifier.mean, classifier.std)
        net = net.to(device)
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
        self.labels = torch.from_numpy(labels).long().to(device)
        self.device, self.on_gpu = device, device == "cuda"
        proxy = None
        if tuned:
            net = net.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            proxy = torch.compile(shadow(net))
            net = torch.compile(net)
        self.half = tuned and self.on_gpu
        self.net, self.reference = net, Reference(**settings, proxy=proxy)
        self.optimizer = torch.optim.SGD(
            net.parameters(),
            lr=0.01,
            momentum=0.9,
            weight_decay=5e-4,
            fused=True if tuned and self.on_gpu else None,
        )

    def step(self):
        """One step, finished when it returns; the loss."""
        epsilon = self.reference.epsilon
        precision = (
            torch.autocast("cuda", torch.bfloat16) if self.half else contextlib.nullcontext()
        )
        start = self.images + (2 * torch.rand_like(self.images) - 1) * epsilon
        with precision:
            loss = self.reference.step(
                self.net, self.optimizer, self.images, self.labels, start=start.clamp(0, 1)
            )
        if self.on_gpu:
            torch.cuda.synchronize()
        return loss

    def peak_bytes(self):
        """The most memory a step takes on the GPU; ``None`` on CPU."""
        if not self.on_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        self.step()
        return torch.cuda.max_memory_allocated()


def autoattack(module, epsilon, queries, steps=100):
    """AutoAttack's standard version, Linf, by torchattacks, whose own runs 10 steps, not 100."""
    import torchattacks

    common = {"norm": "Linf", "eps": epsilon}
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(module, **common, steps=steps),
            torchattacks.APGDT(module, **common, steps=steps),
            torchattacks.FAB(module, **common, steps=steps, multi_targeted=True),
            torchattacks.Square(module, **common, n_queries=queries, resc_schedule=False),
        ]
    )
