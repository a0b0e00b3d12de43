"""The published architectures in PyTorch, with the names of the released state dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from awp_jax.interop.state_dict import (
    from_torch_layout,
    leaves,
    nested,
    to_state_dict,
    torch_key,
)


def conv3(inputs, outputs, stride=1, bias=False):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        kept = self.shortcut(activated) if self.projects else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + kept


class PostActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResidualNet(nn.Module):
    def __init__(self, block, channels, classes, width, blocks):
        super().__init__()
        self.pre_activation = block is PreActBlock
        self.conv1 = conv3(channels, width)
        if not self.pre_activation:
            self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(block(inputs, width * 2**stage, stride))
                inputs = width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        if self.pre_activation:
            self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv1(x)
        if not self.pre_activation:
            x = F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.pre_activation:
            x = F.relu(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideStage(nn.Module):
    def __init__(self, count, inputs, outputs, stride):
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        rest = [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x):
        return self.layer(x)


class WideNet(nn.Module):
    def __init__(self, depth, width, channels, classes):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = conv3(channels, 16)
        self.block1 = WideStage(count, 16, 16 * width, 1)
        self.block2 = WideStage(count, 16 * width, 32 * width, 2)
        self.block3 = WideStage(count, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class VGGNet(nn.Module):
    def __init__(self, convolutions, width, channels, classes):
        super().__init__()
        layers = []
        inputs = channels
        for count, multiplier in zip(convolutions, (1, 2, 4, 8, 8), strict=True):
            for _ in range(count):
                outputs = width * multiplier
                layers += [conv3(inputs, outputs, bias=True), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class MnistNet(nn.Module):
    def __init__(self):
        super().__init__()
        channels = {"conv1": (1, 32), "conv2": (32, 32), "conv3": (32, 64), "conv4": (64, 64)}
        self.feature_extractor = nn.ModuleDict(
            {name: nn.Conv2d(*sizes, 3) for name, sizes in channels.items()}
        )
        self.classifier = nn.ModuleDict(
            {"fc1": nn.Linear(1024, 200), "fc2": nn.Linear(200, 200), "fc3": nn.Linear(200, 10)}
        )

    def forward(self, x):
        conv, dense = self.feature_extractor, self.classifier
        x = F.max_pool2d(F.relu(conv["conv2"](F.relu(conv["conv1"](x)))), 2)
        x = F.max_pool2d(F.relu(conv["conv4"](F.relu(conv["conv3"](x)))), 2)
        x = F.relu(dense["fc1"](x.flatten(1)))
        return dense["fc3"](F.relu(dense["fc2"](x)))


def scatter(tree, seed):
    """Values that leave nothing at its default: positive variances and scales, all else normal."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1]
        if name == "threshold":
            return rng.uniform(0.1, 0.3, leaf.shape)
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        scale = max(1, np.prod(leaf.shape[:-1])) ** -0.5 if name == "kernel" else 0.1
        return scale * rng.standard_normal(leaf.shape)

    return nested({path: jnp.asarray(draw(path, leaf)) for path, leaf in leaves(tree)})


def scattered(classifier, seed=0):
    """``(params, batch_stats)`` with no value at its default."""
    params, batch_stats = jax.eval_shape(classifier.init, jax.random.key(0))
    return scatter(params, seed), scatter(batch_stats, seed + 1)


def copy_into(module, classifier, params, batch_stats):
    """Loads the JAX values into a PyTorch module, strictly, and returns it."""
    state = to_state_dict(classifier, params, batch_stats)
    dtype = torch.float64 if jax.tree.leaves(params)[0].dtype == jnp.float64 else torch.float32
    module = module.to(dtype)
    module.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return module


def like(classifier, tree, values):
    """The tensors in ``values`` (by PyTorch name) in the structure and layout of ``tree``."""
    return nested(
        {
            path: from_torch_layout(values[torch_key(classifier.name, path)].detach().numpy())
            for path, _ in leaves(tree)
        }
    )


def relative(found, expected):
    """Largest difference over the whole tree against the whole tree's norm.

    Per leaf it would divide by the zero gradient of a bias that a BatchNorm follows.
    """
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected))
    gaps = zip(found, expected, strict=True)
    return max(np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in gaps) / norm


def gap(classifier, module, mode):
    """The largest relative gap of logits, gradients and (mode "update") running statistics."""
    params, batch_stats = scattered(classifier)
    copy_into(module, classifier, params, batch_stats)
    module.train(mode == "update")
    dtype = jax.tree.leaves(params)[0].dtype
    rng = np.random.default_rng(7)
    images = rng.uniform(size=(6, *classifier.image_shape)).astype(dtype)
    weights = rng.standard_normal((6, classifier.num_classes)).astype(dtype)

    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    outputs = module(pixels)
    (outputs * torch.tensor(weights)).sum().backward()

    def loss(params, images):
        # Without dropout no key is needed, not even to update the running statistics.
        logits, stats = classifier.apply(params, batch_stats, images, mode=mode)
        return (logits * weights).sum(), (logits, stats)

    # Most of the time here is compilation.
    fast = {"xla_backend_optimization_level": 0}
    wanted = (0, 1) if mode == "update" else (1,)
    step = jax.jit(jax.grad(loss, wanted, has_aux=True), compiler_options=fast)
    gradients, (logits, stats) = step(params, images)
    assert logits.dtype == dtype
    gaps = [
        relative(logits, outputs.detach().numpy()),
        relative(gradients[-1], pixels.grad.numpy().transpose(0, 2, 3, 1)),
    ]
    if mode == "update":
        named = {key: value.grad for key, value in module.named_parameters()}
        gaps.append(relative(gradients[0], like(classifier, params, named)))
        if stats:
            buffers = dict(module.named_buffers())
            gaps.append(relative(stats, like(classifier, stats, buffers)))
    return max(gaps)
