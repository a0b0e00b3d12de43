"""Common corruptions against matplotlib's colours, closed forms, and on real digits."""

import io

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from awp_jax.data import CORRUPTIONS, corrupt
from awp_jax.evaluation import corruption_accuracy

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
GREY = np.full((40, 32, 32, 1), 128, np.uint8)


@pytest.mark.core
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images_and_keep_their_noise(name):
    found = corrupt(IMAGES, name, 3)
    assert found.dtype == np.uint8 and found.shape == IMAGES.shape and (found != IMAGES).any()
    np.testing.assert_array_equal(found, corrupt(IMAGES, name, 3))
    # Alone, in a longer array, and whatever the others are.
    np.testing.assert_array_equal(found[:2], corrupt(IMAGES[:2], name, 3))
    other = corrupt(IMAGES, name, 3, seed=1)
    assert (other != found).any() == (name.endswith("noise"))
    if name != "saturate":
        assert corrupt(IMAGES[..., :1], name, 2).shape == (6, 32, 32, 1)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_and_saturation_are_those_of_hsv(severity):
    images = IMAGES.copy()
    images[0], images[1, :, :, 1:] = 77, images[1, :, :, :1]  # grey, and black
    images[2, :4] = 0
    hsv = matplotlib.colors.rgb_to_hsv(images / 255.0)
    brighter, colours = hsv.copy(), hsv.copy()
    brighter[..., 2] = np.clip(hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 0, 1)
    factor, more = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    colours[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
    for name, changed in (("brightness", brighter), ("saturate", colours)):
        expected = matplotlib.colors.hsv_to_rgb(changed) * 255
        # Cut off to whole numbers, where rounding decides between two.
        assert np.abs(corrupt(images, name, severity) - np.floor(expected + 1e-6)).max() <= 1


def test_noise_has_its_published_size():
    x = GREY / 255
    for severity, size in ((1, 0.04), (5, 0.1)):
        noise = corrupt(GREY, "gaussian-noise", severity) / 255 - x
        assert noise.std() == pytest.approx(size, rel=0.02)
        assert noise.mean() == pytest.approx(-0.5 / 255, abs=3e-4)  # cut off, not rounded
    speckle = corrupt(GREY, "speckle-noise", 5) / 255 - x
    assert speckle.std() == pytest.approx(0.2 * 128 / 255, rel=0.02)
    shots = corrupt(GREY, "shot-noise", 3) / 255  # counts of 100 x, so a variance of x / 100
    assert shots.std() == pytest.approx(np.sqrt(128 / 255 / 100), rel=0.02)
    impulses = corrupt(GREY, "impulse-noise", 5)
    hit = impulses != 128
    assert hit.mean() == pytest.approx(0.07, rel=0.05) and set(impulses[hit]) == {0, 255}
    assert (impulses[hit] == 255).mean() == pytest.approx(0.5, abs=0.03)


def test_blur_and_contrast_by_hand():
    image = np.zeros((1, 17, 17, 1), np.uint8)
    image[0, 8, 8] = 255
    offsets = np.arange(-4, 5)  # four deviations of 1
    bell = np.exp(-(offsets**2) / 2)
    bell /= bell.sum()
    expected = np.floor(255 * np.outer(bell, bell))
    found = corrupt(image, "gaussian-blur", 5)[0, 4:13, 4:13, 0]
    assert np.abs(found - expected).max() <= 1
    x = IMAGES / 255
    mean = x.mean((1, 2), keepdims=True)
    exact = 255 * np.clip((x - mean) * 0.4 + mean, 0, 1)
    assert np.abs(corrupt(IMAGES, "contrast", 3) - exact).max() <= 1


def test_jpeg_and_pixels_of_both_sizes():
    smooth = np.asarray(Image.fromarray(IMAGES[0]).resize((96, 96), Image.Resampling.BICUBIC))
    for images, quality, share in ((IMAGES, 58, 0.85), (smooth[None], 15, 0.4)):
        file = io.BytesIO()
        Image.fromarray(images[0]).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(corrupt(images, "jpeg", 3)[0], np.asarray(Image.open(file)))
        side = int(images.shape[1] * share)
        coarse = corrupt(images, "pixelate", 3)[0]
        assert len(np.unique(coarse.reshape(-1, 3), axis=0)) <= side * side
    errors = [np.abs(corrupt(IMAGES, "jpeg", s).astype(float) - IMAGES).mean() for s in range(1, 6)]
    assert errors == sorted(errors)


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "snow"}, "Unknown corruption 'snow'"),
        ({"severity": 6}, "severity is 6, but an integer from 1 to 5"),
        ({"severity": 0}, "severity is 0"),
        ({"images": IMAGES / 255}, r"images are float64 \[6, 32, 32, 3\], but uint8"),
        ({"images": GREY, "name": "saturate"}, "one channel"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    arguments = {"images": IMAGES, "name": "contrast", "severity": 1} | change
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)


def test_accuracy_of_a_model_on_real_digits(tmp_path):
    digits = load_digits()
    images = (digits.images[:400, :, :, None] / 16 * 255).astype(np.uint8)
    centres = np.stack([digits.images[digits.target == k].mean(0) for k in range(10)]) / 16

    def logits_fn(x):
        return -((x[:, None, :, :, 0] - centres[None]) ** 2).sum((2, 3))

    found = corruption_accuracy(logits_fn, images, digits.target[:400], batch_size=150)
    assert found.names == tuple(name for name in CORRUPTIONS if name != "saturate")
    assert found.accuracy.shape == (9, 5) and found.clean > 0.85 and found.examples == 400
    rows = dict(zip(found.names, found.accuracy, strict=True))
    said = np.asarray(logits_fn(corrupt(images, "contrast", 5) / 255.0)).argmax(1)
    assert rows["contrast"][4] == (said == digits.target[:400]).mean()
    assert rows["gaussian-blur"][4] < found.clean and found.mean == found.accuracy.mean()
    assert "contrast: " in repr(found)
    found.save(tmp_path / "corruptions.json")
    assert found.plot().get_xlabel() == "severity"
    with pytest.raises(ValueError, match="corruptions is 'jpeg', but a list"):
        corruption_accuracy(logits_fn, images, digits.target[:400], corruptions="jpeg")
