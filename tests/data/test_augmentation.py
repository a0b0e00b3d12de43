"""Augmentation against numpy and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from awp_jax.data import as_float, cutout, random_erasing
from awp_jax.data import augment as augment_eagerly
from awp_jax.random import example_keys

# One compilation in place of one for each operation.
NAMES = ("crop_padding", "crop_mode", "flip", "rotation_degrees", "rotation_interpolation")
augment = jax.jit(augment_eagerly, static_argnames=NAMES)
OFF = {"crop_padding": 0, "flip": False}


def keys_of(count, seed=0):
    return example_keys(jax.random.key(seed), count)


def noise(count, height=8, width=8, channels=3, seed=0):
    shape = (count, height, width, channels)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def crops(image, padding, mode):
    """All crops of one image by offset, made by numpy."""
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(image, sides, mode={"reflect": "reflect", "zero": "constant"}[mode])
    height, width, _ = image.shape
    return {
        (row, column): padded[row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }


@pytest.mark.core
@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("convert", [np.asarray, as_float])
def test_crop_is_one_of_numpys_and_reaches_all(mode, convert):
    image = convert(noise(1, 6, 7)[0])
    candidates = crops(image, 2, mode)
    images = np.broadcast_to(image, (600, *image.shape))
    out = np.asarray(augment(keys_of(600), images, crop_padding=2, crop_mode=mode, flip=False))
    assert out.dtype == image.dtype
    by_bytes = {crop.tobytes(): offset for offset, crop in candidates.items()}
    assert len(by_bytes) == 25
    counts = dict.fromkeys(candidates, 0)
    for result in out:
        counts[by_bytes[result.tobytes()]] += 1
    # Uniform: 24 expected in each of 25, standard deviation 4.8.
    assert min(counts.values()) > 4 and max(counts.values()) < 48


@pytest.mark.core
def test_flip_is_exact_and_fair():
    images = noise(1000, 4, 5)
    out = np.asarray(augment(keys_of(1000), images, crop_padding=0))
    flipped = (out == images[:, :, ::-1]).all((1, 2, 3))
    same = (out == images).all((1, 2, 3))
    assert (flipped ^ same).all()
    assert 430 < flipped.sum() < 570  # 4.4 standard deviations


@pytest.mark.core
def test_everything_off_returns_the_images():
    images = noise(3)
    assert (np.asarray(augment(keys_of(3), images, **OFF)) == images).all()
    assert (np.asarray(cutout(keys_of(3), images, 0)) == images).all()
    jaxpr = jax.make_jaxpr(lambda k, x: augment_eagerly(k, x, **OFF))(
        keys_of(3), jnp.asarray(images)
    )
    assert not jaxpr.eqns


@pytest.mark.core
def test_result_does_not_depend_on_the_batch_layout():
    images, keys = noise(12), keys_of(12)
    settings = {"crop_padding": 2, "rotation_degrees": 30.0}
    whole = np.asarray(augment(keys, images, **settings))
    halves = [
        np.asarray(augment(keys[i : i + 4], images[i : i + 4], **settings)) for i in (0, 4, 8)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    order = np.random.RandomState(0).permutation(12)
    np.testing.assert_array_equal(whole[order], augment(keys[order], images[order], **settings))
    eager = augment_eagerly(keys[:2], images[:2], **settings)
    np.testing.assert_array_equal(whole[:2], eager)


def test_result_does_not_depend_on_the_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    images, keys = noise(8), keys_of(8)
    out = augment(jax.device_put(keys, sharding), jax.device_put(images, sharding))
    np.testing.assert_array_equal(out, augment(keys, images))


def test_switching_one_off_leaves_the_draws_of_the_others():
    images = noise(20)
    both = np.asarray(augment(keys_of(20), images, crop_padding=2))
    cropped = np.asarray(augment(keys_of(20), images, crop_padding=2, flip=False))
    same = (both == cropped).all((1, 2, 3))
    flipped = (both == cropped[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ flipped).all() and same.any() and flipped.any()


def drawn_angles(keys, degrees):
    """The angles in degrees, read off a rotated pair of coordinate ramps."""
    size = 65
    y, x = np.mgrid[:size, :size] / (size - 1)
    ramps = np.broadcast_to(np.stack([y, x], -1).astype(np.float32), (len(keys), size, size, 2))
    out = np.asarray(
        augment(keys, ramps, **OFF, rotation_degrees=degrees, rotation_interpolation="bilinear")
    )
    centre, right = out[:, 32, 32], out[:, 32, 52]
    dy, dx = (right - centre).T
    # What comes to the right of the centre was below it: counter-clockwise.
    return np.degrees(np.arctan2(dy, dx))


@pytest.mark.parametrize("shape", [(9, 9), (9, 12), (10, 10)])
@pytest.mark.parametrize("interpolation, order", [("nearest", 0), ("bilinear", 1)])
def test_rotation_equals_scipys_by_the_drawn_angle(shape, interpolation, order):
    keys = keys_of(8, seed=5)
    images = as_float(noise(8, *shape))
    settings = {"rotation_degrees": 60.0, "rotation_interpolation": interpolation}
    out = np.asarray(augment(keys, images, **OFF, **settings))
    angles = drawn_angles(keys, 60.0)
    for image, result, angle in zip(images, out, angles, strict=True):
        # "grid-constant" goes over to 0 beyond the outer pixels, as torchvision and jax do.
        options = {"reshape": False, "mode": "grid-constant", "prefilter": False}
        expected = ndimage.rotate(image, angle, order=order, **options)
        close = np.isclose(result, expected, atol=2e-3)
        # In float32 a point between two pixels may fall to either.
        assert close.mean() > 0.98


def test_rotation_by_90_degrees_is_counter_clockwise_and_exact():
    images = noise(64, 6, 6)
    keys = keys_of(64)
    # Angles near +-90: rotate uint8 by sampling only the nearest pixels.
    angles = drawn_angles(keys, 180.0)
    out = np.asarray(augment(keys, images, **OFF, rotation_degrees=180.0))
    near = np.abs(np.abs(angles) - 90) < 3
    assert near.any()
    for image, result, angle in zip(images[near], out[near], angles[near], strict=True):
        assert (result == np.rot90(image, 1 if angle > 0 else -1)).all()


def test_rotation_angles_are_uniform_and_zero_fill():
    angles = drawn_angles(keys_of(300, seed=1), 15.0)
    assert -15.01 < angles.min() < -13.5 and 13.5 < angles.max() < 15.01
    assert abs(angles.mean()) < 2  # standard error 0.5
    white = np.full((20, 32, 32, 1), 255, np.uint8)
    out = np.asarray(augment(keys_of(20), white, **OFF, rotation_degrees=45.0))
    assert set(np.unique(out)) == {0, 255} and (out[:, 8:24, 8:24] == 255).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), bilinear=st.booleans())
def test_range_is_kept(seed, bilinear):
    images = np.random.RandomState(seed).choice([0.0, 1.0], (4, 8, 8, 3)).astype(np.float32)
    interpolation = "bilinear" if bilinear else "nearest"
    out = augment(
        keys_of(4, seed),
        images,
        crop_padding=3,
        rotation_degrees=180.0,
        rotation_interpolation=interpolation,
    )
    assert out.dtype == np.float32 and out.shape == images.shape
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.core
def test_cutout_is_one_square_and_reaches_the_corners():
    images = np.full((500, 7, 9, 2), 9, np.uint8)
    out = np.asarray(jax.jit(cutout, static_argnums=2)(keys_of(500), images, 4))
    areas = set()
    for result in out:
        rows, columns = np.nonzero(result[..., 0] == 0)
        box = np.ones((np.ptp(rows) + 1, np.ptp(columns) + 1))
        assert box.size == len(rows) and max(box.shape) <= 4  # one full rectangle
        assert (result[..., 1] == result[..., 0]).all()
        areas.add(len(rows))
    assert max(areas) == 16 and min(areas) == 4
    assert (out == 0).any(0).all()


def boxes(erased):
    """``{(height, width): how often}`` of what was erased, and how often nothing was."""
    found, nothing = {}, 0
    for one in erased:
        rows, columns = np.nonzero(one.any(1))[0], np.nonzero(one.any(0))[0]
        if not len(rows):
            nothing += 1
            continue
        shape = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert one.sum() == shape[0] * shape[1]  # one full rectangle
        found[shape] = found.get(shape, 0) + 1
    return found, nothing


def test_random_erasing_is_that_of_torchvision():
    """How often each rectangle comes, and that every place is as likely."""
    pytest.importorskip("torch")
    from torchvision_peer import has_torchvision

    if not has_torchvision():
        pytest.skip("no torchvision")
    import torch
    from torchvision.transforms import RandomErasing

    count, height, width = 6000, 6, 9
    images = np.full((count, height, width, 2), 9, np.uint8)
    erase = jax.jit(random_erasing, static_argnums=2)
    out = np.asarray(erase(keys_of(count), images, 0.6))
    assert (out[..., 1] == out[..., 0]).all() and set(np.unique(out)) == {0, 9}
    torch.manual_seed(0)
    peer, one = RandomErasing(p=0.6), torch.ones(1, height, width)
    theirs = np.stack([(peer(one)[0] == 0).numpy() for _ in range(count)])
    (found, nothing), (expected, kept) = boxes(out[..., 0] == 0), boxes(theirs)
    assert abs(nothing - kept) < 5 * np.sqrt(2 * kept)
    for shape in found | expected:
        ours, others = found.get(shape, 0), expected.get(shape, 0)
        assert abs(ours - others) < 5 * np.sqrt(ours + others) + 3, shape
    places = np.abs((out[..., 0] == 0).sum(0) - theirs.sum(0))
    assert (places < 5 * np.sqrt(2 * theirs.sum(0))).all()


def test_random_erasing_by_hand():
    keys, images = keys_of(50), noise(50)
    whole = random_erasing(keys, images, 1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0), value=1.0)
    changed = np.asarray(whole != images).any(-1)
    for one, image in zip(changed, np.asarray(whole), strict=True):
        rows, columns = np.nonzero(one.any(1))[0], np.nonzero(one.any(0))[0]
        assert (image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 255).all()
        assert max(np.ptp(rows), np.ptp(columns)) < 4  # a quarter of 8 x 8, square
    # As large as the image is no rectangle inside it, so nothing is erased.
    np.testing.assert_array_equal(
        random_erasing(keys, images, 1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)), images
    )
    np.testing.assert_array_equal(random_erasing(keys, images, 0.0), images)
    floats = np.asarray(random_erasing(keys, as_float(images), 1.0, value=0.5))
    assert floats.dtype == np.float32 and (floats == 0.5).any()
    for options, message in (
        ({"probability": 1.5}, "probability must lie"),
        ({"scale": (0.5, 0.1)}, "scale must be two rising"),
        ({"ratio": (0.0, 1.0)}, "ratio must be two rising"),
        ({"value": 2}, "value must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            random_erasing(keys, images, **options)


def test_float64_stays_float64(x64):
    images = as_float(noise(2), np.float64)
    settings = {"rotation_degrees": 10.0, "rotation_interpolation": "bilinear"}
    assert augment(keys_of(2), images, **settings).dtype == np.float64


@pytest.mark.parametrize(
    "change, message",
    [
        ({"crop_padding": -1}, "crop_padding"),
        ({"crop_padding": 1.0}, "crop_padding"),
        ({"crop_padding": 8}, "crop_padding 8"),
        ({"crop_mode": "wrap"}, "wrap"),
        ({"rotation_degrees": -1.0}, "rotation_degrees"),
        ({"rotation_degrees": float("nan")}, "rotation_degrees"),
        ({"rotation_degrees": 200}, "rotation_degrees"),
        ({"rotation_interpolation": "cubic"}, "cubic"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, r"\(3, 8, 8\)"),
        ({"images": np.zeros((3, 8, 8, 1), np.int32)}, "int32"),
        ({"keys": keys_of(2)}, "3 typed keys"),
        ({"keys": jax.random.key(0)}, "3 typed keys"),
        ({"keys": jax.random.split(jax.random.PRNGKey(0), 3)}, "3 typed keys"),
    ],
)
def test_augment_refuses(change, message):
    arguments = {"keys": keys_of(3), "images": noise(3)} | change
    with pytest.raises(ValueError, match=message):
        augment_eagerly(arguments.pop("keys"), arguments.pop("images"), **arguments)


def test_cutout_refuses():
    with pytest.raises(ValueError, match="size"):
        cutout(keys_of(3), noise(3), -1)
    with pytest.raises(ValueError, match="3 typed keys"):
        cutout(keys_of(2), noise(3), 1)


def test_zero_padding_may_exceed_the_image():
    out = augment(keys_of(2), noise(2), crop_padding=9, crop_mode="zero")
    assert out.shape == (2, 8, 8, 3)
