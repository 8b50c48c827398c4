"""Videos for tests, encoded here: frame k is grey k in every lossless one."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


def grey_frames(count, height=32, width=48):
    return [np.full((height, width, 3), index, np.uint8) for index in range(count)]


def write_video(path, frames, rate=25, *, times=None, codec="ffv1", pixels="bgr0", sound=False):
    """``times``: milliseconds at which frames are shown, else every 1/rate s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = MILLISECOND
        if sound:
            write_sound(container)
        for index, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            frame.pts = times[index] if times else index
            frame.time_base = MILLISECOND if times else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(container):
    stream = container.add_stream("pcm_s16le", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
    frame.rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
