"""The components of a model: one table of their names, their tensors and their sections of config.json."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a checkpoint that can be placed, validated and counted by itself. ``name``: for ``--place`` and
    ``validate --only``; ``prefix``: how its tensors' names begin; ``section``: its place in config.json, dotted;
    ``speaks``: whether it is of the half of an Omni model that a text answer does not need."""

    name: str
    prefix: str
    section: str
    speaks: bool = False

    @property
    def plan_name(self) -> str:
        """What listings and memory plans call it: the module's name in the checkpoint."""
        return self.prefix.removesuffix(".") or self.name


TEXT = Component("text", "", "")
"""All of a text model."""

COMPONENTS = (
    Component("audio_encoder", "thinker.audio_tower.", "thinker_config.audio_config"),
    Component("vision_encoder", "thinker.visual.", "thinker_config.vision_config"),
    Component("thinker", "thinker.", "thinker_config.text_config"),
    Component("talker", "talker.", "talker_config.text_config", speaks=True),
    Component("code_predictor", "talker.code_predictor.", "talker_config.code_predictor_config", speaks=True),
    Component("code2wav", "code2wav.", "code2wav_config", speaks=True),
)
"""Of an Omni model, in the order of computation."""

BY_NAME = {component.name: component for component in (*COMPONENTS, TEXT)}

_INNERMOST = sorted(COMPONENTS, key=lambda component: -len(component.prefix))
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


def component_of(tensor: str) -> Component:
    """The component that a checkpoint tensor belongs to, by its name."""
    return next((component for component in _INNERMOST if tensor.startswith(component.prefix)), TEXT)


def part_of(tensor: str) -> str:
    """Which part of its component a tensor is of: ``attention``, ``routed experts``, …, ``other``."""
    return next((part for pattern, part in _PARTS if pattern.search(tensor)), "other")


def component_and_part(tensor: str) -> str:
    """Both, as listings and plans have them: ``talker / routed experts``, ``text / attention``."""
    return f"{component_of(tensor).plan_name} / {part_of(tensor)}"
