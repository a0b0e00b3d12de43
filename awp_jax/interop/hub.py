"""Files of the Hugging Face hub, by addresses ``hf://owner/name[@revision][/file]``."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from awp_jax.extras import needed_by
from awp_jax.interop.errors import CheckpointError

SCHEME = "hf://"
# What is looked for where an address names no file: as transformers and timm write them.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_PATIENCE = 10.0  # seconds that the hub may take to answer at all


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
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
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
    silence = _silence(hub)
    problem: Exception | None = None
    for name in (file,) if file else WEIGHTS:
        try:
            with _quiet():
                found = hub.hf_hub_download(
                    repository, name, revision=revision, local_files_only=silence is not None
                )
            return pathlib.Path(found)
        except (hub.errors.EntryNotFoundError, hub.errors.LocalEntryNotFoundError) as error:
            problem = error  # another name, or not in the cache
        except Exception as error:  # a connection that breaks is an error of httpx or requests
            raise CheckpointError(f"{address} cannot be read: {_first_line(error)}") from error
    looked = file or ", ".join(WEIGHTS)
    if silence is not None:
        raise CheckpointError(
            f"{address} has no {looked} in the cache of this machine, and the hub cannot be "
            f"reached: {_first_line(silence)}"
        ) from silence
    raise CheckpointError(
        f"{address} has no {looked}, or the hub cannot be reached and it is not in the cache: "
        f"{_first_line(problem)}"
    ) from problem


def _silence(hub: Any) -> Exception | None:
    """Why the hub cannot be reached, or ``None`` where it answers, whatever it says.

    Asked once: downloads try again for more than a minute, for every file that is looked for.
    """
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # those of requests before version 1, of httpx since, or offline
        return error
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, each a line or two: what counts becomes one sentence."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


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
        with _quiet():
            api.create_repo(repository, exist_ok=True)
            api.upload_file(
                path_or_fileobj=content,
                path_in_repo=file_of(address),
                repo_id=repository,
                revision=revision,
                commit_message="Weights of awp_jax",
            )
    except Exception as error:  # no connection is an error of httpx or requests
        raise CheckpointError(f"{address} cannot be written: {_first_line(error)}") from error


def _first_line(error: Exception | None) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
