"""A repository on the Hub: what it lists, and fetching it into the client's cache, small files before weights.

All that its listing, its config and its index say is checked before a weight is fetched, and so is the space on the
disk. Of the weights only those that the index names are fetched.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote
from typing import Any

from lluda.errors import LludaError, ModelNotFound, UnsupportedModel
from lluda.weights.checkpoint import CONFIG_NAME
from lluda.weights.foreign_formats import PICKLE_SUFFIXES, foreign_files
from lluda.weights.gguf.split_files import PART_NAME
from lluda.weights.model_folder import TOOL_TEMPLATE
from lluda.weights.safetensors.folder import INDEX_NAME, SINGLE_NAME, missing_shards, pickle_only, read_index

SMALL_FILES = ("*.json", "*.txt", "*.jinja", TOOL_TEMPLATE)
"""What is fetched beside the weights: from the top folder, and `TOOL_TEMPLATE`."""

Check = Callable[[Path], None]
"""Judges the folder of small files, before any weight is fetched; raises what it finds."""

_TIMEOUT_S = 10.0
_LISTED = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub and the revision asked for (None: its main branch)."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def command(self) -> str:
        """The shell command that fetches it."""
        return f"hf download {self.name}" + (f" --revision {self.revision}" if self.revision else "")


def fetch(repository: Repository, check: Check | None, *, weights: bool) -> Path:
    """The snapshot folder with all that lluda reads of ``repository``; without ``weights`` its small files alone.

    If the Hub cannot be reached, a complete copy in the cache is used with a warning in the log.

    ModelNotFound: gated, absent, offline or unreachable, or without what a model needs. UnsupportedModel: no
    safetensors. CorruptFile: a broken index. LludaError: not enough space on the disk. All before any weight is asked
    for, as is whatever ``check`` raises.
    """
    if _offline():
        return _cached(repository, "HF_HUB_OFFLINE is set, so nothing is downloaded", weights)
    try:
        sizes = _list_files(repository)
    except _UnreachableError as error:
        folder = _cached(repository, f"the Hub cannot be reached ({error})", weights)
        _log.warning("%s: the Hub cannot be reached (%s); using the copy in the cache, %s", repository, error, folder)
        return folder
    _check_listing(repository, list(sizes))
    folder = _fetch_small_files(repository, sizes)
    wanted = _weights(repository, folder, sizes)
    missing = {file: sizes[file] for file in wanted if not os.path.exists(folder / file)}  # noqa: PTH110
    if missing and check is not None:
        check(folder)
    if missing and weights:
        _require_disk_space(repository, folder, missing)
        for file in missing:
            _fetch_file(repository, file, folder.name)
    return _checked(repository, folder, "the download did not bring all files") if weights else folder


class _UnreachableError(Exception):
    """No answer from the Hub: a copy in the cache may be used instead."""


def _list_files(repository: Repository) -> dict[str, int | None]:
    """The repository's files and their bytes where the Hub tells them, by one request with a timeout."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(repository.name, revision=repository.revision, timeout=_TIMEOUT_S, files_metadata=True)
    except Exception as error:  # the client's errors have no common base: they come from four libraries
        refusal = _refusal(repository, error)
        if refusal is not None:
            raise refusal from error
        raise _UnreachableError(_one_line(error)) from error
    return {file.rfilename: file.size for file in info.siblings or []}


def _fetch_small_files(repository: Repository, files: Mapping[str, Any]) -> Path:
    """The snapshot folder with the config, the index and all other small files, one after the other, all of one commit.

    Not `snapshot_download`: its listing of the repository waits on a silent server without end.
    """
    folder = _fetch_file(repository, CONFIG_NAME, repository.revision).parent
    small = [file for file in files if "/" not in file or file == TOOL_TEMPLATE]
    wanted = [file for file in small if any(fnmatchcase(file, pattern) for pattern in SMALL_FILES)]
    # The folder of a snapshot is named by its commit. The index first: it may tell that the rest is not needed.
    for file in sorted(wanted, key=lambda name: name != INDEX_NAME):
        _fetch_file(repository, file, folder.name)
    return folder


def _fetch_file(repository: Repository, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository.name, file, revision=revision, etag_timeout=_TIMEOUT_S))
    except Exception as error:
        raise _refusal(repository, error) or ModelNotFound(
            f"{repository}: the download failed ({_one_line(error)}); run it again, or: {repository.command}"
        ) from error


def _weights(repository: Repository, folder: Path, files: Mapping[str, Any]) -> list[str]:
    """The safetensors files that the model is made of. ModelNotFound: the index names one that is not there."""
    if INDEX_NAME not in files:
        return [SINGLE_NAME]
    index = read_index(folder)
    assert index is not None, f"{folder} has an index"
    absent = [shard for shard in index.shards if shard not in files]
    if absent:
        raise ModelNotFound(
            f"{repository}: its {INDEX_NAME} names {_some(absent)}, which it does not hold; "
            "take another revision (org/name@revision), or ask its owner"
        )
    if SINGLE_NAME in files and SINGLE_NAME not in index.shards:
        raise ModelNotFound(
            f"{repository}: holds both {SINGLE_NAME} and {INDEX_NAME}, which may be two models; fetch one of them and "
            f"give its folder: {repository.command} --exclude {SINGLE_NAME} --local-dir DIR"
        )
    return index.shards


def _require_disk_space(repository: Repository, folder: Path, missing: Mapping[str, int | None]) -> None:
    """LludaError: ``missing`` take more than is free on the disk of the cache."""
    needed, free = sum(size or 0 for size in missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise LludaError(
            f"{repository}: its weights need {needed:,} bytes more but {free:,} are free on the disk of {folder}; free "
            "disk space, or set HF_HOME to a folder on a larger disk"
        )


def _cached(repository: Repository, reason: str, weights: bool) -> Path:
    """The complete copy in the cache, without any request. ModelNotFound, with ``reason``, if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    listed = ""
    try:
        folder = Path(
            snapshot_download(
                repository.name,
                revision=repository.revision,
                local_files_only=True,
                allow_patterns=list(SMALL_FILES),
                ignore_patterns=["*/*"],
            )
        )
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            raise ModelNotFound(
                f"{repository}: not in the cache, and {reason}; fetch it where there is a network: {repository.command}"
            ) from error
        folder, listed = Path(partial), _one_line(error)
    if weights:
        _checked(repository, folder, reason)
    if listed:  # weights and config are there; what is missing only the client knows
        raise ModelNotFound(f"{repository}: {listed} To finish it: {repository.command}")
    return folder


def _checked(repository: Repository, folder: Path, reason: str) -> Path:
    """``folder`` if no needed file of the snapshot is missing, such as after a broken download."""
    missing = [] if os.path.exists(folder / CONFIG_NAME) else [CONFIG_NAME]  # noqa: PTH110
    if os.path.lexists(folder / INDEX_NAME) or os.path.exists(folder / SINGLE_NAME):  # noqa: PTH110
        index = read_index(folder) if not missing else None
        missing += missing_shards(folder, index.shards) if index else []
    else:
        missing.append(f"{SINGLE_NAME} or {INDEX_NAME}")
    if not missing:
        return folder
    blobs = folder.parent.parent / "blobs"
    broken = len(list(blobs.glob("*.incomplete"))) if blobs.is_dir() else 0
    interrupted = f" ({broken} unfinished download{'s' if broken > 1 else ''} in the cache)" if broken else ""
    raise ModelNotFound(
        f"{repository}: the copy in the cache is incomplete{interrupted}: {', '.join(missing)} missing, and {reason}; "
        f"to finish it: {repository.command}"
    )


def _check_listing(repository: Repository, files: list[str]) -> None:
    """Refuse, before any download, a repository that has not what lluda reads."""
    if SINGLE_NAME not in files and INDEX_NAME not in files:
        _refuse_weights(repository, files)
    if CONFIG_NAME not in files:
        raise ModelNotFound(f"{repository}: has no {CONFIG_NAME}; not a model that lluda can read")


def _refuse_weights(repository: Repository, files: list[str]) -> None:
    """What to say of a repository without a model's safetensors."""
    if foreign := foreign_files(files):
        raise UnsupportedModel(f"{repository}: {foreign}")
    ggufs = [file for file in files if file.lower().endswith(".gguf")]
    if ggufs:
        raise ModelNotFound(
            f"{repository}: holds GGUF files ({_some(ggufs)}); fetch one and give its path, such as "
            f"DIR/{ggufs[0]} after: {repository.command} {_to_fetch(ggufs[0])} "
            "--local-dir DIR"
        )
    pickles = [file for file in files if file.lower().endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise UnsupportedModel(pickle_only(str(repository), pickles))
    others = [file for file in files if file.endswith(".safetensors")]
    found = f"only {_some(others)}, neither {SINGLE_NAME} nor {INDEX_NAME}" if others else "no weights"
    raise ModelNotFound(f"{repository}: holds {found}; a model needs safetensors; take another repository of it")


def _to_fetch(gguf: str) -> str:
    """Arguments of the client's command: the file, or all parts of the set that it belongs to."""
    part = PART_NAME.fullmatch(gguf)
    if part is None:
        return quote(gguf)
    return f"--include {quote(part['stem'] + '-*' + part['of'] + part['count'] + part['suffix'])}"


def _some(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _refusal(repository: Repository, error: Exception) -> LludaError | None:
    """What to raise where the Hub answered no; None where it did not answer properly."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository.name}"
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFound(f"{repository}: gated; accept its terms at {page}, then log in: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"{repository}: no such model on the Hub, or a private one; check the name (a local folder is written "
            f"./{repository.name}), or log in: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repository}: the model has no such revision; see its branches and tags at {page}")
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{repository}: not a valid Hub name; {_one_line(error)}")
    return None


def _offline() -> bool:
    """Whether the client is set to offline, by the environment now or when it was first imported."""
    from huggingface_hub import constants

    words = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return bool(constants.HF_HUB_OFFLINE) or any(word.upper() in {"1", "ON", "YES", "TRUE"} for word in words)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
