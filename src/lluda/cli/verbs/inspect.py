"""``lluda inspect``: every tensor of a checkpoint, without reading one, and without torch; or the GPUs of a machine."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lluda.cli import options
from lluda.cli.heavy_imports import heavy_imports
from lluda.cli.report import add_report, publish, require_writable
from lluda.errors import InvalidRequest
from lluda.models.components import component_and_part
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.entry import TensorEntry
from lluda.weights.hub.sources import resolve_model

if TYPE_CHECKING:
    from lluda.backends.wgpu.adapter import Adapter
    from lluda.backends.wgpu.probe import Probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    options.add_model_argument(parser)
    parser.add_argument("--filter", default="*", metavar="PATTERN", help="only names that match, e.g. '*layers.0.*'")
    parser.add_argument("--totals", action="store_true", help="only the totals by component")
    parser.add_argument("--device", choices=["wgpu"], help="instead of a model, the GPUs that the wgpu backend finds")
    add_report(parser)


def run(args: argparse.Namespace) -> int:
    """List and add up."""
    require_writable(args.output)
    if args.device:
        return _list_adapters(args)
    checkpoint = open_checkpoint(resolve_model(options.model_argument(args)))
    entries = [entry for name, entry in checkpoint.entries.items() if fnmatch.fnmatchcase(name, args.filter)]
    if not entries:
        raise InvalidRequest(
            f"--filter {args.filter!r:.80} matches none of the {len(checkpoint.entries)} tensors; "
            "a pattern matches a whole name: '*q_proj*'"
        )
    totals = _totals(entries)
    tensors = [] if args.totals else entries
    document = {"path": str(checkpoint.path), "tensors": [_row(entry) for entry in tensors], "components": totals}
    publish(args, document, lambda: _print_checkpoint(tensors, totals))
    return 0


def _list_adapters(args: argparse.Namespace) -> int:
    """What a user can send when something is wrong with a GPU."""
    if args.path or args.model:
        raise InvalidRequest("--device lists GPUs and no model; leave one of them out")
    with heavy_imports():
        from lluda.backends.wgpu.adapter import adapters
        from lluda.backends.wgpu.device import WgpuRuntime
    found = adapters()
    probes = [WgpuRuntime(each.device).probe() for each in found]
    rows = [
        {
            "device": each.device,
            "name": each.name,
            "driver": each.driver,
            "kind": each.kind,
            "interface": each.interface,
            "subgroup": list(each.subgroup),
            "features": list(each.features),
            "limits": each.limits,
            "read_bytes_per_second": measured.read,
            "launch_seconds": measured.launch,
            "recording_seconds": measured.recording,
            "answer_seconds": measured.answer,
            "recorder": measured.recorder,
        }
        for each, measured in zip(found, probes, strict=True)
    ]
    publish(args, {"adapters": rows}, lambda: _print_adapters(found, probes))
    return 0


def _print_adapters(found: Sequence[Adapter], probes: Sequence[Probe]) -> None:
    for each, measured in zip(found, probes, strict=True):
        print(each.describe())
        print(
            f"  reads {measured.read / 1e9:.1f} GB/s; a launch takes {1e6 * measured.launch:.1f} us, its recording "
            f"({measured.recorder}) {1e6 * measured.recording:.1f} us, an answer {1e6 * measured.answer:.0f} us"
        )
        fewest, most = each.subgroup
        print(f"  {each.kind}, subgroups of {fewest} to {most} threads" if most else f"  {each.kind}, no subgroups")
        print(f"  features: {', '.join(each.features)}")
        for name, value in each.limits.items():
            if "buffer" in name or "compute" in name:
                print(f"  {name:<48}{value:>16,}")
    if not found:
        print("wgpu finds no adapter; install a Vulkan driver for the GPU")


def _row(entry: TensorEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "bytes": entry.nbytes,
        "file": entry.file.name,
        "offset": entry.offset,
    }


def _totals(entries: Sequence[TensorEntry]) -> list[dict[str, object]]:
    sums: dict[str, list[int]] = {}
    for entry in entries:
        elements = 1
        for size in entry.shape:
            elements *= size
        for component in (component_and_part(entry.name), "total"):
            row = sums.setdefault(component, [0, 0, 0])
            for index, value in enumerate((1, elements, entry.nbytes)):
                row[index] += value
    ordered = [*(item for item in sums.items() if item[0] != "total"), ("total", sums["total"])]
    return [{"component": name, "tensors": n, "parameters": p, "bytes": b} for name, (n, p, b) in ordered]


def _print_checkpoint(entries: Sequence[TensorEntry], totals: Sequence[dict[str, object]]) -> None:
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        shape = "x".join(map(str, entry.shape)) or "scalar"
        print(f"{entry.name:<{width}}  {shape:>16}  {entry.dtype:>5}  {entry.nbytes:>14,}  {entry.file.name}")
    print(f"{'component':<32}{'tensors':>9}{'parameters':>18}{'bytes':>18}")
    for row in totals:
        print(f"{row['component']:<32}{row['tensors']:>9,}{row['parameters']:>18,}{row['bytes']:>18,}")
