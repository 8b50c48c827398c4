"""What a file holds that is not what its name says: recognised by its first bytes, with a remedy."""

from __future__ import annotations

SAMPLE_BYTES = 1024
"""Bytes of a file's beginning that are looked at."""

_AGAIN = "fetch the file itself: hf download ORG/NAME"
_SAFETENSORS = "convert it to safetensors (transformers: save_pretrained)"
_LONGEST_REFUSAL = 300  # bytes

_BEGINNINGS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"version https://git-lfs", b"version https://hawser"),
        f"a Git LFS pointer, not the file: run 'git lfs pull' in the repository's folder, or {_AGAIN}",
    ),
    (
        (b"<!doctype html", b"<html", b"<?xml"),
        f"a web page, not the file: its address was that of a page, or the server refused; {_AGAIN}",
    ),
    (
        (b"pk\x03\x04", b"pk\x05\x06"),
        f"a zip archive: if it is PyTorch's (.bin, .pt), which lluda never opens, {_SAFETENSORS}; else unpack it",
    ),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        f"a pickle, which can run code when loaded, so lluda never opens it: {_SAFETENSORS}",
    ),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c"), "compressed: unpack it first"),
    ((b"gguf",), "a GGUF file: name it *.gguf and give its path itself"),
    ((b"ggml", b"lmgg", b"ggjt", b"tjgg", b"ggmf", b"fmgg"), "of a format before GGUF: convert the model again"),
    ((b"\x89hdf",), f"an HDF5 file: {_SAFETENSORS}"),
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text: save it as UTF-8"),
)
"""Beginnings in small letters, white space in front left out."""

_REFUSALS = (
    *(b'{"error"', b"entry not found", b"repository not found", b"not found"),
    *(b"access to model", b"unauthorized", b"invalid"),
)


def foreign_content(sample: bytes | bytearray, size: int) -> str | None:
    """What a file of ``size`` bytes that begins with ``sample`` is, as a sentence with a remedy; None: not known.

    For a reader that cannot read the file as the kind it needs; a good file of another kind is named, too.
    """
    start = bytes(sample[:SAMPLE_BYTES]).lstrip().lower()
    known = [what for beginnings, what in _BEGINNINGS if start.startswith(beginnings)]
    if size == 0:
        known = [f"empty: its download or its writing was broken off; {_AGAIN}"]
    elif not any(sample):
        known = [f"zeros from its beginning on: its download was broken off; {_AGAIN}"]
    elif start.startswith(_REFUSALS) and size <= _LONGEST_REFUSAL:
        known = [f"a server's refusal: accept the model's terms, log in (hf auth login) and {_AGAIN}"]
    elif sample[257:262] == b"ustar":
        known = ["a tar archive: unpack it first"]
    elif sample[8:9] == b"{" and int.from_bytes(sample[:8], "little") < 2**32:
        known = ["safetensors: name it model.safetensors in a folder with config.json, and give the folder"]
    return f"the file is {known[0]}" if known else None
