"""TrivialAugment against torchvision on Pillow's images: every operation at every strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from awp_jax.data import trivialaugment
from awp_jax.data.trivialaugment import LEVELS, OPERATIONS, SIGNED, apply, strength
from awp_jax.random import example_keys

NAMES = {
    **{"identity": "Identity", "shear-x": "ShearX", "shear-y": "ShearY", "rotate": "Rotate"},
    **{"translate-x": "TranslateX", "translate-y": "TranslateY", "autocontrast": "AutoContrast"},
    **{name: name.capitalize() for name in ("brightness", "color", "contrast", "sharpness")},
    **{name: name.capitalize() for name in ("posterize", "solarize", "equalize")},
}


def pictures(height=32, width=32):
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (4, height, width, 3))
    smooth = np.stack([np.add.outer(np.arange(height), np.arange(width))] * 3, -1) * [1, 2, 3]
    flat = np.full((height, width, 3), 77)
    return np.stack([*noise, smooth % 256, smooth // 4 + 60, flat]).astype(np.uint8)


@pytest.fixture(scope="module")
def transforms():
    pytest.importorskip("torch")
    from torchvision_peer import has_torchvision

    if not has_torchvision():
        pytest.skip("no torchvision")
    from torchvision.transforms import autoaugment

    return autoaugment


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(apply)


def peer(transforms, name, level, sign, image):
    space = transforms.TrivialAugmentWide()._augmentation_space(LEVELS)
    assert len(space) == len(OPERATIONS)
    magnitudes, signed = space[NAMES[name]]
    assert signed == (name in SIGNED)
    size = strength(name, level)
    # Not theirs: torch.linspace rounds as the machine does, 16 pixels to 15.999999.
    assert size == pytest.approx(float(magnitudes[level] if magnitudes.ndim else 0), abs=2e-6)
    size = -size if signed and not sign else size
    nearest = transforms.InterpolationMode.NEAREST
    return np.asarray(
        transforms._apply_op(Image.fromarray(image), NAMES[name], size, nearest, None)
    )


@pytest.mark.parametrize("shape", [(32, 32), (20, 28)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_torchvision(transforms, compiled, name, shape):
    images = pictures(*shape) if shape == (32, 32) else pictures(*shape)[3:6]
    code = jnp.full(len(images), OPERATIONS.index(name))
    for level in range(LEVELS):
        for sign in (0, 1):
            filled = (jnp.full(len(images), value) for value in (level, sign))
            found = np.asarray(compiled(code, *filled, images))
            expected = np.stack([peer(transforms, name, level, sign, one) for one in images])
            difference = np.abs(found.astype(int) - expected)
            # Pillow stretches contrast in doubles and truncates, so that exact levels may lose 1.
            assert difference.max() <= (1 if name == "autocontrast" else 0), (level, sign)
            assert name != "autocontrast" or (difference > 0).mean() < 0.01


def test_operations_levels_and_signs_are_equally_likely(compiled):
    image, count = pictures()[0], 3000
    many, keys = np.tile(image, (count, 1, 1, 1)), example_keys(jax.random.key(0), count)
    found = np.asarray(jax.jit(trivialaugment)(keys, many))
    order = np.random.default_rng(1).permutation(count)
    # What happens to an image depends on its key, not on its place.
    np.testing.assert_array_equal(found[order], jax.jit(trivialaugment)(keys[order], many))
    grid = np.indices((len(OPERATIONS), LEVELS, 2)).reshape(3, -1)
    every = np.asarray(compiled(*map(jnp.asarray, grid), np.tile(image, (grid.shape[1], 1, 1, 1))))
    chances: dict[bytes, float] = {}
    for outcome in every:
        key = outcome.tobytes()
        chances[key] = chances.get(key, 0.0) + 1 / len(every)
    seen: dict[bytes, int] = {}
    for result in found:
        seen[result.tobytes()] = seen.get(result.tobytes(), 0) + 1
    assert seen.keys() <= chances.keys()
    for outcome, chance in chances.items():
        expected = count * chance
        assert abs(seen.get(outcome, 0) - expected) < 5 * np.sqrt(expected) + 3


def test_only_colour_bytes():
    with pytest.raises(ValueError, match="TrivialAugment takes uint8 images"):
        trivialaugment(example_keys(jax.random.key(0), 1), np.zeros((1, 8, 8, 3), np.float32))
