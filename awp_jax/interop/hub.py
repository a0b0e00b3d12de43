"""Files of the Hugging Face hub, by addresses ``hf://owner/name[@revision][/file]``."""

from __future__ import annotations

import pathlib
from typing import Any

from awp_jax.extras import needed_by
from awp_jax.interop.errors import CheckpointError

SCHEME = "hf://"
# What is looked for where an address names no file: as transformers and timm write them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def is_address(path: Any) -> bool:
    """Whether ``path`` is an address of the hub."""
    return isinstance(path, str) and path.startswith(SCHEME)


def _parsed(address: str) -> tuple[str, str | None, str | None]:
    parts = address.removeprefix(SCHEME).split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise CheckpointError(
            f"{address} is no address of the hub: hf://owner/name, hf://owner/name/file or "
            "hf://owner/name@revision/file was expected."
        )
    name, _, revision = parts[1].partition("@")
    file = parts[2] if len(parts) == 3 and parts[2] else None
    return f"{parts[0]}/{name}", revision or None, file


def file_of(address: str) -> str:
    """The file that is written at an address."""
    return _parsed(address)[2] or WEIGHTS[0]


def _hub() -> Any:
    with needed_by("Reading and writing hf:// addresses"):
        import huggingface_hub
        import huggingface_hub.errors
    return huggingface_hub


def fetch(address: str) -> pathlib.Path:
    """The file at an address, from the hub's cache of this machine or by the network.

    With ``HF_HUB_OFFLINE=1``, and where the hub cannot be reached, only what is in the cache.

    Args:
        address: "hf://owner/name[@revision][/file]"; without a file its weights: the first of
            ``WEIGHTS`` that is there.

    Raises:
        CheckpointError: For no such address, repository or file, or none in the cache.
        MissingExtraError: Where huggingface_hub is not installed.
    """
    repository, revision, file = _parsed(address)
    hub = _hub()
    problem: Exception | None = None
    for name in (file,) if file else WEIGHTS:
        try:
            return pathlib.Path(hub.hf_hub_download(repository, name, revision=revision))
        except (hub.errors.EntryNotFoundError, hub.errors.LocalEntryNotFoundError) as error:
            problem = error  # another name, or not in the cache
        except (hub.errors.HfHubHTTPError, hub.errors.OfflineModeIsEnabled, OSError) as error:
            raise CheckpointError(f"{address} cannot be read: {_first_line(error)}") from error
    looked = file or ", ".join(WEIGHTS)
    raise CheckpointError(
        f"{address} has no {looked}, or the hub cannot be reached and it is not in the cache: "
        f"{_first_line(problem)}"
    ) from problem


def fetch_beside(address: str, file: str) -> pathlib.Path:
    """Another file of the same repository and revision."""
    repository, revision, _ = _parsed(address)
    return fetch(f"{SCHEME}{repository}{f'@{revision}' if revision else ''}/{file}")


def push(address: str, content: bytes) -> None:
    """Writes a file of a repository, which is made where it is not there.

    Args:
        address: "hf://owner/name/file"; without a file "model.safetensors".
        content: Of the file.

    Raises:
        CheckpointError: For no such address, and where the hub refuses, such as without a token.
        MissingExtraError: Where huggingface_hub is not installed.
    """
    repository, revision, _ = _parsed(address)
    hub = _hub()
    api = hub.HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_file(
            path_or_fileobj=content,
            path_in_repo=file_of(address),
            repo_id=repository,
            revision=revision,
            commit_message="Weights of awp_jax",
        )
    except (hub.errors.HfHubHTTPError, hub.errors.OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{address} cannot be written: {_first_line(error)}") from error


def _first_line(error: Exception | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
