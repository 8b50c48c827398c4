"""What a request takes, measured in a process of its own: ``measure_peak.py KIND FOLDER OPTIONS`` (JSON) prints the
plan's bytes and the peak of resident memory over what Python and its imports take."""

import gc
import json
import re
import sys
from pathlib import Path

import numpy as np
import soxr  # noqa: F401 (what a process has imported is not of a request)
import torch

from lluda.engine.engine import Engine
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, load_speech_stack
from lluda.engine.loading.media_plan import MediaLoad
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.media import MediaReader, read_media
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpokenAnswer
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams
from lluda.inputs.media.media_parts import MediaPart
from lluda.inputs.text.tokenizer import Tokenizer

ANSWER, FRAMES, SIDE, SECONDS = 256, 100, 1024, 60


def resident(key):
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def engine(files, options, **more):
    network, _ = load_network(files, options)
    runner = Runner(network, files.cache_options(options, "bf16"), options.prefill_rows)
    context = runner.cache_options.max_length
    return Engine(runner, Tokenizer.empty(), kv_positions=options.max_sequences * context, **more), network


def finish(*streams):
    for stream in streams:
        for _ in stream:
            pass


def text(files, options):
    """As many whole contexts as there is memory planned for, all at once: prompts are short beside answers."""
    running, _ = engine(files, options)
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True).with_defaults({})
    count, length = options.max_sequences, options.max_context - ANSWER
    prompts = [[(7 * row + number) % 1000 for row in range(length)] for number in range(count)]
    requests = [Request(prompt=PromptRows(prompt), sampling=params) for prompt in prompts]
    finish(*[running.submit(request, capacity=ANSWER + 2) for request in requests])  # no answer waits for its reader


def speech(files, options):
    """A text spoken word for word, in a process that has the thinker too."""
    network, _ = load_network(files, options)
    stack = load_speech_stack(files, options, network.decoder.embed_tokens)
    tokens, params = stack.prompts.tokens, SpeechParams(sampling=SamplingParams(temperature=0), max_frames=FRAMES)
    spoken = SpokenAnswer(params.with_defaults({}))
    said = [(20 + index, "a") for index in range(FRAMES)]
    prompt = PromptRows([tokens.im_start, tokens.assistant, 198])
    finish(
        Engine(None, Tokenizer.empty(), lambda: stack).submit(
            Request(prompt=prompt, sampling=SamplingParams(), speech=spoken, text=[said])
        )
    )


def media(files, options):
    """A picture and a minute of sound in one prompt, and an answer."""
    running, network = engine(files, options)
    reader, tokens = MediaReader(network, files.source), network.omni.tokens
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    sound = 0.1 * noise.standard_normal(16000 * SECONDS, dtype=np.float32)
    parts = [
        MediaPart("image", pixels, {}, "a picture"),
        MediaPart("audio", sound, {"sampling_rate": 16000}, "sound"),
    ]
    ids = [5, tokens.image_pad, 6, tokens.audio_pad, 7]
    rows, _ = read_media(reader, ids, parts, options.max_context, {}, running.call)
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True).with_defaults({})
    finish(running.submit(Request(prompt=rows, sampling=params)))


def main():
    kind, folder, options = sys.argv[1], sys.argv[2], LoadOptions(**json.loads(sys.argv[3]))
    files = ModelFiles.find(folder)
    load = MediaLoad((SIDE, SIDE), SECONDS) if kind == "media" else None
    planned = files.plan(options, speech=kind == "speech", media=load).total
    torch.ones(4, 4) @ torch.ones(4, 4)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    {"text": text, "speech": speech, "media": media}[kind](files, options)
    print(json.dumps({"planned": planned, "taken": resident("VmHWM") - before}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
