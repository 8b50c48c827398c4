"""A GGUF copy of a safetensors checkpoint, so that llama.cpp runs the very same weights; made once and kept.

BF16, F16 and F32 matrices keep their type and bits; norms and router matrices become F32, as llama.cpp wants them. The
tokenizer is the format's ``none``: the bench feeds ids. Source: the key and tensor names of llama.cpp's converter.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lluda.config import ModelConfig
from lluda.config_decoder import DecoderConfig
from lluda.errors import MissingDependency, UnsupportedModel
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.entry import Checkpoint, TensorEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

_STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_DENSE = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}


@dataclass(frozen=True, slots=True)
class _Copied:
    """One tensor of the copy: its name, the stored ones it is made of (stacked if ``experts``), and whether widened."""

    name: str
    sources: tuple[TensorEntry, ...]
    experts: bool = False
    widen: bool = False

    @property
    def type(self) -> str:
        return "F32" if self.widen else self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.sources[0].shape
        return (len(self.sources), *shape) if self.experts else shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * (4 if self.type == "F32" else 2)

    def values(self) -> NDArray[Any]:
        """The values, read through a map; a stack of experts is one layer's, the largest thing in memory."""
        parts = [_mapped(entry) for entry in self.sources]
        values = np.stack(parts) if self.experts else parts[0]
        return _widened(values, self.sources[0].dtype) if self.widen else values


def gguf_copy(
    folder: Path, config: ModelConfig, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The GGUF copy of the checkpoint in ``folder``, made in ``cache_dir`` (default: ``lluda-bench`` in the temporary
    folder) unless it is there already, made from the same files. ``progress``: bytes done and in all.

    Raises:
        UnsupportedModel: llama.cpp has no such model.
        MissingDependency: the ``gguf`` package is not installed.
        LludaError: the copy cannot be written.
    """
    _require_supported(config)
    checkpoint = open_checkpoint(folder)
    try:
        path = (cache_dir or Path(tempfile.gettempdir()) / "lluda-bench") / f"{folder.name}-{_key(checkpoint)}.gguf"
        if not path.exists():
            _write(path, config, list(_tensors(checkpoint, config.text)), progress)
        return path
    finally:
        checkpoint.close()


def _require_supported(config: ModelConfig) -> None:
    text = config.text
    sparse = {text.is_sparse(layer) for layer in range(text.num_hidden_layers)}
    reasons = {
        f"model type {config.model_type}": config.model_type not in ("qwen3", "qwen3_moe"),
        "dense and sparse layers mixed": len(sparse) > 1,
        "a qwen3_moe without experts": config.model_type == "qwen3_moe" and sparse == {False},
        "no qk-norm": not text.use_qk_norm,
        "attention biases": text.attention_bias,
        "a sliding window": text.sliding_window is not None,
        "expert weights that do not sum to one": text.moe is not None and not text.moe.norm_topk_prob,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedModel(f"llama.cpp cannot run {', '.join(found)}; lluda copies qwen3 and qwen3_moe for it")


def _key(checkpoint: Checkpoint) -> str:
    """Changes with the files' names, sizes and times and with the layout below."""
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(f"1 {stats}".encode(), digest_size=8).hexdigest()


def _tensors(checkpoint: Checkpoint, text: DecoderConfig) -> Iterator[_Copied]:
    entries = checkpoint.entries
    yield _Copied("token_embd.weight", (entries["model.embed_tokens.weight"],))
    yield _Copied("output_norm.weight", (entries["model.norm.weight"],), widen=True)
    if not text.tie_word_embeddings:
        yield _Copied("output.weight", (entries["lm_head.weight"],))
    for layer in range(text.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        moe = text.moe
        names = _LAYER if moe else _LAYER | _DENSE
        for name, module in names.items():
            entry = entries[f"{source}{module}.weight"]
            yield _Copied(f"{target}{name}.weight", (entry,), widen=len(entry.shape) == 1)
        if moe:
            yield _Copied(f"{target}ffn_gate_inp.weight", (entries[f"{source}mlp.gate.weight"],), widen=True)
            for part in ("gate", "up", "down"):
                experts = (f"{source}mlp.experts.{expert}.{part}_proj.weight" for expert in range(moe.num_experts))
                yield _Copied(f"{target}ffn_{part}_exps.weight", tuple(entries[name] for name in experts), experts=True)


def _write(path: Path, config: ModelConfig, tensors: Sequence[_Copied], progress: Progress | None) -> None:
    try:
        import gguf
    except ImportError:
        raise MissingDependency("a GGUF copy for llama.cpp needs the gguf package: pip install gguf") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, config.model_type.replace("_", ""))
    _add_metadata(writer, config.text)
    for tensor in tensors:
        _require_plain(tensor)
        values_type = np.dtype(_STORED[tensor.type])
        writer.add_tensor_info(
            tensor.name, tensor.shape, values_type, tensor.nbytes, getattr(gguf.GGMLQuantizationType, tensor.type)
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(tensor.nbytes for tensor in tensors)
        for tensor in tensors:
            writer.write_tensor_data(tensor.values())
            done += tensor.nbytes
            if progress:
                progress(done, total)
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _require_plain(tensor: _Copied) -> None:
    stored = {entry.dtype for entry in tensor.sources}
    if len(stored) > 1 or not stored <= set(_STORED):
        raise UnsupportedModel(f"{tensor.name}: a GGUF copy is made of BF16, F16 or F32 weights, not {sorted(stored)}")


def _add_metadata(writer: Any, text: DecoderConfig) -> None:
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_freq_base(text.rope.theta)
    writer.add_vocab_size(text.vocab_size)
    if text.moe:
        writer.add_expert_count(text.moe.num_experts)
        writer.add_expert_used_count(text.moe.num_experts_per_tok)
        writer.add_expert_feed_forward_length(text.moe.moe_intermediate_size)
    writer.add_tokenizer_model("none")


def _mapped(entry: TensorEntry) -> NDArray[Any]:
    return np.memmap(entry.file, dtype=_STORED[entry.dtype], mode="r", offset=entry.offset, shape=entry.shape)


def _widened(values: NDArray[Any], stored: str) -> NDArray[np.float32]:
    """As float32; BF16 is its upper half."""
    if stored == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)
