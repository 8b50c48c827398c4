"""Splitting: how a byte-level BPE tokenizer cuts text into words before it merges letters.

The four rules are those of the released tokenizers that lluda reads. Others are refused by
name: the rule decides every id, and an arbitrary pattern can take unbounded time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from lluda.errors import CorruptFile, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Splitting:
    """``pattern`` cuts a text into words (GPT-2's own, built into the byte-level step, where it is None); ``digits``
    cuts every digit off first."""

    name: str
    pattern: str | None = None
    digits: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The rule as the tokenizers library has it; words come out in byte letters."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)


def _tiktoken_style(numbers: str) -> str:
    """The pattern Qwen2 and Llama 3 share but for how many digits go together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


QWEN2 = Splitting("qwen2", _tiktoken_style(r"\p{N}"))
LLAMA3 = Splitting("llama-bpe", _tiktoken_style(r"\p{N}{1,3}"))
SMOLLM = Splitting("smollm", digits=True)
GPT2 = Splitting("gpt-2")
SPLITTINGS = {rule.name: rule for rule in (QWEN2, LLAMA3, SMOLLM, GPT2)}
"""By GGUF's name for them, ``tokenizer.ggml.pre``."""

_MOST_STEPS = 8
"""Steps of a pre_tokenizer that are looked at; no rule has more than three."""


def splitting_from_json(step: Any, path: Path) -> Splitting:
    """The rule that ``pre_tokenizer`` of a tokenizer.json spells.

    CorruptFile: not a pre_tokenizer at all. UnsupportedModel: none of `SPLITTINGS`.
    """
    steps = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    known: list[Any] = steps[:_MOST_STEPS] if isinstance(steps, list) else [None]
    if not all(isinstance(each, dict) and "type" in each for each in known):
        raise CorruptFile(path, "pre_tokenizer is neither a step with a type nor a Sequence of such", found=step)
    spelled = tuple(_canonical(each) for each in known)
    for rule in SPLITTINGS.values():
        if known == steps and spelled == _spelling(rule):
            return rule
    raise UnsupportedModel(
        f"{path}: the pre_tokenizer ({', '.join(str(each['type']) for each in known):.160}) splits text by none of "
        f"the rules lluda has: {', '.join(SPLITTINGS)}"
    )


def _canonical(step: dict[str, Any]) -> tuple[Any, ...]:
    """A step without the fields that do not change its output."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            return "Split", pattern, step.get("behavior"), bool(step.get("invert"))
        case {"type": "Digits"}:
            return "Digits", step.get("individual_digits", False)
        case {"type": "ByteLevel"}:
            return "ByteLevel", step.get("add_prefix_space", True), step.get("use_regex", True)
    return (step["type"],)


def _spelling(rule: Splitting) -> tuple[tuple[Any, ...], ...]:
    digits = (("Digits", True),) if rule.digits else ()
    split = (("Split", rule.pattern, "Isolated", False),) if rule.pattern else ()
    return (*digits, *split, ("ByteLevel", False, rule.pattern is None))
