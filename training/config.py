"""The config of the tiny model: the released Qwen3-Omni's with small numbers, every other key as released.

``python -m training.config RELEASED_FOLDER`` writes ``training/config.json`` beside this file, which all stages read.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lluda.config.model import ModelConfig

PATH = Path(__file__).with_name("config.json")
TOKENIZER = Path(__file__).with_name("tokenizer_files")

CODES = 256
"""Codes of each of the ``GROUPS`` codebooks. The talker's vocabulary has 1,024 ids more: transformers never samples the
last 1,024 but the end of speech."""

GROUPS = 8

FIRST_RELEASED_TOKEN, FIRST_TOKEN = 151643, 704
"""The first added token's id in the released vocabulary and in the tiny one: all others keep their distance from it."""

_VOCABULARY = 768
_RELEASED_CODES = 2048
_ROPE = {"interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default", "type": "default"}
_SPEAKERS = {"lark": CODES + 253, "rook": CODES + 254}

_THINKER = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "vocab_size": _VOCABULARY,
    "rope_scaling": {**_ROPE, "mrope_interleaved": True},
    "max_position_embeddings": 4096,
}
_AUDIO = {
    "d_model": 128,
    "encoder_layers": 5,
    "num_hidden_layers": 5,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "downsample_hidden_size": 32,
    "output_dim": 256,
}
_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "intermediate_size": 128,
    "out_hidden_size": 256,
    "deepstack_visual_indexes": [0],
    "image_size": 128,
    "num_position_embeddings": 64,
}
_TALKER = {
    "hidden_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "intermediate_size": 256,
    "vocab_size": CODES + 1024,
    "rope_scaling": _ROPE,
    "max_position_embeddings": 4096,
}
_PREDICTOR = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "num_code_groups": GROUPS,
    "vocab_size": CODES,
    "layer_types": ["full_attention"] * 2,
    "max_position_embeddings": 4096,
}
_CODE2WAV = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "decoder_dim": 192,
    "codebook_size": CODES,
    "num_quantizers": GROUPS,
}

GENERATION = {
    "talker_max_new_tokens": 300,
    "talker_repetition_penalty": 1.0,
    "talker_temperature": 0.0,
    "talker_top_k": 20,
    "talker_top_p": 0.9,
}
"""generation_config.json. No repetition penalty: of 256 codes, silence and long vowels must be repeated. Greedy:
sampled speech has half as many word errors again (journal 17)."""


def tiny_config(released: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The tiny config.json. ``vocabulary``: the tiny tokenizer's vocab.json, where the roles have one id each."""
    raw = copy.deepcopy(dict(released))
    thinker, talker = raw["thinker_config"], raw["talker_config"]
    thinker["text_config"] |= _THINKER
    thinker["audio_config"] |= _AUDIO
    thinker["vision_config"] |= _VISION
    talker["text_config"] |= _TALKER
    talker["code_predictor_config"] |= _PREDICTOR
    talker |= {"num_code_groups": GROUPS, "accept_hidden_layer": 2, "thinker_hidden_size": 256}
    talker["speaker_id"] = _SPEAKERS
    raw["code2wav_config"] |= _CODE2WAV
    for section in (raw, thinker, talker):
        _move_ids(section, vocabulary)
    return raw


def _move_ids(section: dict[str, Any], vocabulary: Mapping[str, int]) -> None:
    """Ids of added tokens, of roles, and of the talker's control ids."""
    for key, value in section.items():
        role = key.removesuffix("_token_id")
        if key.startswith("codec_"):
            section[key] = value - _RELEASED_CODES + CODES
        elif role in ("system", "user", "assistant"):
            section[key] = vocabulary[role]
        elif key.endswith("_token_id") and isinstance(value, int) and value >= FIRST_RELEASED_TOKEN:
            section[key] = value - FIRST_RELEASED_TOKEN + FIRST_TOKEN


def read_config(path: Path = PATH) -> tuple[dict[str, Any], ModelConfig]:
    """The raw config.json of the tiny model and what lluda makes of it."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return raw, ModelConfig.from_hf(raw)


def main() -> None:
    """Write ``training/config.json`` from the released one."""
    released = json.loads((Path(sys.argv[1]) / "config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    raw = tiny_config(released, vocabulary)
    ModelConfig.from_hf(raw)
    PATH.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
