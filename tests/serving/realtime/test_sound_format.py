"""Formats of a realtime session's sound: to samples and from them, in streams."""

import numpy as np
import pytest

from lluda.errors import InvalidRequest
from lluda.serving.realtime.turns.sound_format import RATES, SAMPLE_BYTES, SoundDecoder, SoundEncoder

FORMATS = [(name, rate) for name, rates in RATES.items() for rate in rates]


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def decoded(name: str, rate: int, data: bytes, step: int) -> np.ndarray:
    decoder = SoundDecoder(name, rate)
    return np.concatenate([*(decoder.push(data[at : at + step]) for at in range(0, len(data), step)), decoder.finish()])


# From the tables of ITU-T G.711, its values scaled to 16 bits.
@pytest.mark.parametrize(
    ("name", "codes", "values"),
    [
        ("audio/pcmu", [0x00, 0x80, 0x7F, 0xFF, 0x8F, 0x0F, 0xEF], [-32124, 32124, 0, 0, 16764, -16764, 132]),
        ("audio/pcma", [0x2A, 0xAA, 0x55, 0xD5, 0x80, 0x00, 0xC5], [-32256, 32256, -8, 8, 5504, -5504, 264]),
    ],
)
def test_codes_of_g711(name, codes, values):
    decoder, encoder = SoundDecoder(name, 8000), SoundEncoder(name, 8000)
    table = np.array([decoder_table(decoder, code) for code in codes])
    assert (table * 32768 == values).all()
    again = [encoder._encoded(np.array([value / 32767], np.float32))[0] for value in values]
    assert [code if value else 0xFF for code, value in zip(codes, values, strict=True)] == again


def decoder_table(decoder: SoundDecoder, code: int) -> float:
    """What a stream of one code settles at."""
    sound = decoder.push(bytes([code]) * 400)
    decoder.finish()
    return float(np.round(sound[400] * 32768) / 32768)


@pytest.mark.parametrize(("name", "rate"), FORMATS)
def test_a_tone_comes_back(name, rate):
    encoder = SoundEncoder(name, rate)
    data = encoder.push(tone(440, 24_000)) + encoder.finish()
    assert len(data) == rate // 2 * SAMPLE_BYTES[name]
    heard = decoded(name, rate, data, 640)
    assert len(heard) == 8_000
    error = heard[200:-200] - tone(440, 16_000)[200:-200]
    assert np.sqrt(np.mean(error**2)) < (0.0002 if name == "audio/pcm" else 0.01)


@pytest.mark.parametrize(("name", "rate"), FORMATS)
@pytest.mark.parametrize("samples", [1, 2, 7, 160, 997, 4801])
def test_the_cut_into_pushes_changes_nothing(name, rate, samples):
    data = np.random.default_rng(samples).integers(0, 256, samples * SAMPLE_BYTES[name], np.uint8).tobytes()
    whole = decoded(name, rate, data, max(len(data), 1))
    assert len(whole) == -(-samples * 16_000 // rate)
    for step in (2, 38, 960):
        assert np.array_equal(decoded(name, rate, data, step), whole)


@pytest.mark.parametrize(("name", "rate"), FORMATS)
def test_an_encoder_in_pieces_as_in_one(name, rate):
    sound = np.random.default_rng(0).normal(0, 0.3, 5000).astype(np.float32)
    encoder, pieces = SoundEncoder(name, rate), SoundEncoder(name, rate)
    whole = encoder.push(sound) + encoder.finish()
    assert whole == b"".join(pieces.push(sound[at : at + 77]) for at in range(0, 5000, 77)) + pieces.finish()
    assert whole == encoder.push(sound) + encoder.finish()  # another stream


@pytest.mark.parametrize(("name", "rate"), FORMATS)
def test_little_is_held_back(name, rate):
    """Whatever is held back is by how much each turn is late."""
    decoder, encoder = SoundDecoder(name, rate), SoundEncoder(name, rate)
    heard = len(decoder.push(b"\1" * (rate // 10 * SAMPLE_BYTES[name])))
    assert 1600 - heard <= 32
    given = len(encoder.push(np.zeros(2400, np.float32))) // SAMPLE_BYTES[name]
    assert rate // 10 - given <= rate // 500


def test_half_a_sample_is_refused_and_changes_nothing():
    decoder = SoundDecoder("audio/pcm", 16_000)
    with pytest.raises(InvalidRequest, match="5 bytes"):
        decoder.push(b"\0\0\0\0\0")
    assert decoder.push(np.array([16384, -32768], "<i2").tobytes()).tolist() == [0.5, -1]


@pytest.mark.parametrize(("name", "rate"), [("audio/pcm", 44_100), ("audio/pcmu", 24_000), ("audio/pcma", 16_000)])
def test_other_rates_are_refused(name, rate):
    for kind in (SoundDecoder, SoundEncoder):
        with pytest.raises(InvalidRequest, match=f"{name}.*not {rate}"):
            kind(name, rate)


def test_what_is_beyond_full_scale_is_clipped():
    data = SoundEncoder("audio/pcm", 24_000).push(np.array([3, -3, 0], np.float32))
    assert np.frombuffer(data, "<i2").tolist() == [32767, -32767, 0]


@pytest.mark.parametrize(("name", "rate"), FORMATS)
def test_nothing_gives_nothing(name, rate):
    decoder, encoder = SoundDecoder(name, rate), SoundEncoder(name, rate)
    assert len(decoder.push(b"")) == len(decoder.finish()) == 0
    assert encoder.push(np.zeros(0, np.float32)) == encoder.finish() == b""
