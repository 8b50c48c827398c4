"""A small Omni checkpoint with a tokenizer and a chat template of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.build import all_parameters
from tests.inputs.conftest import SPECIAL, tiny_tokenizer_json, tiny_vocabulary
from tests.models.test_thinker import OMNI

MEDIA = (
    "<|audio_start|>",
    "<|audio_pad|>",
    "<|audio_end|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_end|>",
)
FIRST = len(tiny_vocabulary())
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}" + SPECIAL + "{% endfor %}assistant: "
)


def omni_config() -> dict:
    raw = copy.deepcopy(OMNI)
    names = ("audio_start", "audio", "audio_end", "vision_start", "image", "video", "vision_end")
    raw["thinker_config"] |= {f"{name}_token_id": FIRST + 1 + index for index, name in enumerate(names)}
    raw["thinker_config"]["text_config"]["vocab_size"] = FIRST + 1 + len(names)
    return raw | {"im_start_token_id": FIRST, "im_end_token_id": FIRST}


def write_omni(folder: Path) -> Path:
    raw = omni_config()
    synthesize(all_parameters(ModelConfig.from_hf(raw)), folder, config=raw)
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": FIRST + index, "content": text, **flags} for index, text in enumerate((SPECIAL, *MEDIA))]
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer_json(added_tokens=added)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


ROLES = ("<|im_start|>", "<|user|>", "<|assistant|>", "<|tts_bos|>", "<|tts_eos|>", "<|tts_pad|>")
SPEAKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|><|{{ message.role }}|>\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}" + SPECIAL + "{% endfor %}<|im_start|><|assistant|>{{ '\\n' }}"
)


def write_speaking_omni(folder: Path) -> Path:
    """One that speaks: the small talker and code2wav of tests/engine/test_speech.py."""
    from tests.engine.speech.test_speech import config

    raw, first = config(), FIRST + 1 + len(MEDIA)
    raw["thinker_config"] = omni_config()["thinker_config"]
    raw["thinker_config"]["text_config"]["vocab_size"] = first + len(ROLES)
    raw["talker_config"]["accept_hidden_layer"] = 2
    names = ("im_start", "user", "assistant", "tts_bos", "tts_eos", "tts_pad")
    raw |= {f"{name}_token_id": first + index for index, name in enumerate(names)} | {"im_end_token_id": FIRST}
    synthesize(all_parameters(ModelConfig.from_hf(raw)), folder, config=raw)
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": FIRST + index, "content": text, **flags} for index, text in enumerate((SPECIAL, *MEDIA, *ROLES))]
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer_json(added_tokens=added)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": SPEAKING_TEMPLATE}))
    return folder
