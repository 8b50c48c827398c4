"""Requests to an engine over networks of a test."""

from __future__ import annotations

from lluda.engine.engine import Engine
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.request import Request, SpokenAnswer
from lluda.engine.runner import Runner, rows_of
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.inputs.text.tokenizer import Tokenizer


def engine_of(network, stack=None, *, dtype="f32", context=4096, sequences=8, **options):
    """An engine over a network, and what speaks."""
    runner = network if isinstance(network, Runner) else None
    if runner is None and network is not None:
        runner = Runner(network, CacheOptions(context, dtype=dtype), **options)
    budget = sequences * runner.cache_options.max_length if runner else 0
    return Engine(runner, Tokenizer.empty(), (lambda: stack) if stack else None, kv_positions=budget)


def ask(network, prompts, params, *, ends=(), **options):
    """The events of the answers to ``prompts``, ids or rows."""
    params = params.with_defaults({})
    requests = [
        Request(prompt=rows_of(prompt), sampling=params, end_ids=frozenset(ends), index=index)
        for index, prompt in enumerate(prompts)
    ]
    return engine_of(network, **options).submit(*requests)


def ask_spoken(network, stack, prompt, params, speech, **options):
    """The events of one spoken answer, or of a text (ids) spoken as it stands: as `spoken_request`."""
    return engine_of(network, stack).submit(spoken_request(prompt, params, speech, **options))


def spoken_request(prompt, params, speech, *, speaker=None, ends=(), text=None, **spoken):
    return Request(
        prompt=rows_of(prompt),
        sampling=(params or SamplingParams()).with_defaults({}),
        end_ids=frozenset(ends),
        speech=SpokenAnswer(speech.with_defaults({}), speaker, **spoken),
        text=None if text is None else [[(number, "") for number in text]],
    )
