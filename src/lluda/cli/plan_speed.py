"""``lluda plan --speed``: how fast a model would answer and speak in each format, by figures of this machine or of one
that was named."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.bench.prediction.prediction import Predicted
    from lluda.engine.loading.model_files import ModelFiles

FORMATS = ("BF16", "packed", "Q8_0")
_PROMPTS, _GENERATE = (128, 512), 128
_MEANINGS = {
    "tg128": "tokens a second",
    "pp128": "prompt of 128, tokens a second",
    "pp512": "prompt of 512, tokens a second",
    "code_predictor": "code predictor, ms a frame",
    "talker": "talker, ms a frame",
    "speech_frame": "both, ms a frame (80 ms of sound)",
    "code2wav1": "code2wav, ms a frame",
    "first_audio": "a given text to first sound, s",
    "rtf": "work for a second of speech, s",
}
"""What each test of `lluda bench` is called in the table."""

Speeds = dict[str, list["Predicted"]]
"""Of each format."""


def add_speed(parser: argparse.ArgumentParser) -> None:
    """``--speed``, and the figures of a machine that is not this one."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--speed", action="store_true",
        help="predict tokens a second and speech in each format, by products that are measured here (some seconds)",
    )  # fmt: skip
    group.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="predict for a machine that reads memory so fast, unmeasured"
    )
    group.add_argument(
        "--flops", type=float, metavar="TFLOP/S", help="with --bandwidth: its BF16 arithmetic, as products reach it"
    )


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether there is anything to predict. InvalidRequest: half of a machine, or figures that are none."""
    told = [value for value in (args.bandwidth, args.flops) if value is not None]
    if len(told) == 1:
        raise InvalidRequest("--bandwidth and --flops go together: decoding hangs on the one, prompts on the other")
    if any(not 0 < value < float("inf") for value in told):
        raise InvalidRequest(f"--bandwidth and --flops must be above 0, not {args.bandwidth:g} and {args.flops:g}")
    if (args.speed or told) and args.place:
        raise InvalidRequest("--speed predicts one device; leave --place out and ask for each device by itself")
    if (args.speed or told) and args.tensor_parallel > 1:
        raise InvalidRequest("--speed predicts one process; leave --tp out (docs/scaling.md has what two GPUs gave)")
    return bool(args.speed or told)


def predict(args: argparse.Namespace, files: ModelFiles) -> Speeds:
    """Of each format that the backend has kernels for. Errors as `lluda.backends.select_backend`."""
    from lluda.backends import select_backend
    from lluda.bench.formats import BYTES_PER_WEIGHT, load_options
    from lluda.bench.prediction.prediction import Prediction
    from lluda.bench.prediction.products import Products, measure_products
    from lluda.engine.loading.load_options import LoadOptions

    def rows(name: str, products: Products, backend: str) -> list[Predicted]:
        return list(Prediction(files.config, products, BYTES_PER_WEIGHT[name], backend).rows(_PROMPTS, _GENERATE))

    if args.bandwidth is not None:
        told = Products(args.bandwidth * 1e9, args.flops * 1e12, args.flops * 1e12)
        device = LoadOptions(**options.load_options(args)).device
        return {name: rows(name, told, device.partition(":")[0]) for name in FORMATS}
    found: Speeds = {}
    for name in FORMATS:
        chosen = LoadOptions(**{**options.load_options(args), **load_options(name)})
        try:
            backend = select_backend("auto", chosen.device, chosen.dtype, chosen.weights, chosen.activations)
        except InvalidRequest:
            # This device holds no weights in the format.
            continue
        products = measure_products(backend, name)
        if not backend.decoded:
            found[name] = rows(name, products, backend.name)
    return found


def print_speeds(speeds: Speeds, how: str) -> None:
    """A line for each figure, a column for each format."""
    print(f"\n{f'speed, predicted ({how})':<50}" + "".join(f"{name:>12}" for name in speeds))
    for index, first in enumerate(next(iter(speeds.values()))):
        values = [rows[index].value for rows in speeds.values()]
        print(f"{_MEANINGS[first.test]:<50}" + "".join(f"{_number(value):>12}" for value in values))


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
