"""From a model's name to a local model: an existing path, or org/name[@revision] through the Hub's cache.

What looks like a path is never looked up on the network. Of a repository only data files are fetched: JSON, text,
templates and safetensors; never Python or pickle files.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from lluda.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from lluda.files.mapped_file import open_regular, unreadable
from lluda.weights.bundled import TINY_OMNI, tiny_omni_folder
from lluda.weights.checkpoint import CONFIG_NAME, ModelSource, is_gguf
from lluda.weights.foreign_formats import foreign_files
from lluda.weights.hub.repository import Check, Repository, fetch
from lluda.weights.hub.unfinished_downloads import unfinished_downloads

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"(?i)(?:https?|hf|git|ssh)://(?:(?:huggingface\.co|hf\.co)/(?P<name>[\w.-]+/[\w.-]+))?")


def find_source(
    name_or_path: str | os.PathLike[str], *, check: Check | None = None, weights: bool = True
) -> ModelSource:
    """What ``name_or_path`` means (see `resolve_model`), its files read once; as it is if it was found before."""
    if isinstance(name_or_path, ModelSource):
        return name_or_path
    return ModelSource(resolve_model(name_or_path, check=check, weights=weights))


def resolve_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    check: Check | None = None,
    weights: bool = True,
) -> Path:
    """The local model folder or .gguf file that ``name_or_path`` means; fetched from the Hub if it is a name.

    A path is what exists, begins with ``.``, ``/`` or ``~``, ends with ``.gguf``, or has not exactly one ``/``.
    ``tiny-omni``, where no path has that name, is the model that comes with lluda (`bundled.py`). The rest is
    ``org/name`` or ``org/name@revision``. HF_HUB_OFFLINE and the client's other settings are honoured. If the Hub
    cannot be reached, a complete copy in the cache is used with a warning in the log. ``check`` is given the folder of
    small files before weights are fetched; without ``weights`` none are.

    ModelNotFound: nothing there, not permitted, not a model, offline or unreachable; the message has the remedy.
    UnsupportedModel: a repository without safetensors. CorruptFile: a broken index. InvalidRequest: two revisions.
    LludaError: not enough space on the disk.
    """
    text = os.fspath(name_or_path)
    status = _status(text)
    if status is not None:
        return _local(_expand(text), status)
    if text == TINY_OMNI:
        return tiny_omni_folder()
    address = _ADDRESS.match(text)
    if address is not None:
        name = f"; give {address['name']}" if address["name"] else ""
        raise ModelNotFound(f"{text}: an address, not a model; a model on the Hub is written org/name{name}")
    name, at, tag = text.partition("@")
    if _looks_like_path(name):
        hint = "" if "/" in text else "; a model on the Hub is written org/name"
        raise ModelNotFound(f"{text or '(an empty name)'}: no such folder or .gguf file{hint}")
    if not _REPOSITORY.fullmatch(name) or (at and not tag):
        raise ModelNotFound(f"{text!r}: neither a path that exists nor a Hub name (org/name or org/name@revision)")
    if revision and tag and revision != tag:
        raise InvalidRequest(f"{text}: names the revision {tag!r}, but revision={revision!r} was asked for; give one")
    return fetch(Repository(name, revision or tag or None), check, weights=weights)


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
        raise ModelNotFound(f"{folder}: has no {CONFIG_NAME}; {hint}{unfinished_downloads(folder)}")
    os.close(open_regular(folder / CONFIG_NAME)[0])
