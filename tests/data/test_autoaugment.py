"""AutoAugment's operations against Pillow, and the policy against its probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from awp_jax.data import autoaugment
from awp_jax.data.autoaugment import _OPERATIONS, CIFAR10_POLICY, _apply, _magnitude
from awp_jax.random import example_keys

AFFINE, NEAREST = Image.Transform.AFFINE, Image.Resampling.NEAREST


def images():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (6, 32, 32, 3))
    smooth = noise[:3, :4, :4].repeat(8, 1).repeat(8, 2) * 0.6 + 0.1 * noise[3:]
    flat = np.full((1, 32, 32, 3), 77)
    return np.concatenate([noise, smooth, flat]).astype(np.uint8)


def pillow(name, size, image):
    picture = Image.fromarray(image)
    if name == "rotate":
        picture = picture.rotate(size, NEAREST)
    elif name in ("translate-x", "translate-y", "shear-y"):
        offset = float(int(size * 32))
        matrix = {
            "translate-x": (1, 0, offset, 0, 1, 0),
            "translate-y": (1, 0, 0, 0, 1, offset),
            "shear-y": (1, 0, 0, size, 1, 0),
        }[name]
        picture = picture.transform(picture.size, AFFINE, matrix, NEAREST)
    elif name in ("color", "brightness", "contrast", "sharpness"):
        picture = getattr(ImageEnhance, name.capitalize())(picture).enhance(size)
    elif name == "posterize":
        picture = ImageOps.posterize(picture, int(size))
    elif name == "solarize":
        picture = ImageOps.solarize(picture, size)
    else:
        picture = getattr(ImageOps, name)(picture)
    return np.asarray(picture)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(_apply)


@pytest.mark.parametrize("name", _OPERATIONS)
def test_an_operation_is_that_of_pillow(compiled, name):
    levels = {level for pair in CIFAR10_POLICY for n, _, level in pair if n == name}
    assert levels
    batch = images()
    codes = jnp.full(len(batch), _OPERATIONS.index(name))
    for level in sorted(levels):
        for sign in (-1, 1):
            size = _magnitude(name, level, sign)
            found = np.asarray(compiled(codes, jnp.full(len(batch), size, jnp.float32), batch))
            expected = np.stack([pillow(name, size, image) for image in batch])
            difference = np.abs(found.astype(int) - expected)
            # Pillow stretches contrast in doubles and truncates, so that exact levels may lose 1.
            assert difference.max() <= (1 if name == "autocontrast" else 0), (level, sign)
            assert name != "autocontrast" or (difference > 0).mean() < 0.01


def test_the_policy_is_a_random_pair_with_its_probabilities(compiled):
    """On one image many times: how often each possible outcome comes, by Pillow."""
    image, count = images()[6], 1500
    many, keys = np.tile(image, (count, 1, 1, 1)), example_keys(jax.random.key(0), count)
    augment = jax.jit(autoaugment)
    found = np.asarray(augment(keys, many))
    # What happens to an image depends on its key, not on its place.
    order = np.random.default_rng(1).permutation(count)
    np.testing.assert_array_equal(found[order], augment(keys[order], many))
    outcomes: dict[bytes, float] = {}
    for pair in CIFAR10_POLICY:
        states = [(image, 1 / len(CIFAR10_POLICY))]
        for name, probability, level in pair:
            after = []
            for state, chance in states:
                after.append((state, chance * (1 - probability)))
                for sign in (-1, 1):
                    size = _magnitude(name, level, sign)
                    changed = pillow(name, size, state)
                    if name == "autocontrast":  # as computed here, see above
                        batch = images()
                        batch[0] = state
                        codes = jnp.full(len(batch), _OPERATIONS.index(name))
                        changed = np.asarray(compiled(codes, jnp.zeros(len(batch)), batch))[0]
                    after.append((changed, chance * probability / 2))
            states = after
        for state, chance in states:
            outcomes[state.tobytes()] = outcomes.get(state.tobytes(), 0.0) + chance
    seen: dict[bytes, int] = {}
    for result in found:
        seen[result.tobytes()] = seen.get(result.tobytes(), 0) + 1
    assert seen.keys() <= outcomes.keys()
    for outcome, chance in outcomes.items():
        expected = count * chance
        assert abs(seen.get(outcome, 0) - expected) < 5 * np.sqrt(expected) + 3


def test_only_colour_bytes():
    with pytest.raises(ValueError, match="AutoAugment takes uint8 images"):
        autoaugment(example_keys(jax.random.key(0), 1), np.zeros((1, 8, 8, 3), np.float32))
