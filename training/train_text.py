"""The thinker on typed conversations: every question of the world and its answer. Its table of tokens is never changed
after this stage, since the talker reads it.

``python -m training.train_text --out FOLDER --seconds 480``
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import read_config
from training.optimizer import adamw, clip
from training.prompts import LEARNT, PAD, PromptWriter, typed_conversations
from training.stage import ROUNDED_SHARE, Limits, Stage, autocast, load_weights, rounded
from training.twin.thinker import Thinker
from training.world import held_out_turns

ROWS_AT_ONCE = 512 * 64
"""Rows of a step's batch, whatever the size of its examples."""

_LONGEST_ANSWER = 40


def thinker_of(folder: Path | None, stage: str, device: str) -> Thinker:
    """A new thinker, or one that a stage has saved."""
    config = read_config()[1]
    assert config.omni is not None
    thinker = Thinker(config.text, config.omni)
    with torch.no_grad():
        # Rows of half the decoder's usual length: torch's own are of length 1 a number, too loud a start.
        nn.init.normal_(thinker.model.embed_tokens.weight, std=0.5)
    if folder is not None:
        load_weights(thinker, folder / f"{stage}.thinker.safetensors")
    return thinker.to(device)


def answer_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross entropy of the ids marked ``LEARNT``: ``logits [batch, rows, vocab]`` of ``ids [batch, rows]``."""
    wanted = ids[:, 1:].long()
    targets = torch.where(wanted >= LEARNT, wanted - LEARNT, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def train(limits: Limits, conversations: int, jobs: int, rate: float, scored: int, rows: int) -> None:
    """One network over ``conversations`` different ones, drawn again when they are used up; ``scored`` held-out ones
    are asked at the end."""
    torch.manual_seed(2)
    sets = [one.to(limits.device) for one in typed_conversations(conversations, "train", 0, jobs)]
    sets = [one for one in sets if len(one)]
    print([tuple(one.shape) for one in sets], flush=True)
    thinker = thinker_of(None, "", limits.device).train()
    optimizer = adamw([thinker], rate, (0.9, 0.98), 0.1)
    stage = Stage("text", limits, {"thinker": thinker}, [optimizer])
    forward = limits.compile(thinker.forward)
    shares = torch.tensor([float(one.numel()) for one in sets])
    for progress in stage:
        chosen = sets[int(torch.multinomial(shares, 1))]
        count = max(1, min(len(chosen), rows // chosen.shape[1]))
        ids = chosen[torch.randint(len(chosen), (count,), device=limits.device)]
        with rounded([thinker], progress > 1 - ROUNDED_SHARE), autocast(limits.device):
            logits, routing = forward(thinker.embed(ids.long() % LEARNT))
            answers = answer_loss(logits, ids)
            optimizer.zero_grad(set_to_none=True)
            (answers + routing).backward()
        clip([thinker], 1.0)
        optimizer.step()
        stage.report({"answers": answers, "routing": routing})
    if stage.progress >= 1:
        report = score(thinker, limits.device, scored)
        print(json.dumps(report), flush=True)
        (limits.out / "text.scores.json").write_text(json.dumps(report, indent=1) + "\n")


@torch.no_grad()
def score(thinker: Thinker, device: str, count: int) -> dict[str, float]:
    """The share of held-out questions answered exactly, greedily, over all and by domain."""
    writer, turns = PromptWriter(), held_out_turns(count, 3)
    answers = answers_to(thinker.eval(), [writer.question(turn.question) for turn in turns], writer.end, device)
    right: dict[str, list[bool]] = {"all": []}
    for turn, ids in zip(turns, answers, strict=True):
        exact = writer.tokenizer.decode(ids) == turn.answer
        right["all"].append(exact)
        right.setdefault(turn.domain, []).append(exact)
    return {name: round(sum(found) / len(found), 4) for name, found in right.items()}


def answers_to(thinker: Thinker, prompts: Sequence[list[int]], end: int, device: str) -> list[list[int]]:
    """Greedy answers, without their end, all prompts at once and each step over all rows."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = torch.full((len(prompts), int(lengths.max()) + _LONGEST_ANSWER), PAD, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    rows = torch.arange(len(prompts), device=device)
    for step in range(_LONGEST_ANSWER):
        with autocast(device):
            parts = [thinker(thinker.embed(part))[0] for part in torch.split(ids[:, : int(lengths.max()) + step], 256)]
        ids[rows, lengths + step] = torch.cat(parts)[rows, lengths + step - 1].argmax(-1)
    found = [row[length:].tolist() for row, length in zip(ids, lengths.tolist(), strict=True)]
    return [answer[: answer.index(end)] if end in answer else answer for answer in found]


def main() -> None:
    """The command line."""
    parser = Limits.parser(__doc__)
    parser.add_argument("--conversations", type=int, default=3_000_000)
    parser.add_argument("--rows", type=int, default=ROWS_AT_ONCE, help="of a step's batch")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scored", type=int, default=2000, help="held-out questions that are asked at the end")
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    train(Limits.of(options), options.conversations, options.jobs, options.rate, options.scored, options.rows)


if __name__ == "__main__":
    main()
