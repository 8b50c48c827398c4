"""Speech in each sound format: what comes out in blocks is one recording of what went in."""

import io
import weakref
from itertools import pairwise

import av
import numpy as np
import pytest
import soundfile

from lluda.errors import InvalidRequest
from lluda.outputs.encoded_audio import CONTENT_TYPES, FORMATS, RecordingEncoder, encoded_audio
from lluda.outputs.wav_header import pcm16

RATE = 24000
FRAME = 1920  # 80 ms, as the vocoder gives them
TIMES = np.arange(2 * RATE) / RATE
SOUND = (0.3 * np.sin(2 * np.pi * 220 * TIMES) + 0.1 * np.sin(2 * np.pi * 1100 * TIMES)).astype(np.float32)


def encoded_in_frames(format, sound=SOUND):
    encoder = RecordingEncoder(format, RATE)
    return [*(encoder.write(sound[at : at + FRAME]) for at in range(0, len(sound), FRAME)), encoder.finish()]


def decoded(data, format):
    """Samples as FFmpeg, which players use, reads them; at the rate of the file."""
    if format == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32767), RATE
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=stream.rate)
        frames = [out.to_ndarray()[0] for frame in container.decode(stream) for out in resampler.resample(frame)]
        return np.concatenate(frames), stream.rate


def level_at(samples, rate, hertz):
    """Amplitude of one sine in the middle second."""
    middle = samples[rate // 2 : rate // 2 + rate]
    return 2 * abs(np.exp(-2j * np.pi * hertz * np.arange(len(middle)) / rate) @ middle) / len(middle)


@pytest.mark.parametrize("format", FORMATS)
def test_a_player_hears_what_was_written(format):
    samples, rate = decoded(b"".join(encoded_in_frames(format)), format)
    assert len(samples) / rate == pytest.approx(2, abs=0.1)  # codecs fill their last block
    for hertz, level in ((220, 0.3), (1100, 0.1), (3000, 0)):
        assert level_at(samples, rate, hertz) == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize("format", ["wav", "pcm", "flac"])
def test_formats_without_loss_keep_every_16_bit_sample(format):
    samples, _ = decoded(b"".join(encoded_in_frames(format)), format)
    scale = 32767 if format == "pcm" else 32768
    assert np.array_equal(np.rint(samples * scale).astype(np.int16), pcm16(SOUND))


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_come_while_the_sound_is_made(format):
    """A listener is never more than a third of a second behind what was written."""
    ends = [index for index, part in enumerate(encoded_in_frames(format)) if part]
    assert ends[0] * 0.08 < 0.33
    assert max(later - earlier for earlier, later in pairwise(ends)) * 0.08 < 0.33


def test_a_wav_that_grows_has_no_size_and_a_whole_one_its_own():
    streamed, whole = b"".join(encoded_in_frames("wav")), encoded_audio("wav", RATE, SOUND)
    assert streamed[4:8] == streamed[40:44] == b"\xff\xff\xff\xff"
    assert int.from_bytes(whole[4:8], "little") == len(whole) - 8
    assert int.from_bytes(whole[40:44], "little") == 2 * len(SOUND) == len(whole) - 44
    assert streamed[44:] == whole[44:]
    assert soundfile.info(io.BytesIO(whole)).frames == len(SOUND)


@pytest.mark.parametrize("format", FORMATS)
def test_a_whole_recording_is_the_streamed_one(format):
    whole, _ = decoded(encoded_audio(format, RATE, SOUND), format)
    streamed, _ = decoded(b"".join(encoded_in_frames(format)), format)
    assert np.array_equal(whole, streamed)


@pytest.mark.parametrize("format", FORMATS)
def test_silence_of_no_length_and_an_encoder_left_early(format):
    assert isinstance(encoded_audio(format, RATE, SOUND[:0]), bytes)
    encoder = RecordingEncoder(format, RATE)
    encoder.write(SOUND[:FRAME])
    released = weakref.ref(encoder)
    del encoder
    assert released() is None


def test_what_is_beyond_full_scale_is_clipped():
    loud = np.array([-3, -1, 0, 1, 3], np.float32)
    assert np.frombuffer(encoded_audio("pcm16", RATE, loud), "<i2").tolist() == [-32767, -32767, 0, 32767, 32767]


def test_an_unknown_format_names_the_known():
    with pytest.raises(InvalidRequest, match=r"'midi' is not one of wav, pcm, mp3"):
        RecordingEncoder("midi", RATE)
    assert set(CONTENT_TYPES) == set(FORMATS)
