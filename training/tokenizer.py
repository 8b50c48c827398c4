"""Trains the tiny model's tokenizer: byte-level BPE on the texts of the world, in the files of the released one.

``python -m training.tokenizer RELEASED_FOLDER`` writes ``training/tokenizer_files``: 256 bytes and 448 merges, then the
released added tokens in their released order from id 704 on. The split into words, NFC and the chat template are the
released ones.
"""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from training.phrasing import typed
from training.world import SPLITS, sample

FOLDER = Path(__file__).with_name("tokenizer_files")
MERGES = 448
FIRST_ADDED = 256 + MERGES
ROLES = ("system", "user", "assistant")
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONVERSATIONS = 30_000
_SEED = 20261127
_OFTEN = 3_000
"""How often each role word is fed in, so that the template's roles are one token each."""


def texts() -> list[str]:
    """What the merges are learned from: questions as asked and as typed, answers, system prompts, roles."""
    rng, found = Random(_SEED), list(ROLES) * _OFTEN
    for number in range(_CONVERSATIONS):
        conversation = sample(SPLITS[0], rng, "transcript" if number % 8 == 0 else None)
        if conversation.system:
            found.append(conversation.system)
        for turn in conversation.turns:
            found += [turn.instruction, typed(turn.question, rng), turn.answer, turn.answer]
    return found


def trained() -> tuple[dict[str, int], list[str]]:
    """Ids by token (in byte letters), 0 to 703, and the merges as lines of merges.txt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=FIRST_ADDED, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return model["vocab"], merges


def tiny_config(released: dict[str, Any]) -> dict[str, Any]:
    """The released tokenizer_config.json with its added tokens in order from `FIRST_ADDED` on."""
    added = sorted(released["added_tokens_decoder"].items(), key=lambda entry: int(entry[0]))
    moved = {str(FIRST_ADDED + place): token for place, (_, token) in enumerate(added)}
    return released | {"added_tokens_decoder": moved}


def write_files(released: Path, folder: Path) -> None:
    """Trains and writes the four files of a tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = trained()
    by_id = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    config = json.loads((released / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "vocab.json", json.dumps(by_id, ensure_ascii=False))
    _write(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges))
    _write(folder / "tokenizer_config.json", json.dumps(tiny_config(config), indent=2, ensure_ascii=False))
    _write(folder / "chat_template.json", (released / "chat_template.json").read_text(encoding="utf-8").rstrip("\n"))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), FOLDER)
