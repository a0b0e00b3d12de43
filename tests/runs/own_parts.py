"""Parts of a user, as a config names them: what library names give, and what they cannot."""

import flax.linen as nn
import jax
import optax
from flax import nnx

from awp_jax import data, models, objectives
from awp_jax.attacks import cross_entropy
from awp_jax.weights import adversarial_displacement


def digits(seed):
    return data.load(
        "digits", train_examples=64, validation_examples=20, test_examples=40, seed=seed
    )


def whole_digits():
    """Cut by the config, as the library's own."""
    return data.load("digits")


def mlp(image_shape, num_classes, width):
    return models.create("mlp", image_shape=image_shape, num_classes=num_classes, width=width)


def at():
    return objectives.at()


def ascended(ascent, ball):
    return adversarial_displacement(
        ascent.params, jax.grad(lambda w: ascent.losses_fn(w)[0].mean()), ball
    )


def one_step(logits_fn, key, images, labels):
    """FGSM of 0.15 from the image itself."""
    gradient = jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum())(images)
    return (images + 0.15 * jax.numpy.sign(gradient)).clip(0, 1)


class LinenNet(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        features = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(images)))
        features = nn.Dropout(0.2, deterministic=not train)(features.reshape(len(images), -1))
        return nn.Dense(self.classes)(features)


def linen_net(image_shape, num_classes):
    return LinenNet(num_classes)


class Net(nnx.Module):
    def __init__(self, image_shape, num_classes, *, rngs):
        height, breadth, channels = image_shape
        self.conv = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.dense = nnx.Linear(height * breadth * 4, num_classes, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.norm(self.conv(images)))
        return self.dense(self.dropout(features.reshape(len(images), -1)))


def of_another_shape(image_shape, num_classes, width):
    return mlp(image_shape, num_classes + 1, width)


def three(*arguments, **options):
    return 3


answer = 42


def mean_loss():
    return objectives.Objective(
        "mean", ("adversarial",), lambda logits, labels: logits["adversarial"].mean(), None
    )


def mean_attack_loss():
    return objectives.Objective(
        "mean attack",
        ("adversarial",),
        lambda logits, labels: cross_entropy(logits["adversarial"], labels),
        lambda logits, labels, clean: logits.mean(),
    )


def summed_updates(learning_rate):
    return optax.stateless(
        lambda g, p: jax.tree.map(lambda leaf: -learning_rate(0) * leaf.sum(), g)
    )


def one_set_of_other_images():
    found = data.load("digits")
    test = data.Dataset(found.test.images[:, ::2], found.test.labels, 10, "half")
    return data.Splits(found.train, None, test)


class Needs(nn.Module):
    number: int = 10

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.number)(images.reshape(len(images), -1))
