"""An Omni model in GGUF: a layout of lluda's own, since GGUF has none for a model that speaks (docs/formats.md).

The config is the released config.json; layers of the four decoders are named as GGUF names layers, behind their
component; every other tensor keeps the checkpoint's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.gguf_keys import GGUFKeys
from lluda.files.json_file import MAX_JSON_BYTES, parse_json
from lluda.formats.registry import FORMATS
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf.names import entries_by_name, expert_entries, layer_module, layer_part

ARCHITECTURE = "lluda-qwen3-omni"
"""``general.architecture``: no name of llama.cpp's, which cannot run such a file."""

MODEL_TYPE = "qwen3_omni_moe"

CONFIG_KEY = "lluda.config"
"""The config.json, as it is."""

SHAPES_KEY = "lluda.shapes"
"""JSON: true shapes of tensors with more dimensions than GGUF's four, by stored name."""

MAX_DIMENSIONS = 4

_STACKS = {
    "thinker": "thinker.model",
    "talker": "talker.model",
    "code_predictor": "talker.code_predictor.model",
    "code2wav": "code2wav.pre_transformer",
}
_COMPONENTS = {stack: component for component, stack in _STACKS.items()}
_IN_LAYER = {
    "attn_layer_scale": "self_attn_layer_scale",
    "ffn_layer_scale": "mlp_layer_scale",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
_PARTS = {module: part for part, module in _IN_LAYER.items()}
_MODEL_NAME = re.compile(
    rf"(?P<stack>{'|'.join(map(re.escape, _COMPONENTS))})\.layers\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<kind>\w+)",
    re.ASCII,
)
_STORED_NAME = re.compile(
    rf"(?P<component>{'|'.join(_STACKS)})\.blk\.(?P<layer>0|[1-9]\d*)\.(?P<part>\w+)\.(?P<kind>\w+)", re.ASCII
)
_EXPERTS = re.compile(r"ffn_(?P<part>gate|up|down)_exps", re.ASCII)


def omni_name(name: str) -> tuple[str, int | None]:
    """What the parameter ``name`` is stored as and, for the matrix of an expert, which slice of the tensor of all
    experts it is."""
    match = _MODEL_NAME.fullmatch(name)
    if match is None:
        return name, None
    part, expert = layer_part(match["module"])
    part = part or _PARTS.get(match["module"])
    if part is None:
        raise UnsupportedModel(f"{name}: the Omni layout has no name for this tensor")
    return f"{_COMPONENTS[match['stack']]}.blk.{match['layer']}.{part}.{match['kind']}", expert


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of at most four dimensions: where there are more, all behind the first become one."""
    return shape if len(shape) <= MAX_DIMENSIONS else (shape[0], prod(shape[1:]))


def omni_config(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config.json inside. CorruptFile: missing, no JSON object, or of another kind of model."""
    config = _document(metadata, CONFIG_KEY, path)
    if config.get("model_type") != MODEL_TYPE:
        raise CorruptFile(path, f"{CONFIG_KEY}: model_type must be {MODEL_TYPE}", found=config.get("model_type"))
    return config


def omni_entries(entries: Mapping[str, TensorEntry], metadata: Mapping[str, Any], path: Path) -> dict[str, TensorEntry]:
    """``entries`` under the checkpoint's names and with their true shapes; a tensor of all experts becomes one entry
    per expert. CorruptFile: two tensors of one name, a false shape, or too many experts."""
    shapes = _document(metadata, SHAPES_KEY, path) if SHAPES_KEY in metadata else {}

    def renamed(entry: TensorEntry) -> Iterable[TensorEntry]:
        return _renamed(_reshaped(entry, shapes[entry.name], path) if entry.name in shapes else entry)

    return entries_by_name(entries, renamed, path)


def _renamed(entry: TensorEntry) -> Iterable[TensorEntry]:
    match = _STORED_NAME.fullmatch(entry.name)
    if match is None:
        return [entry]
    layer = f"{_STACKS[match['component']]}.layers.{match['layer']}"
    experts = _EXPERTS.fullmatch(match["part"])
    if experts and match["kind"] == "weight":
        return expert_entries(entry, layer, experts["part"], entry.shape[0])
    module = layer_module(match["part"]) or _IN_LAYER.get(match["part"])
    return [replace(entry, name=f"{layer}.{module}.{match['kind']}") if module else entry]


def _reshaped(entry: TensorEntry, shape: Any, path: Path) -> TensorEntry:
    is_shape = isinstance(shape, list) and all(type(size) is int and 0 < size < 2**31 for size in shape)
    if not is_shape or len(shape) <= MAX_DIMENSIONS or stored_shape(tuple(shape)) != entry.shape:
        rule = f"{SHAPES_KEY}: the shape of {entry.name!r} must be that of its values, with over four dimensions"
        raise CorruptFile(path, rule, expected=f"as many values as {list(entry.shape)}", found=shape)
    if not FORMATS[entry.dtype].is_plain:
        raise CorruptFile(path, f"{SHAPES_KEY}: {entry.name!r} must hold plain numbers", found=entry.dtype)
    return replace(entry, shape=tuple(shape))


def _document(metadata: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = document(metadata, key, path)
    if value is None:
        raise CorruptFile(path, f"the key {key} is missing; write the file again with lluda quantize")
    return value


def document(metadata: Mapping[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    """The JSON object in the metadata's ``key``; None if there is none. CorruptFile: not a string of such."""
    if key not in metadata:
        return None
    text = GGUFKeys.of(metadata, path).text(key)
    if len(text) > MAX_JSON_BYTES:
        rule = f"{key} must be JSON of at most {MAX_JSON_BYTES} characters"
        raise CorruptFile(path, rule, found=f"{len(text)} characters")
    value = parse_json(text, path, part=key)
    if not isinstance(value, dict):
        raise CorruptFile(path, f"{key}: the JSON must be an object", found=type(value).__name__)
    return value


def shapes_document(tensors: Mapping[str, tuple[int, ...]]) -> str | None:
    """`SHAPES_KEY`'s value for tensors by stored name; None if none has more than four dimensions."""
    wide = {name: shape for name, shape in tensors.items() if len(shape) > MAX_DIMENSIONS}
    return json.dumps(wide, separators=(",", ":")) if wide else None
