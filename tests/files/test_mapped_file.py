"""A file that the system will not map. What happens to one that was mapped: tests/faults/test_shortened_files.py."""

from __future__ import annotations

import errno
import mmap

import pytest

from lluda.errors import LludaError
from lluda.files.mapped_file import MappedFile


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOMEM, r"its 10 bytes cannot be mapped: .*; free memory, or raise its limit \(ulimit -v\)"),
        (errno.ENODEV, r"its 10 bytes cannot be mapped: .*; copy it to a local disk"),
    ],
)
def test_the_file_and_the_remedy_are_named(tmp_path, monkeypatch, number, message):
    (tmp_path / "a").write_bytes(bytes(10))

    def refused(*_, **__):
        raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(LludaError, match=f"a: {message}"):
        MappedFile(tmp_path / "a").map()
