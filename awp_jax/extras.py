"""What only an extra of the installation brings, and the one sentence where it is missing.

The core (``balls``, ``ascent``, ``attacks``, ``weights``, ``objectives``, ``landscape``) needs jax,
optax and numpy alone; ``setup.cfg`` says what each extra adds.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator

# By the module that is imported: what pip calls it, and the least extra that brings it.
BROUGHT_BY = {
    "flax": ("flax", "models"),
    "safetensors": ("safetensors", "models"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "absl": ("absl-py", "train"),
    "ml_collections": ("ml-collections", "train"),
    "orbax": ("orbax-checkpoint", "train"),
    "tqdm": ("tqdm", "train"),
    "yaml": ("pyyaml", "train"),
    "matplotlib": ("matplotlib", "plot"),
    "sklearn": ("scikit-learn", "data"),
    "PIL": ("pillow", "data"),
    "grain": ("grain", "grain"),
    "tensorboardX": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
    "array_record": ("array-record", "grain"),
    "importlib_resources": ("importlib_resources", "tfds"),
    "tensorflow": ("tensorflow", "tfds"),
    "tensorflow_datasets": ("tensorflow-datasets", "tfds"),
}

# What is imported with these packages, so that none of them can be without.
_NEEDED_BY = {
    "awp_jax.config": ("ml_collections", "yaml"),
    "awp_jax.interop": ("flax",),
    "awp_jax.models": ("flax",),
    "awp_jax.runs": ("flax", "ml_collections", "orbax", "yaml"),
    "awp_jax.training": ("flax", "ml_collections", "orbax", "yaml"),
}


class MissingExtraError(ModuleNotFoundError):
    """An extra is not installed; the message is one sentence with the command that installs it."""


@contextlib.contextmanager
def needed_by(what: str, extra: str | None = None) -> Iterator[None]:
    """Says in one sentence which extra brings a module whose import fails inside.

    Args:
        what: Who needs it, as the sentence begins.
        extra: Which extra to name: the least that brings the module by default.

    Raises:
        MissingExtraError: For a missing module that an extra brings; others raise what they raise.

    Example:
        >>> with needed_by("awp_jax.models"):
        ...     raise ModuleNotFoundError("No module named 'flax'", name="flax")
        Traceback (most recent call last):
        awp_jax.extras.MissingExtraError: awp_jax.models needs flax: pip install 'awp_jax[models]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in BROUGHT_BY:
            raise
        package, least = BROUGHT_BY[module]
        raise MissingExtraError(
            f"{what} needs {package}: pip install 'awp_jax[{extra or least}]'.", name=error.name
        ) from None


def require(module: str, what: str) -> None:
    """Raises ``MissingExtraError`` at once where a module is missing that is needed later."""
    with needed_by(what):
        importlib.import_module(module)


def is_installed(package: str) -> bool:
    """Whether a package of this library has what it needs to be imported."""
    return all(importlib.util.find_spec(module) for module in _NEEDED_BY.get(package, ()))
