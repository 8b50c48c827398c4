"""A GGUF model in one file, or split over a set of files ``NAME-00001-of-00003.gguf``: all parts or an error."""

from __future__ import annotations

import re
from pathlib import Path

from lluda.errors import CorruptFile, ModelNotFound
from lluda.files.gguf_keys import described, same_value
from lluda.weights.gguf.file import GGUFFile

PART_NAME = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})(?P<of>-of-)(?P<count>\d{5})(?P<suffix>\.gguf)", re.DOTALL | re.IGNORECASE
)
_MAX_PARTS = 99999


def open_parts(path: Path) -> tuple[GGUFFile, ...]:
    """The file ``path``, or all parts of the set whose first part it is (keys ``split.no``, from 0, and
    ``split.count``; the names count from 1)."""
    first = GGUFFile(path)
    files = [first]
    try:
        count = _split_number(first, "split.count", 1)
        number = _split_number(first, "split.no", None) if count > 1 else 0
        if number:
            start = _part_path(path, 0, count)
            remedy = f"open {start} instead" if start and start != path else "restore the names of the parts"
            raise CorruptFile(path, f"this is part {number + 1} of {count} of a split model (split.no); {remedy}")
        for index in range(1, count):
            files.append(_open_part(path, index, count))
            _refuse_foreign(files[index], first, index, count)
        _refuse_short_set(files, count)
    except BaseException:
        for file in files:
            file.close()
        raise
    return tuple(files)


def _open_part(first: Path, index: int, count: int) -> GGUFFile:
    part = _part_path(first, index, count)
    if part is None or part == first or _part_path(first, 0, count) != first:
        rule = f"part 1 of {count} of a split model must be named so that the others can be found"
        raise CorruptFile(first, rule, expected=f"NAME-00001-of-{count:05}.gguf", found=first.name)
    try:
        return GGUFFile(part)
    except ModelNotFound as error:
        rule = f"part {index + 1} of {count} of the split model is missing; put it beside {first.name}"
        raise CorruptFile(part, rule) from error


def _part_path(path: Path, index: int, count: int) -> Path | None:
    """The path of part ``index`` (from 0) beside the part ``path``; None if its name is not that of a part."""
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        return None
    return path.with_name(f"{match['stem']}-{index + 1:05}{match['of']}{count:05}{match['suffix']}")


def _refuse_foreign(part: GGUFFile, first: GGUFFile, index: int, count: int) -> None:
    number = _split_number(part, "split.no", None)
    if number != index:
        rule = f"the file named as part {index + 1} of {count} holds another part (split.no); restore the names"
        raise CorruptFile(part.path, rule, expected=index, found=number)
    for key in part.metadata.keys() & (first.metadata.keys() | {"split.count"}):
        # Each part may have its own alignment; whatever else it repeats must agree.
        if key in ("split.no", "general.alignment"):
            continue
        wanted, found = first.metadata[key], part.metadata[key]
        if not same_value(wanted, found):
            rule = f"part {index + 1} of {count} is of another model: its {key} differs from the first part's"
            raise CorruptFile(part.path, rule, expected=described(wanted), found=described(found))


def _refuse_short_set(files: list[GGUFFile], count: int) -> None:
    if count == 1 or "split.tensors.count" not in files[0].metadata:
        return
    wanted = _split_number(files[0], "split.tensors.count", None)
    found = sum(len(file.entries) for file in files)
    if wanted != found:
        names = ", ".join(f"{file.path.name} {len(file.entries)}" for file in files[:8])
        rule = f"the {count} parts do not hold as many tensors as split.tensors.count says ({names})"
        raise CorruptFile(files[0].path, rule, expected=wanted, found=found)


def _split_number(file: GGUFFile, key: str, default: int | None) -> int:
    lowest, highest = (1, _MAX_PARTS) if key == "split.count" else (0, 2**31 - 1)
    return file.metadata.integer(key, lowest, highest, default=default)
