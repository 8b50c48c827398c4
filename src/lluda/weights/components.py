"""Which component of a model a tensor belongs to, by its name: for listings and memory plans."""

from __future__ import annotations

import re

_TOP_LEVEL = re.compile(r"^(thinker\.audio_tower|thinker\.visual|talker\.code_predictor|thinker|talker|code2wav)\.")
_PARTS = (
    (re.compile(r"\.experts\.\d+\."), "routed experts"),
    (re.compile(r"\.shared_expert"), "shared experts"),
    (re.compile(r"\.mlp\.gate\.weight$"), "routers"),
    (re.compile(r"\.self_attn\.|\.attn\."), "attention"),
    (re.compile(r"(^|\.)embed_tokens\."), "embed_tokens"),
    (re.compile(r"(^|\.)lm_head(\.|$)"), "lm_head"),
    (re.compile(r"norm\d?\.(weight|bias)$"), "norms"),
    (re.compile(r"\.mlp\."), "mlp"),
)


def component_of(name: str) -> str:
    """``component / part`` for a checkpoint tensor name: ``talker / routed experts``, ``text / attention``, …"""
    top = _TOP_LEVEL.match(name)
    component = top.group(1) if top else "text"
    for pattern, part in _PARTS:
        if pattern.search(name):
            return f"{component} / {part}"
    return f"{component} / other"
