"""Text files that others wrote (merges.txt, chat_template.jinja): regular, bounded, UTF-8."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from lluda.errors import CorruptFile
from lluda.files.foreign_content import SAMPLE_BYTES, foreign_content
from lluda.files.json_file import decode_utf8
from lluda.files.mapped_file import open_regular


def read_text(path: Path, max_bytes: int) -> str:
    """The text of ``path``, its lines ended by line feeds alone and without the byte order mark that some editors put
    first. CorruptFile: over ``max_bytes``, not UTF-8, or not a regular file. ModelNotFound: absent or not permitted."""
    descriptor, _ = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise CorruptFile(path, "the file is too large", expected=f"at most {max_bytes} bytes")
    foreign = foreign_content(data[:SAMPLE_BYTES], len(data))
    if foreign and data:  # an empty text is one
        raise CorruptFile(path, foreign)
    text = decode_utf8(data.removeprefix(codecs.BOM_UTF8), path)
    return text.replace("\r\n", "\n").replace("\r", "\n")
