"""What attacks that look for the smallest perturbation return."""

from typing import Any, NamedTuple

import jax
import numpy as np

from awp_jax import results
from awp_jax.typing import Inputs


class NearestResult(NamedTuple):
    """The nearest misclassified inputs that were found.

    Attributes:
        images: float ``[batch, ...]``: the nearest misclassified input (targeted: the nearest one
            of the class asked for), else the clean one. Inside the range of the inputs.
        radius: float ``[batch]``: its distance from the clean input, in the attack's norm and the
            units of the inputs; 0 for a misclassified clean input, infinite where none was found.
    """

    images: Inputs
    radius: jax.Array

    def __repr__(self) -> str:
        return results.described("NearestResult", self._asdict(), "")

    def save(self, path: Any) -> None:
        """Writes every array by its name, a compressed ``.npz`` file.

        Raises:
            ValueError: For a path that does not end in ``.npz``.
        """
        results.save_arrays(path, self)

    def plot(self, axes: Any = None) -> Any:
        """Draws robust accuracy over the radius: for how many nothing nearer was found.

        Args:
            axes: Matplotlib axes to draw on; ``None`` for new ones.

        Returns:
            The axes.
        """
        axes = results.axes_or_new(axes)
        radius = np.sort(np.asarray(self.radius))
        finite = radius[np.isfinite(radius)]
        left = 100 * (1 - np.arange(1, len(finite) + 1) / max(len(radius), 1))
        axes.step([0.0, *finite], [100.0, *left], where="post")
        axes.set_xlabel("radius")
        axes.set_ylabel("accuracy left (%)")
        axes.set_ylim(bottom=0)
        return axes
