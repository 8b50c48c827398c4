"""Twenty minutes of speech: memory does not grow, but for the talker's keys and values."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import SpeechChunk, SpeechCompletion
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams
from tests.engine.asking import ask_spoken
from tests.engine.speech.test_speech import ASSISTANT, IM_START, NEWLINE, model, tensors

__all__ = ["model", "tensors"]  # fixtures

FRAMES_A_SECOND = 12.5
MINUTES = 20
SLACK = 4 << 20
"""Bytes that the allocator may round up by: a leak of 300 bytes a frame is more."""


def resident():
    gc.collect()
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_of_twenty_minutes_of_speech_is_constant_after_ten_seconds(model):
    torch.set_num_threads(1)
    voice = model[1]
    decoder, codec = voice.talker.config.decoder, voice.talker.config.codec
    frames = int(60 * MINUTES * FRAMES_A_SECOND)
    with torch.inference_mode():
        voice.talker._codec_head.values[codec.eos] = 0  # never the largest logit: it does not end
    params = SpeechParams(sampling=SamplingParams(temperature=0), max_frames=frames).with_defaults({})
    said = [20 + index % 100 for index in range(frames)]
    prompt = PromptRows([IM_START, ASSISTANT, NEWLINE])
    spoken, early, completion = 0, None, None
    for event in ask_spoken(None, voice, prompt, None, params, text=said):
        if isinstance(event, SpeechChunk):
            spoken += len(event.codes)
            if early is None and spoken >= 10 * FRAMES_A_SECOND:
                early = resident()
        elif isinstance(event, SpeechCompletion):
            completion = event
    grown = resident() - early
    keys_and_values = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * 4 * frames
    print(f"{frames} frames: {grown} bytes more than after 10 s; keys and values {keys_and_values}")
    assert completion.frames == frames
    # Room for keys and values doubles as it fills.
    assert grown <= 2 * keys_and_values + SLACK
