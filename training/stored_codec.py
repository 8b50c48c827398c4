"""The codec that the stages have saved, and codes by it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lluda.config.omni import SpeechConfig
from training.codec import Encoder, Quantiser, encode_all
from training.config import read_config
from training.sound_set import SoundSet
from training.stage import load_weights
from training.twin.code2wav import Code2Wav


def speech_config() -> SpeechConfig:
    """The speaking half of the tiny config."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    return omni.speech


def codec_of(folder: Path, device: str, stage: str = "codec_a") -> tuple[Encoder, Quantiser, Code2Wav]:
    """The codec that a stage has saved, code2wav's table made of stage A's quantiser."""
    config = speech_config().code2wav
    hidden = config.transformer.hidden_size
    encoder, quantiser = Encoder(hidden), Quantiser(hidden, config.num_quantizers, config.codebook_size)
    vocoder = Code2Wav(config)
    load_weights(encoder, folder / "codec_a.encoder.safetensors")
    load_weights(quantiser, folder / "codec_a.quantiser.safetensors")
    load_weights(vocoder, folder / f"{stage}.code2wav.safetensors")
    if stage == "codec_a":
        vocoder.code_embedding.weight.data.copy_(quantiser.table())
    return encoder.to(device).eval(), quantiser.to(device).eval(), vocoder.to(device)


def codes_of(sound: SoundSet, folder: Path) -> Tensor:
    """Codes int16 ``[groups, frames]`` of all of a set, by the codec of stage A."""
    encoder, quantiser, _ = codec_of(folder, str(sound.sound.device))
    return encode_all(encoder, quantiser, sound.sound)
