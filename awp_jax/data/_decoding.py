"""From the bytes of an image file to pixels of one size, as torchvision does it with Pillow."""

import dataclasses
import io
import math
from typing import Any, Literal

import numpy as np

from awp_jax.checks import choice, positive_integer
from awp_jax.data._dataset import DataError
from awp_jax.extras import needed_by

# torchvision.transforms.RandomResizedCrop: shapes between 3:4 and 4:3, and so many tries.
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10

Box = tuple[int, int, int, int]  # left, upper, right, lower, as Pillow's


@dataclasses.dataclass(frozen=True)
class Decoding:
    """To what images of any size are decoded: uint8 `[size, size, 3]`.

    The defaults are torchvision's ``Resize(256), CenterCrop(224)``, on which publications evaluate
    ImageNet (RobustBench: "Res256Crop224").

    Attributes:
        size: height and width of what comes out.
        resize: length of the shorter side before the centre is cut out, at least `size`.
        interpolation: "bilinear", or "bicubic" as for many transformers; both with antialiasing.

    Raises:
        ValueError: for a number that is no positive integer, `resize` below `size`, or another
            interpolation.
    """

    size: int = 224
    resize: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        positive_integer(self.size, "size")
        choice(self.interpolation, ("bilinear", "bicubic"), "interpolation")
        if positive_integer(self.resize, "resize") < self.size:
            raise ValueError(
                f"resize is {self.resize}, but at least the size that is cut out, {self.size}, was "
                "expected."
            )

    def centre(self, content: bytes, where: str) -> np.ndarray:
        """The middle of an image, resized: what is evaluated.

        Args:
            content: of a JPEG, PNG, WebP, ... file; grey and CMYK ones become RGB.
            where: of it in messages.

        Returns:
            uint8 `[size, size, 3]`.

        Raises:
            DataError: when it is damaged, cut off or no image.
        """
        image = _opened(content, where)
        width, height = image.size
        shorter = min(width, height)
        sides = (self.resize * width // shorter, self.resize * height // shorter)
        image = image.resize(sides, self._filter)
        # As torchvision rounds, to even.
        left, upper = (round((side - self.size) / 2) for side in sides)
        return np.array(image.crop((left, upper, left + self.size, upper + self.size)))

    def crop(self, content: bytes, where: str, draws: np.random.Generator, least: float) -> Any:
        """A part of an image, resized: what is trained on.

        Args:
            content: see `centre`.
            where: see `centre`.
            draws: of the part, see `random_box`.
            least: see `random_box`.

        Returns:
            uint8 `[size, size, 3]`.

        Raises:
            DataError: see `centre`.
        """
        image = _opened(content, where)
        box = random_box(draws, image.width, image.height, least)
        # Cut out first: resized with a box, pixels beside it would be looked at.
        return np.array(image.crop(box).resize((self.size, self.size), self._filter))

    @property
    def _filter(self) -> Any:
        from PIL import Image

        return getattr(Image.Resampling, self.interpolation.upper())


def random_box(draws: np.random.Generator, width: int, height: int, least: float = 0.08) -> Box:
    """The part of an image that a random resized crop takes (Szegedy et al., CVPR 2015).

    As ``torchvision.transforms.RandomResizedCrop``: an area uniform between `least` and 1, a ratio
    of width to height log-uniform between 3:4 and 4:3, and a place uniform over those that fit; ten
    tries, and then the largest part in the middle whose ratio is in that range.

    Args:
        draws: the generator that is drawn from.
        width: of the image in pixels.
        height: of the image in pixels.
        least: the least share of the area, in (0, 1]; 0.08 in torchvision.

    Returns:
        `(left, upper, right, lower)`, as `PIL.Image.crop` takes it.

    Example:
        >>> import numpy as np
        >>> from awp_jax import data
        >>> left, upper, right, lower = data.random_box(np.random.default_rng(0), 500, 375)
        >>> 0 <= left < right <= 500 and 0 <= upper < lower <= 375
        True
        >>> data.random_box(np.random.default_rng(0), 500, 10)  # no shape fits: 13 = 10 * 4 / 3
        (243, 0, 256, 10)
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_TRIES):
        area = width * height * draws.uniform(least, 1)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            upper = int(draws.integers(height - h, endpoint=True))
            left = int(draws.integers(width - w, endpoint=True))
            return left, upper, left + w, upper + h
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _opened(content: bytes, where: str) -> Any:
    with needed_by("Decoding images"):
        from PIL import Image
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except Exception as error:  # each format has types of its own for what is damaged
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if "cannot identify" in reason:  # it names an object in memory
            reason = "this is no image that Pillow knows"
        raise DataError(f"{where} could not be decoded: {reason}.") from None
