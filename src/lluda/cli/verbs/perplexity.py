"""``lluda perplexity``: how well a model predicts a text, and how far it is from another; the same of speech."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.console import byte_progress, count_progress, say
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.plot import plot_predictions, plot_speech, require_plot
from lluda.cli.report import add_report, publish, require_writable
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.loading.load_options import LoadOptions
    from lluda.engine.loading.model_files import ModelFiles
    from lluda.evaluation.perplexity import Comparison
    from lluda.evaluation.speech_agreement import SpeechAgreement
    from lluda.evaluation.trace import Implementation

MAX_TEXT_BYTES = 2**23
_LLAMA_CPP = "llama.cpp"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model(parser)
    parser.add_argument(
        "--against", metavar="BASE", help="another model to compare with, or llama.cpp on the same .gguf file"
    )
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a text in UTF-8")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="tokens of a chunk (default 512)")
    parser.add_argument("--chunks", type=int, metavar="N", help="only the first N chunks")
    parser.add_argument(
        "--speech", action="store_true", help="compare the speech of two Omni models, which read it aloud"
    )
    parser.add_argument("--max-frames", type=int, default=250, metavar="N", help="of speech, 80 ms each (default 250)")
    parser.add_argument("--speaker", metavar="NAME", help="a speaker of the config (default: its first)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the base's speech (default 0)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it")
    add_report(parser)
    options.add_loading(parser)


def run(args: argparse.Namespace) -> int:
    """Run, print, draw."""
    from lluda.inputs.text.text_file import read_text

    if args.speech and args.against in (None, _LLAMA_CPP):
        raise InvalidRequest("--speech compares two models; name the base with --against MODEL")
    text = read_text(args.text, MAX_TEXT_BYTES)
    require_writable(args.output)
    if args.plot:
        require_plot(args.plot)
    return _speech(args, text) if args.speech else _text(args, text)


def _text(args: argparse.Namespace, text: str) -> int:
    with heavy_imports():
        from lluda.engine.loading.load_options import LoadOptions
        from lluda.engine.loading.model_files import ModelFiles
        from lluda.engine.loading.tokenizer import load_tokenizer
        from lluda.evaluation.perplexity import compare_predictions, text_chunks
    files = ModelFiles.find(args.model, allow_unknown_config=args.allow_unknown_config)
    tokenizer = load_tokenizer(files.source)
    prefix = list(tokenizer.prefix_ids)
    ids = [*prefix, *tokenizer.encode(text, allow_special=False)]
    chunks = text_chunks(ids, args.context, prefix[0] if prefix else None, args.chunks)
    load = LoadOptions(**options.load_options(args) | {"max_context": args.context})
    model = _decoder(files, load, args.model)
    base = _base(args, text, files, load, ids) if args.against else None
    with count_progress("chunks") as progress:
        comparison = compare_predictions(model, chunks, base, progress)
    document = {"text": args.text.name, "tokens": len(ids), **comparison.document()}
    title = f"{args.text.name}: {comparison.model.perplexity.tokens} predictions"
    plot = (lambda: plot_predictions(comparison, args.plot, title)) if args.plot else None
    publish(args, document, lambda: _print_comparison(comparison), plot)
    return 0


def _decoder(files: ModelFiles, load: LoadOptions, name: str) -> Implementation:
    from lluda.evaluation.lluda_components import load_decoder

    with byte_progress("loading") as progress:
        decoder, report = load_decoder(files, load, progress)
    decoder.name = files.name
    say(f"{name}: {report.describe()}; {decoder.network.describe()}")
    return decoder


def _base(args: argparse.Namespace, text: str, files: ModelFiles, load: LoadOptions, ids: list[int]) -> Implementation:
    """The model to compare with. InvalidRequest if it reads the text as other ids."""
    from lluda.engine.loading.model_files import ModelFiles
    from lluda.engine.loading.tokenizer import load_tokenizer

    if args.against == _LLAMA_CPP:
        from lluda.evaluation.llama_cpp_reference import LlamaCppReference

        return LlamaCppReference(files.path, args.context, args.threads)
    other = ModelFiles.find(args.against, allow_unknown_config=args.allow_unknown_config)
    tokenizer = load_tokenizer(other.source)
    theirs = [*tokenizer.prefix_ids, *tokenizer.encode(text, allow_special=False)]
    if theirs != ids or other.config.text.vocab_size != files.config.text.vocab_size:
        raise InvalidRequest(
            f"{other.name} has another vocabulary than {files.name}, so their predictions cannot be compared"
        )
    return _decoder(other, load, args.against)


def _speech(args: argparse.Namespace, text: str) -> int:
    with heavy_imports():
        from lluda.api.speech_model import load_speech
        from lluda.engine.sampling.sampling_params import SamplingParams
        from lluda.engine.speech.speech_params import SpeechParams
        from lluda.evaluation.speech_agreement import compare_speech
    params = SpeechParams(sampling=SamplingParams(seed=args.seed), max_frames=args.max_frames)
    model, base = (load_speech(name, **options.load_options(args)) for name in (args.model, args.against))
    for one in (model, base):
        say(one.describe())
    agreement = compare_speech(model, base, text, params, args.speaker)
    title = f"{model.files.name}: {agreement.frames} frames"
    plot = (lambda: plot_speech(agreement, args.plot, title)) if args.plot else None
    publish(args, {"text": args.text.name, **agreement.document()}, lambda: _print_agreement(agreement), plot)
    return 0


def _print_comparison(comparison: Comparison) -> None:
    for prediction in filter(None, (comparison.model, comparison.base)):
        found = prediction.perplexity
        print(f"{prediction.name}: perplexity {found.value:.4f} +/- {found.error:.4f} ({found.tokens} predictions)")
    if comparison.divergence:
        found_kl = comparison.divergence
        print(f"KL divergence: mean {found_kl.mean:.6f} +/- {found_kl.mean_error:.6f} nats", end="")
        print(f", median {found_kl.median:.6f}, 99 % {found_kl.percentile_99:.6f}, largest {found_kl.largest:.6f}")
        print(f"same top token: {100 * found_kl.same_top:.3f} +/- {100 * found_kl.same_top_error:.3f} %")


def _print_agreement(agreement: SpeechAgreement) -> None:
    print(f"{agreement.frames} frames, codes of the base forced")
    print(f"{'codebook':>8}{'same code':>12}{'mean KL':>12}")
    for one in agreement.codebooks:
        print(f"{one.codebook:>8}{100 * one.same_code:>10.2f} %{one.mean_kl:>12.6f}")
    print(
        f"waveform of the same codes: signal to difference {agreement.signal_to_difference_db:.1f} dB, "
        f"log-spectral distance {agreement.log_spectral_distance_db:.2f} dB"
    )
