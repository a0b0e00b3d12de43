"""Decoding against torchvision's own transforms, and random boxes against their distribution."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from torchvision_peer import has_torchvision

from awp_jax.data import Decoding, random_box

RANDOM = np.random.default_rng(0)


def transforms_of_torchvision():
    if not has_torchvision():
        pytest.skip("torchvision is not installed")
    from torchvision import transforms

    return transforms


def encoded(width, height, mode="RGB", **options):
    pixels = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


FILES = {
    "wide": encoded(91, 47),
    "tall": encoded(33, 120),
    "grey": encoded(60, 50, "L"),
    "CMYK": encoded(50, 60, "CMYK"),
    "palette": encoded(40, 70, "P", format="PNG"),
    "alpha": encoded(41, 70, "RGBA", format="PNG"),
    "grey PNG of few bits": encoded(41, 70, "1", format="PNG"),
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", FILES)
def test_the_centre_is_that_of_torchvision(name, interpolation):
    transforms = transforms_of_torchvision()
    peer = transforms.Compose(
        [
            transforms.Resize(37, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
        ]
    )
    image = Image.open(io.BytesIO(FILES[name])).convert("RGB")
    found = Decoding(32, 37, interpolation).centre(FILES[name], name)
    np.testing.assert_array_equal(found, np.asarray(peer(image)))


@pytest.mark.parametrize("name", FILES)
def test_a_crop_is_that_of_torchvision_in_the_same_box(name):
    transforms = transforms_of_torchvision()
    image = Image.open(io.BytesIO(FILES[name])).convert("RGB")
    for seed in range(5):
        box = random_box(np.random.default_rng(seed), *image.size)
        found = Decoding(32).crop(FILES[name], name, np.random.default_rng(seed), 0.08)
        left, upper, right, lower = box
        sides = (upper, left, lower - upper, right - left)
        resized = transforms.functional.resized_crop(image, *sides, [32, 32])
        np.testing.assert_array_equal(found, np.asarray(resized))


def test_boxes_are_distributed_as_torchvisions():
    stats = pytest.importorskip("scipy.stats")
    torch, transforms = pytest.importorskip("torch"), transforms_of_torchvision()
    width, height, count = 400, 300, 3000
    draws = np.random.default_rng(1)
    ours = np.array([random_box(draws, width, height) for _ in range(count)])
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    theirs = []
    for _ in range(count):
        i, j, h, w = transforms.RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3])
        theirs.append((j, i, j + w, i + h))
    theirs = np.array(theirs)
    for what in (
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),  # area
        lambda b: (b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]),  # ratio
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
    ):
        assert stats.ks_2samp(what(ours), what(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("sides", [(500, 10), (10, 500), (1, 1), (7, 9)])
def test_boxes_of_images_that_no_shape_fits_are_torchvisions(sides):
    transforms = transforms_of_torchvision()
    # Of an area of 1 alone, only images of a ratio in the range have a box.
    i, j, h, w = transforms.RandomResizedCrop.get_params(
        Image.new("L", sides), [1.0, 1.0], [3 / 4, 4 / 3]
    )
    box = random_box(np.random.default_rng(0), *sides, 1.0)
    if max(sides) > 2 * min(sides):
        assert box == (j, i, j + w, i + h)
    left, upper, right, lower = box
    assert 0 <= left < right <= sides[0] and 0 <= upper < lower <= sides[1]


def test_the_area_of_a_box_keeps_the_least_share():
    draws = np.random.default_rng(2)
    shares, ratios = [], []
    for _ in range(500):
        left, upper, right, lower = random_box(draws, 1000, 1000, 0.5)
        shares.append((right - left) * (lower - upper) / 1e6)
        ratios.append(math.log((right - left) / (lower - upper)))
    assert min(shares) > 0.499 and max(np.abs(ratios)) < math.log(4 / 3) + 0.003
