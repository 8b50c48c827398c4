"""Pictures and videos that are damaged, lying, too large or something else: one clear error each."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lluda.config.vision import RELEASED_VISION, VISION_LIMITS
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, LludaError
from lluda.inputs.decoding import video_decoder
from lluda.inputs.media.image_file import read_image
from lluda.inputs.media.video_file import open_video
from lluda.inputs.media.vision_patches import video_patches
from tests.inputs.media.pictures import image_patches
from tests.inputs.media.synthetic_video import grey_frames, write_sound, write_video

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def refused(kind, call, *words):
    """The error, after a look at its text: the thing and the rule on one line, nothing of another library's."""
    with pytest.raises(LludaError) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is kind, text
    for word in words:
        assert word in text
    assert "\n" not in text
    assert " at 0x" not in text
    assert "Errno" not in text
    return text


def image_bytes(form, image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(NOISE) if image is None else image).save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width, height, depth=8, colour=2):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def read_all(path):
    return list(open_video(path).frames())


# Pictures


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_a_picture_cut_off(form, share, tmp_path):
    data = image_bytes(form)
    (tmp_path / "a.png").write_bytes(data[: int(len(data) * share)])
    refused(CorruptFile, lambda: read_image(tmp_path / "a.png"), "a.png")


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        os.urandom(3000),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_picture(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    refused(CorruptFile, lambda: read_image(tmp_path / "a.png"), "not a readable image", "convert it to PNG")


def test_no_file_and_no_regular_file(tmp_path):
    (tmp_path / "empty.png").touch()
    for read, kind in ((read_image, "image"), (open_video, "video")):
        refused(InvalidRequest, lambda read=read: read(tmp_path / "none.png"), f"none.png: no such {kind}")
        refused(CorruptFile, lambda read=read: read(tmp_path), "a regular file is needed")
        refused(CorruptFile, lambda read=read: read(tmp_path / "empty.png"), "empty.png: the file is empty")


@pytest.mark.parametrize("size", [(20_000, 20_000), (100_000, 2_000), (2**31 - 1, 2**31 - 1), (14_000, 14_000)])
def test_a_decompression_bomb_is_refused_before_memory_is_taken(size, tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(*size))
    tracemalloc.start()
    refused(LimitExceeded, lambda: read_image(tmp_path / "a.png"), str(VISION_LIMITS.max_pixels), "make it smaller")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_header_that_promises_more_than_the_file_holds(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(3000, 3000))
    refused(CorruptFile, lambda: read_image(tmp_path / "a.png"), "damaged or cut off")


def test_a_file_too_large_for_a_picture(tmp_path):
    with (tmp_path / "a.bmp").open("wb") as file:
        file.truncate(VISION_LIMITS.max_image_bytes + 1)
    refused(LimitExceeded, lambda: read_image(tmp_path / "a.bmp"), str(VISION_LIMITS.max_image_bytes))


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (20_000, 99)])
def test_one_side_more_than_200_times_the_other(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    pixels = np.zeros((*size, 3), np.uint8)
    for call in (
        lambda: read_image(tmp_path / "a.png"),
        lambda: read_image(pixels),
        lambda: image_patches(pixels, RELEASED_VISION),
        lambda: video_patches(iter([pixels]), 1, RELEASED_VISION),
        lambda: open_video(pixels[None], fps=2),
    ):
        refused(LimitExceeded, call, "more than 200 times the other")


@pytest.mark.parametrize("values", [np.full((9, 9), 0.5, np.float32), np.full((9, 9), 70_000, np.int32)])
def test_values_of_more_than_sixteen_bits(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    refused(CorruptFile, lambda: read_image(tmp_path / "a.tif"), "convert it to 8-bit RGB")


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros(shape, np.uint8) for shape in ((4, 4), (4, 4, 4), (0, 4, 3))),
        *(np.zeros((4, 4, 3)), None, 7, [[1], [2, 3]], object(), {"a": 1}),
    ],
)
def test_arrays_of_another_kind(array):
    refused(InvalidRequest, lambda: read_image(array, where="messages[0]"), "messages[0]", "[height, width, 3]")
    refused(InvalidRequest, lambda: open_video(array, fps=2), "video", "[frames, height, width, 3]")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_a_flipped_byte_is_read_or_refused(tmp_path_factory, form, data):
    stored = bytearray(image_bytes(form))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers come first, and are where the harm is.
        stored[data.draw(st.integers(0, min(len(stored) - 1, 400)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped"
    path.write_bytes(stored)
    try:
        pixels = read_image(path)
    except LludaError as error:
        assert str(path) in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)


# Videos


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mkv", "ffv1", "bgr0"), ("a.mp4", "libx264", "yuv420p"), ("a.avi", "mpeg4", "yuv420p")],
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_video_cut_off(name, codec, pixels, share, tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(50)]
    path = write_video(tmp_path / name, frames, 10, codec=codec, pixels=pixels)
    os.truncate(path, int(path.stat().st_size * share))
    refused(CorruptFile, lambda: read_all(path), name)


def test_a_video_whose_index_comes_first_and_is_cut_off(tmp_path):
    """An mp4 made for streaming: the header is whole and promises what is not there."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(NOISE, format="rgb24")))
        container.mux(stream.encode(None))
    assert open_video(path).count == 12
    os.truncate(path, path.stat().st_size * 2 // 3)
    refused(CorruptFile, lambda: open_video(path), "cut off: copy it again")


@pytest.mark.parametrize(
    "data",
    [b"hello", os.urandom(5000), b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile a\n"],
)
def test_what_is_no_video(data, tmp_path):
    """Lists of further files among them."""
    (tmp_path / "a.mp4").write_bytes(data)
    refused(CorruptFile, lambda: open_video(tmp_path / "a.mp4"), "not a readable video")


def test_a_picture_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(image_bytes("PNG"))
    refused(CorruptFile, lambda: open_video(tmp_path / "a.mp4"), "not a readable video")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        write_sound(container)
    refused(CorruptFile, lambda: open_video(tmp_path / "a.mkv"), "no video track")


def test_a_video_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "bgr0"
        container.start_encoding()
    refused(CorruptFile, lambda: open_video(tmp_path / "a.mkv"), "a.mkv")


def test_limits_of_a_video(tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_frames(30), 10)
    for limits, word in (
        (replace(VISION_LIMITS, max_frame_pixels=1000), "exceeds 1000 pixels"),
        (replace(VISION_LIMITS, max_seconds=2), "exceed the 2 s"),
        (replace(VISION_LIMITS, max_video_bytes=100), "exceed the 100 of one video"),
    ):
        refused(LimitExceeded, lambda limits=limits: open_video(path, limits=limits), "a.mkv", word)
    frames = np.stack(grey_frames(4))
    limits = replace(VISION_LIMITS, max_array_frames=3)
    refused(LimitExceeded, lambda: open_video(frames, fps=1, limits=limits), "4 frames exceed the 3")


def test_frames_larger_than_the_header_says_are_never_allocated(tmp_path, monkeypatch):
    """The decoder itself keeps to the limit: here nothing else is left to look."""
    monkeypatch.setattr(video_decoder, "check_frame", lambda *_: None)
    path = write_video(tmp_path / "a.avi", grey_frames(5, 64, 96), 10, codec="mpeg4", pixels="yuv420p")
    limits = replace(VISION_LIMITS, max_frame_pixels=1000)
    with path.open("rb") as file:
        track = video_decoder.scan(path, file, limits)
        refused(CorruptFile, lambda: list(video_decoder.decode(path, file, track, 2, 1, limits)), "a.avi")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1000, True, "2"])
def test_an_fps_out_of_range(fps, tmp_path):
    refused(InvalidRequest, lambda: open_video(tmp_path / "a.mp4", fps), "fps must be a number above 0, up to 240")


def test_an_array_of_frames_needs_its_fps():
    refused(InvalidRequest, lambda: open_video(np.stack(grey_frames(2)), where="messages[1]"), "messages[1]", "fps")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_flipped_byte_of_a_video_is_read_or_refused(tmp_path_factory, data):
    path = write_video(tmp_path_factory.getbasetemp() / "flipped.mkv", grey_frames(12), 10)
    stored = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, min(len(stored) - 1, 800)))] = data.draw(st.integers(0, 255))
    path.write_bytes(stored)
    try:
        video = open_video(path)
        frames = list(video.frames())
    except LludaError as error:
        assert str(path) in str(error)
    else:
        assert len(frames) == video.count
