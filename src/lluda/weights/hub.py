"""From what the user typed to a local model: an existing path, or org/name[@revision] through the Hub's cache.

What looks like a path is never looked up on the network. Of a repository only data files are fetched: JSON, text,
templates and safetensors; never Python or pickle files.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lluda.errors import InvalidRequest, LludaError, ModelNotFound, UnsupportedModel
from lluda.mapped_file import open_regular, unreadable
from lluda.weights.checkpoint import CONFIG_NAME, ModelSource, is_gguf
from lluda.weights.foreign_formats import PICKLE_SUFFIXES, foreign_files
from lluda.weights.model_folder import TOOL_TEMPLATE
from lluda.weights.shards import INDEX_NAME, SINGLE_NAME, missing_shards, pickle_only, read_index

ALLOWED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken")
"""What is fetched of a repository: from its top folder, and `TOOL_TEMPLATE`."""

_TIMEOUT_S = 10.0
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_log = logging.getLogger(__name__)


def find_source(name_or_path: str | os.PathLike[str]) -> ModelSource:
    """What ``name_or_path`` means (see `resolve_model`), its files read once; as it is if it was found before."""
    return name_or_path if isinstance(name_or_path, ModelSource) else ModelSource(resolve_model(name_or_path))


def resolve_model(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local model folder or .gguf file that ``name_or_path`` means; fetched from the Hub if it is a name.

    A path is what exists, begins with ``.``, ``/`` or ``~``, ends with ``.gguf``, or has not exactly one ``/``; the
    rest is ``org/name`` or ``org/name@revision``. HF_HUB_OFFLINE and the client's other settings are honoured. If the
    Hub cannot be reached, a complete copy in the cache is used with a warning in the log.

    ModelNotFound: nothing there, not permitted, not a model, offline or unreachable; the message has the remedy.
    UnsupportedModel: a repository without safetensors. CorruptFile: a broken index. InvalidRequest: two revisions.
    """
    text = os.fspath(name_or_path)
    status = _status(text)
    if status is not None:
        return _local(_expand(text), status)
    name, at, tag = text.partition("@")
    if _looks_like_path(name):
        hint = "" if "/" in text else "; a model on the Hub is written org/name"
        raise ModelNotFound(f"{text or '(an empty name)'}: no such folder or .gguf file{hint}")
    if not _REPOSITORY.fullmatch(name) or (at and not tag):
        raise ModelNotFound(f"{text!r}: neither a path that exists nor a Hub name (org/name or org/name@revision)")
    if revision and tag and revision != tag:
        raise InvalidRequest(f"{text}: names the revision {tag!r}, but revision={revision!r} was asked for; give one")
    return _fetch(_Repository(name, revision or tag or None))


def _status(text: str) -> os.stat_result | None:
    try:
        return _expand(text).stat() if text else None
    except PermissionError as error:
        raise unreadable(Path(text), error) from error
    except (OSError, ValueError):  # absent; a loop of links; too long or with a NUL: no path that exists
        return None


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return Path(text)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or name.count("/") != 1


def _local(path: Path, status: os.stat_result) -> Path:
    """``path`` if it is a readable .gguf file or model folder; each other case has its own message."""
    if stat.S_ISDIR(status.st_mode):
        _check_folder(path)
    elif is_gguf(path):
        os.close(open_regular(path)[0])
    elif path.suffix == ".safetensors":
        raise ModelNotFound(f"{path}: a lone safetensors file; give the folder that holds it and {CONFIG_NAME}")
    else:
        raise ModelNotFound(f"{path}: not a model file; give a model folder or a .gguf file")
    return path


def _check_folder(folder: Path) -> None:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise unreadable(folder, error) from error
    if not names:
        raise ModelNotFound(f"{folder}: an empty folder; a model folder holds {CONFIG_NAME} and safetensors")
    if CONFIG_NAME not in names:
        ggufs = [name for name in names if name.lower().endswith(".gguf")]
        if not ggufs and (foreign := foreign_files(names)):
            raise UnsupportedModel(f"{folder}: {foreign}")
        hint = f"to use a GGUF file give it itself: {folder / ggufs[0]}" if ggufs else "not a model folder"
        raise ModelNotFound(f"{folder}: has no {CONFIG_NAME}; {hint}")
    os.close(open_regular(folder / CONFIG_NAME)[0])


@dataclass(frozen=True, slots=True)
class _Repository:
    """A repository on the Hub and the revision asked for (None: its main branch)."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def command(self) -> str:
        """The shell command that fetches it."""
        return f"hf download {self.name}" + (f" --revision {self.revision}" if self.revision else "")


def _fetch(repository: _Repository) -> Path:
    if _offline():
        return _cached(repository, "HF_HUB_OFFLINE is set, so nothing is downloaded")
    try:
        files = _list_files(repository)
    except _UnreachableError as error:
        folder = _cached(repository, f"the Hub cannot be reached ({error})")
        _log.warning("%s: the Hub cannot be reached (%s); using the copy in the cache, %s", repository, error, folder)
        return folder
    _check_listing(repository, files)
    return _checked(repository, _download(repository, files), "the download did not bring all files")


class _UnreachableError(Exception):
    """No answer from the Hub: a copy in the cache may be used instead."""


def _list_files(repository: _Repository) -> list[str]:
    """Names of the repository's files, by one request with a timeout."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(repository.name, revision=repository.revision, timeout=_TIMEOUT_S)
    except Exception as error:  # the client's errors have no common base: they come from four libraries
        refusal = _refusal(repository, error)
        if refusal is not None:
            raise refusal from error
        raise _UnreachableError(_one_line(error)) from error
    return [file.rfilename for file in info.siblings or []]


def _download(repository: _Repository, files: list[str]) -> Path:
    """The snapshot folder with all of ``files`` that lluda reads, one after the other, all of one commit.

    Not `snapshot_download`: its listing of the repository waits on a silent server without end.
    """
    from huggingface_hub import hf_hub_download

    def fetch(file: str, revision: str | None) -> Path:
        return Path(hf_hub_download(repository.name, file, revision=revision, etag_timeout=_TIMEOUT_S))

    top = [file for file in files if "/" not in file and any(fnmatchcase(file, glob) for glob in ALLOWED)]
    wanted = [*top, *(file for file in files if file == TOOL_TEMPLATE)]
    try:
        folder = fetch(CONFIG_NAME, repository.revision).parent
        for file in wanted:
            fetch(file, folder.name)  # the folder of a snapshot is named by its commit
    except Exception as error:
        raise _refusal(repository, error) or ModelNotFound(
            f"{repository}: the download failed ({_one_line(error)}); run it again, or: {repository.command}"
        ) from error
    return folder


def _cached(repository: _Repository, reason: str) -> Path:
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
                allow_patterns=list(ALLOWED),
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
    _checked(repository, folder, reason)
    if listed:  # weights and config are there; what is missing only the client knows
        raise ModelNotFound(f"{repository}: {listed} To finish it: {repository.command}")
    return folder


def _checked(repository: _Repository, folder: Path, reason: str) -> Path:
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


def _check_listing(repository: _Repository, files: list[str]) -> None:
    """Refuse, before any download, a repository that has not what lluda reads."""
    if SINGLE_NAME not in files and INDEX_NAME not in files and (foreign := foreign_files(files)):
        raise UnsupportedModel(f"{repository}: {foreign}")
    if not any(file.endswith(".safetensors") for file in files):
        pickles = [file for file in files if file.lower().endswith(PICKLE_SUFFIXES)]
        if pickles:
            raise UnsupportedModel(pickle_only(str(repository), pickles))
        ggufs = [file for file in files if file.lower().endswith(".gguf")]
        if ggufs:
            raise ModelNotFound(
                f"{repository}: holds GGUF files; fetch one and give its path: hf download {repository.name} {ggufs[0]}"
            )
        raise ModelNotFound(f"{repository}: holds no weights; a model needs safetensors")
    if CONFIG_NAME not in files:
        raise ModelNotFound(f"{repository}: has no {CONFIG_NAME}; not a model that lluda can read")


def _refusal(repository: _Repository, error: Exception) -> LludaError | None:
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
    """Whether the client is told to stay offline, by the environment now or when it was first imported."""
    from huggingface_hub import constants

    words = (os.environ.get("HF_HUB_OFFLINE", ""), os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return bool(constants.HF_HUB_OFFLINE) or any(word.upper() in {"1", "ON", "YES", "TRUE"} for word in words)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
