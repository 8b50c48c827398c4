"""Recordings of many channels, encoded here: each channel a tone of its own."""

from __future__ import annotations

import av
import numpy as np

RATE = 48000


def write_channels(path, codec, layout):
    """Half a second in the container of the name; returns the mean of the channels ``[samples]``."""
    channels = av.AudioLayout(layout).nb_channels
    time = np.arange(RATE // 2) / RATE
    tones = np.stack([0.5 * np.sin(2 * np.pi * (300 + 60 * k) * time) for k in range(channels)]).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        codec_context = stream.codec_context
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tones.T.reshape(1, -1)), format="flt", layout=layout)
        frame.rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(
            format=codec_context.format, layout=layout, rate=RATE, frame_size=codec_context.frame_size or None
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return tones.mean(axis=0)
