"""Videos at even steps of time, from streams whose own steps need not be."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from lluda.config.vision import RELEASED_VISION
from lluda.inputs.media.video_file import open_video
from tests.inputs.media.synthetic_video import grey_frames, write_video


def greys(video):
    return [int(frame[5, 5, 0]) for frame in video.frames()]


def test_a_lossless_video_gives_the_pixels(tmp_path):
    frames = [np.random.default_rng(k).integers(0, 256, (32, 48, 3), dtype=np.uint8) for k in range(10)]
    video = open_video(write_video(tmp_path / "a.mkv", frames, rate=10), fps=10)
    assert (video.count, video.fps, video.has_sound) == (10, 10.0, False)
    for found, expected in zip(video.frames(), frames, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("rate", "fps", "count"), [(25, None, 100), (24, 2, 96), (30, 3, 60), (10, 0.5, 80), (25, 25, 50)]
)
def test_steps_are_those_of_transformers(rate, fps, count, tmp_path):
    """At a constant rate and for a whole, even number of frames."""
    import torch

    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(count), rate), fps)
    assert video.fps == (fps or 2)
    indices = torch.arange(0, count, rate / video.fps).int()  # Qwen2VLVideoProcessor.sample_frames
    assert greys(video) == indices.tolist()
    assert video.count == len(indices)


def test_uneven_timestamps_are_followed(tmp_path):
    """At each moment the frame on display then, not every n-th one."""
    times = [0, 100, 200, 300, 400, 1500, 1600, 3000, 3100, 3200]
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(10), times=times), fps=2)
    assert video.fps == 2
    assert greys(video) == [0, 4, 4, 5, 6, 6, 7][: video.count]


def test_time_begins_with_the_first_frame(tmp_path):
    times = [5000 + 40 * k for k in range(50)]
    assert greys(open_video(write_video(tmp_path / "a.mkv", grey_frames(50), times=times), fps=2)) == [0, 12, 25, 37]


def test_a_video_has_no_more_frames_than_it_has(tmp_path):
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(6), rate=1), fps=10)
    assert (video.count, video.fps) == (6, 1.0)
    assert greys(video) == list(range(6))


def test_a_long_video_is_sampled_more_thinly(tmp_path):
    config = replace(RELEASED_VISION, max_frames=5)
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(200), rate=10), config=config)
    assert (video.count, video.fps) == (5, 0.25)
    assert greys(video) == [0, 40, 80, 120, 160]


def test_one_frame_is_a_video(tmp_path):
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(1)))
    assert video.count == 1
    assert greys(video) == [0]


def test_frames_can_be_read_again_and_left_unread(tmp_path):
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(100)))
    next(video.frames())
    assert greys(video) == greys(video)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.flv", "libx264", "yuv420p"),
        ("a.ogv", "libvpx", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_containers(name, codec, pixels, tmp_path):
    frames = [frame * 4 for frame in grey_frames(60, 64, 96)]
    video = open_video(write_video(tmp_path / name, frames, 10, codec=codec, pixels=pixels))
    assert (video.count, video.fps) == (12, pytest.approx(2, rel=0.01))
    assert np.allclose(greys(video), np.arange(12) * 20, atol=45 if name == "a.gif" else 12)


def test_the_name_does_not_matter(tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_frames(50))
    assert greys(open_video(path.rename(tmp_path / "a.mp3"))) == [0, 12, 25, 37]


def test_a_phone_says_which_way_is_up(tmp_path):
    """A quarter turn in the track's header, as players follow it."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 255
    path = write_video(tmp_path / "a.mp4", [frame] * 3, 10, codec="libx264", pixels="yuv420p")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 24] = struct.pack(">6i", 0, 1 << 16, 0, -(1 << 16), 0, 0)
    path.write_bytes(data)
    upright = next(open_video(path).frames())
    assert upright.shape == (96, 64, 3)
    assert (upright[10, -10, 0], upright[10, 10, 0], upright[-10, -10, 0]) == pytest.approx((255, 0, 0), abs=3)


def test_a_sound_track_can_be_asked_for(tmp_path):
    assert open_video(write_video(tmp_path / "a.mkv", grey_frames(25), sound=True)).has_sound


def test_no_frame_is_buffered(tmp_path):
    """20 of 100 frames of 300 KB pass; not three of them lie in memory at once."""
    frames = grey_frames(100, 256, 400)
    video = open_video(write_video(tmp_path / "a.mkv", frames), fps=5)
    tracemalloc.start()
    for _ in video.frames():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * frames[0].nbytes


def test_arrays_are_taken_as_they_are():
    frames = np.stack(grey_frames(5))
    video = open_video(frames, fps=1.5)
    assert (video.count, video.fps, video.has_sound) == (5, 1.5, False)
    assert greys(video) == list(range(5)) == greys(open_video(list(frames), fps=2))
