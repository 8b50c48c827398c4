"""Recordings that came through a pipe: sizes that a program could not fill in mean "to the end of the file".

The placeholders are those that the programs write, seen with espeak-ng 1.51, SoX 14.4.2, FFmpeg 5.1, mpg123 1.31 and
Python's wave, each behind ``| cat``.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from lluda.errors import CorruptFile, InvalidRequest
from tests.inputs.media.recordings import RATE, read_audio, sound, write
from tests.inputs.media.synthetic_video import grey_frames, write_video

SAMPLES = np.round(sound(0.5) * 20000).astype("<i2")
LITTLE, BIG = SAMPLES.tobytes(), SAMPLES.astype(">i2").tobytes()
HEAD = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
FORM = b"fmt " + struct.pack("<I", 16) + HEAD
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf59.27.100\0"
RATE_80 = bytes.fromhex("400cfa00000000000000")  # 16000 Hz as AIFF's 80-bit float
GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def riff(whole, data, chunks=b"", magic=b"RIFF"):
    return magic + struct.pack("<I", whole) + b"WAVE" + chunks + FORM + b"data" + struct.pack("<I", data)


def rf64(data):
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, data and data + 86, data, 0, 0)
    return riff(0xFFFFFFFF, 0xFFFFFFFF, ds64, b"RF64")


def aiff(form, frames, data, magic=b"AIFF", extra=b""):
    common = struct.pack(">hIh", 1, frames, 16) + RATE_80 + extra
    head = b"FORM" + struct.pack(">I", form) + magic + b"COMM" + struct.pack(">I", len(common)) + common
    return head + b"SSND" + struct.pack(">III", data, 0, 0)


def au(data):
    return b".snd" + struct.pack(">IIIII", 32, data, 3, RATE, 1) + bytes(8)


def wave64(whole, data):
    start = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000") + struct.pack("<q", whole) + b"wave" + GUID
    return start + b"fmt " + GUID + struct.pack("<q", 40) + HEAD + b"data" + GUID + struct.pack("<q", data)


def caf(data):
    form = struct.pack(">d4sIIIII", RATE, b"lpcm", 0, 2, 1, 1, 16)
    return (
        b"caff"
        + struct.pack(">HH", 1, 0)
        + b"desc"
        + struct.pack(">q", 32)
        + form
        + b"data"
        + struct.pack(">qI", data, 0)
    )


STREAMED = {
    "espeak-ng, SoX wav": riff(0x7FFFF024, 0x7FFFF000) + LITTLE,
    "FFmpeg wav": riff(0xFFFFFFFF, 0xFFFFFFFF, LIST) + LITTLE,
    "FFmpeg RF64": rf64(0) + LITTLE,
    "mpg123 wav": riff(36, 0) + LITTLE,
    "a recorder's 2 GB": riff(2_000_000_036, 2_000_000_000) + LITTLE,
    "SoX aiff": aiff(0x7F000050, 0x3F800000, 0x7F000008) + BIG,
    "SoX aifc": aiff(0x7F00004E, 0x3F800000, 0x7F000008, b"AIFC", b"NONE\x0enot compressed\0") + BIG,
    "FFmpeg aiff": aiff(0, 0, 0) + BIG,
    "SoX, FFmpeg au": au(0xFFFFFFFF) + BIG,
    "an au of size 0": au(0) + BIG,
    "FFmpeg w64": wave64(-1, (1 << 63) - 1) + LITTLE,
    "FFmpeg caf": caf(-1) + BIG,
}


@pytest.mark.parametrize("content", STREAMED.values(), ids=STREAMED)
def test_a_placeholder_means_to_the_end_of_the_file(tmp_path, content):
    path = tmp_path / "piped"
    path.write_bytes(content)
    np.testing.assert_allclose(read_audio(path), SAMPLES / 32768, atol=1e-6)


CUT_OFF = {
    "wav": riff(36 + 4 * len(LITTLE), 4 * len(LITTLE)) + LITTLE,
    "a wav of 1.8 GB": riff(1_800_000_036, 1_800_000_000) + LITTLE,
    "RF64": rf64(4 * len(LITTLE)) + LITTLE,
    "aiff": aiff(4 * len(BIG), 2 * len(BIG), 4 * len(BIG) + 8) + BIG,
    "au": au(4 * len(BIG)) + BIG,
    "w64": wave64(4 * len(LITTLE), 4 * len(LITTLE)) + LITTLE,
    "caf": caf(4 * len(BIG)) + BIG,
}


@pytest.mark.parametrize("content", CUT_OFF.values(), ids=CUT_OFF)
def test_a_size_that_may_be_true_is_taken_for_true(tmp_path, content):
    path = tmp_path / "cut"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="cut off: copy it again"):
        read_audio(path)


@pytest.mark.parametrize("chunks", [b"", LIST, LIST + LIST])
def test_a_wav_without_sound_is_not_filled_with_what_follows(tmp_path, chunks):
    path = tmp_path / "empty.wav"
    path.write_bytes(riff(36 + len(chunks), 0) + chunks)
    with pytest.raises(InvalidRequest, match="no sound"):
        read_audio(path)


def test_a_flac_that_does_not_say_how_long_it_is(tmp_path):
    """As SoX and FFmpeg write it to a pipe: libsndfile cannot read its last block."""
    path = write(tmp_path / "a.flac", sound(1), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36-bit number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_allclose(read_audio(path), sound(1), atol=4e-5)


def test_a_header_of_nothing_but_empty_chunks_is_not_read_to_its_end(tmp_path):
    """64 MB of zeros behind RIFF and WAVE are eight million chunks, and took 30 s."""
    path = tmp_path / "zeros.wav"
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 1 << 26) + b"WAVE")
        file.truncate(1 << 26)
    with pytest.raises(CorruptFile, match="more than 4096 chunks"):
        read_audio(path)


def test_the_sizes_of_a_piped_avi_are_no_promise(tmp_path):
    """FFmpeg then leaves 0xFFFFFFFF for the whole and the frames: 220 s were expected of the one second there is."""
    from lluda.inputs.media.video_file import open_video

    path = write_video(tmp_path / "a.avi", grey_frames(10), 10, codec="mpeg4", pixels="yuv420p")
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff" * 4
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):  # frames, the stream's length
        content[place : place + 4] = struct.pack("<I", 5000)
    path.write_bytes(content)
    assert open_video(path).count == 2
