"""What attacks that look for the smallest perturbation return."""

from typing import NamedTuple

import jax

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
