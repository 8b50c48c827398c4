"""Checkpoints with true names, shapes and files and seeded random values, at any size, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.convert.safetensors_writer import NewTensor, write_safetensors
from lluda.errors import InvalidRequest
from lluda.files.new_folder import new_folder
from lluda.formats.plain import BF16, F16, F32
from lluda.parameters import ParameterSpec
from lluda.weights.config_override import override_config
from lluda.weights.model_folder import TOOL_TEMPLATE

if TYPE_CHECKING:
    import numpy as np

__all__ = ["distribution", "override_config", "synthesize"]

_FORMATS = {one.name: one for one in (BF16, F16, F32)}
DTYPES = tuple(_FORMATS)
DEFAULT_SHARD_BYTES = 5_000_000_000

INDEX_NAME = "model.safetensors.index.json"
_CHUNK = 1 << 18  # values made at once: 1 MiB of float32, which stays in the cache of one core

Shard = tuple[str, list[NewTensor]]
Progress = Callable[[int, int], None]


def synthesize(
    specs: Sequence[ParameterSpec],
    out_dir: Path,
    *,
    config: Mapping[str, Any],
    extra_files: Mapping[str, Path] | None = None,
    seed: int = 0,
    dtype: str = "BF16",
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    store_tied: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a checkpoint of the tensors ``specs`` into ``out_dir``, which must be absent or empty.

    Every value is normally distributed and rounded to nearest even in ``dtype``; a tensor's values depend on ``seed``
    and its name alone, not on the other tensors, their order or the shards (as long as numpy keeps its streams). Mean
    and deviation are those of :func:`distribution`.

    Args:
        specs: tensors in file order; a tied one is written only with ``store_tied``, as a copy.
        out_dir: created with its parents.
        config: written as ``config.json``, last, so that an unfinished folder is not taken for a model.
        extra_files: further files by name (tokenizer, generation_config.json), copied.
        seed: 0 to 2**64 - 1.
        dtype: one of BF16, F16, F32.
        shard_bytes: largest sum of tensor bytes in one file; a larger tensor has a file of its own. More than one file
            are named and indexed as transformers does.
        store_tied: whether tied tensors are stored too.
        progress: called with tensor bytes written and in total.

    Returns:
        All files, in the order written.

    Raises:
        InvalidRequest: a folder that is not empty, or an argument outside its rule.
        LludaError: not enough disk space, or a file that cannot be written; nothing is left behind.
    """
    extra_files = extra_files or {}
    stored = [spec for spec in specs if store_tied or spec.tied_to is None]
    _check_arguments(stored, seed, dtype, shard_bytes)
    shards = _shards([NewTensor(spec.name, spec.shape, dtype) for spec in stored], shard_bytes)
    _check_extra_files(extra_files)
    total = sum(tensor.nbytes for _, tensors in shards for tensor in tensors)
    with new_folder(out_dir) as folder:
        folder.require_space(
            total + sum(source.stat().st_size for source in extra_files.values()),
            "make a smaller model (--set text.num_hidden_layers=4)",
        )
        values = _Values(specs, seed, total, progress)
        for name, tensors in shards:
            write_safetensors(folder.add(name), tensors, values.chunks)
        if len(shards) > 1:
            folder.write_json(INDEX_NAME, _index(specs, shards))
        for name, source in extra_files.items():
            folder.copy(source, name)
        folder.write_json("config.json", config)
    return folder.written


class _Values:
    """Makes the tensors' values piece by piece, and reports how far it is."""

    def __init__(self, specs: Sequence[ParameterSpec], seed: int, total: int, progress: Progress | None) -> None:
        self._specs = {spec.name: spec for spec in specs}
        assert len(self._specs) == len(specs), "a tensor is named twice"
        self._tied = {spec.tied_to for spec in specs}
        self._seed = seed
        self._total = total
        self._done = 0
        self._progress = progress

    def chunks(self, tensor: NewTensor) -> Iterator[memoryview]:
        """The bytes of ``tensor``; each piece is valid until the next is asked for."""
        import numpy as np
        import torch

        spec = self._source(self._specs[tensor.name])
        mean, deviation = distribution(spec, is_tied=spec.name in self._tied)
        generator = _generator(self._seed, spec.name)
        buffer = np.empty(min(_CHUNK, spec.elements), dtype=np.float32)
        encode = _FORMATS[tensor.dtype].encode
        for start in range(0, spec.elements, _CHUNK):
            values = buffer[: min(_CHUNK, spec.elements - start)]
            generator.standard_normal(dtype=np.float32, out=values)
            values *= np.float32(deviation)
            if mean:
                values += np.float32(mean)
            piece = encode(torch.from_numpy(values)).numpy().data
            yield piece
            self._done += piece.nbytes
            if self._progress:
                self._progress(self._done, self._total)

    def _source(self, spec: ParameterSpec) -> ParameterSpec:
        """The tensor whose values ``spec`` has: the one it is tied to, else itself."""
        if spec.tied_to is None:
            return spec
        source = self._specs[spec.tied_to]
        assert source.shape == spec.shape, f"{spec.name} is tied to {source.name} of another shape"
        return source


def distribution(spec: ParameterSpec, *, is_tied: bool) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values; ``is_tied`` says that an output head shares them.

    Chosen so that a model of any depth computes something worth comparing: activations keep their scale, a token stays
    itself among what attention averages (else deep random models lose it, Dong et al. 2021, and greedy answers repeat
    one token), greedy choices have a margin, and few routers are undecided, which BF16 would turn into other experts.

    * matrix, kernel: 0, 1/sqrt(fan_in), fan_in being all but the first dimension; twice that for ``down_proj`` (SwiGLU
      shrinks its row to 0.6), routers (``gate``) and output heads (logits of deviation 2);
    * embedding: 0, 4 for ``embed_tokens``, 1 for other tables; 1/sqrt(width) if tied, for logits of deviation 1 (with
      larger ones a shallow model just repeats its input);
    * norm, scale: 1, 0.1, so that a weight left out or swapped shows; bias: 0, 0.02;
    * code2wav's residual branches: scales (``layer_scale``, ``gamma``) an eighth of that, ``conv2`` kernels and the one
      that makes the samples a quarter, as small as training leaves them: at full gain each block makes differences 2.5
      times as large and the waveform is clipped nearly everywhere.
    """
    mean, deviation = _distribution(spec, is_tied)
    gain = _branch_gain(spec)
    return mean * gain, deviation * gain


def _branch_gain(spec: ParameterSpec) -> float:
    """How much smaller than others what ends a residual branch of code2wav is."""
    if not spec.name.startswith("code2wav."):
        return 1.0
    if spec.name.endswith(("_layer_scale.scale", ".gamma")):
        return 1 / 8
    makes_samples = spec.role == "kernel" and spec.shape[0] == 1
    return 1 / 4 if makes_samples or spec.name.endswith(".conv2.conv.weight") else 1.0


def _distribution(spec: ParameterSpec, is_tied: bool) -> tuple[float, float]:
    """As ``distribution``, by role and name alone."""
    parts = spec.name.split(".")
    fan_in = max(spec.elements // max(spec.shape[0], 1), 1) if spec.shape else 1
    match spec.role:
        case "norm" | "scale":
            return 1.0, 0.1
        case "bias":
            return 0.0, 0.02
        case "embedding":
            return 0.0, 1.0 / fan_in**0.5 if is_tied else 4.0 if "embed_tokens" in parts else 1.0
        case "matrix" | "router" | "kernel":
            doubled = any(part in ("down_proj", "gate") or part.endswith("_head") for part in parts)
            return 0.0, (2.0 if doubled else 1.0) / fan_in**0.5


def _generator(seed: int, name: str) -> np.random.Generator:
    import numpy as np

    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))


def _shards(tensors: list[NewTensor], shard_bytes: int) -> list[Shard]:
    """Files and their tensors, filled in order."""
    groups: list[list[NewTensor]] = []
    remaining = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > remaining:
            groups.append([])
            remaining = shard_bytes
        groups[-1].append(tensor)
        remaining -= tensor.nbytes
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    return [(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def _index(specs: Sequence[ParameterSpec], shards: list[Shard]) -> dict[str, Any]:
    """``total_size`` counts all bytes stored, ``total_parameters`` tied values once."""
    weight_map = {tensor.name: name for name, tensors in shards for tensor in tensors}
    return {
        "metadata": {
            "total_parameters": sum(spec.elements for spec in specs if spec.tied_to is None),
            "total_size": sum(tensor.nbytes for _, tensors in shards for tensor in tensors),
        },
        "weight_map": dict(sorted(weight_map.items())),
    }


def _check_arguments(stored: list[ParameterSpec], seed: int, dtype: str, shard_bytes: int) -> None:
    if dtype not in DTYPES:
        raise InvalidRequest(f"dtype {dtype!r:.40} cannot be synthesised; it must be one of {', '.join(DTYPES)}")
    if not 0 <= seed < 1 << 64:
        raise InvalidRequest(f"seed must be from 0 to {(1 << 64) - 1}; got {seed}")
    if shard_bytes < 1:
        raise InvalidRequest(f"shard_bytes must be at least 1; got {shard_bytes}")
    if not stored:
        raise InvalidRequest("no tensor to synthesise: the list of parameters is empty")


def _check_extra_files(extra_files: Mapping[str, Path]) -> None:
    for name, source in extra_files.items():
        plain = Path(name).name == name or name == TOOL_TEMPLATE
        if not plain or name in ("", ".", "..", "config.json") or name.startswith("model"):
            raise InvalidRequest(
                f"extra file {name!r:.80} must be a plain file name, and not config.json or model*, which synth writes"
            )
        if not source.is_file():
            raise InvalidRequest(f"{source}: no such file to copy as {name}")
