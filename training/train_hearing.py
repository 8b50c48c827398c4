"""The audio encoder and the thinker on spoken questions: first what was said, then what to answer.

``python -m training.train_hearing --sound FOLDER … --weights FOLDER --out FOLDER --seconds 2000``. The table of tokens
stays as the text stage left it, since the talker reads it; typed questions go on beside the spoken ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.captured import CapturedSteps, Values
from training.ctc import ctc_losses, usable
from training.heard_batches import HeardBatches, learnt_targets
from training.heard_examples import read_heard
from training.optimizer import adamw, clip
from training.prompts import LEARNT, typed_conversations
from training.stage import LOG_EVERY, ROUNDED_SHARE, Limits, Stage, autocast, rounded
from training.tokenizer import FIRST_ADDED
from training.train_text import ROWS_AT_ONCE, answer_loss, thinker_of
from training.twin.thinker import Thinker

SECONDS_AT_ONCE = 1024.0
"""Of sound in a step's batch, padding included."""

LISTENING_SHARE = 0.35
"""Of the stage: transcripts alone. Before the encoder's rows say anything, an answer teaches the thinker to guess."""

MIXED = {"answer": 0.4, "transcript": 0.22, "instructed": 0.16, "followed": 0.16, "noise": 0.06}
TYPED_EVERY = 4
_CTC = (0.5, 0.1)
_NOISES = 4000
_VALIDATE_EVERY = 10 * LOG_EVERY


@dataclass(frozen=True, slots=True)
class Sources:
    """What is drawn from: spoken questions to train on and held-out ones, and typed conversations by size."""

    heard: HeardBatches
    held_out: HeardBatches
    typed: list[Tensor]


class HearingTrainer(nn.Module):
    """The thinker with a head over the encoder's rows that is thrown away: the words heard, by CTC."""

    def __init__(self, thinker: Thinker, width: int) -> None:
        super().__init__()
        self.thinker, self.words = thinker, nn.Linear(width, FIRST_ADDED + 1)
        thinker.model.embed_tokens.weight.requires_grad_(False)

    def forward(self, features: Tensor, frames: Tensor, ids: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Features and ids of a batch -> the answers' loss, the routers' loss, the log-probabilities of the words
        ``[tokens, batch, words]`` with the blank last, and how many of the tokens are each example's own."""
        rows, own = self.thinker.audio_tower(features, frames)
        logits, routing = self.thinker(self.thinker.embed(ids % LEARNT, rows, places))
        targets = learnt_targets(ids)
        answers = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        return answers, routing, F.log_softmax(self.words(rows).float(), dim=-1).transpose(0, 1), own


def words_loss(found: Tensor, own: Tensor, spoken: Tensor, counts: Tensor) -> Tensor:
    """CTC of the words heard, a token on average; examples without words do not count."""
    counted = usable(own, spoken, counts)
    losses = ctc_losses(found, own, spoken, counts, FIRST_ADDED)
    return torch.where(counted, losses, 0.0).sum() / torch.where(counted, counts, 0).sum().clamp_min(1)


def shares_at(progress: float, listening: float) -> Mapping[str, float]:
    """What is drawn at a point of the stage, whose share ``listening`` is transcripts alone."""
    return {"transcript": 1.0} if progress < listening else MIXED


def train(
    sources: Sources,
    weights: Path,
    limits: Limits,
    seconds_at_once: float,
    rows_at_once: int,
    rate: float,
    begin: str = "text",
    listening: float = LISTENING_SHARE,
) -> None:
    """Spoken batches, every fourth a typed one, from the thinker of the stage ``begin``."""
    torch.manual_seed(4)
    device = limits.device
    thinker = thinker_of(weights, begin, device)
    trainer = HearingTrainer(thinker, thinker.audio_tower.config.output_dim).to(device).train()
    optimizer = adamw([trainer], rate, (0.9, 0.98), 0.05)
    stage = Stage("hearing", limits, {"thinker": thinker, "words": trainer.words}, [optimizer])
    hear, read = limits.compile(trainer.forward), limits.compile(thinker.forward)

    def step(kind: tuple[str, torch.Size, bool], *inputs: Tensor) -> Values:
        with rounded([thinker], kind[2]), autocast(device):
            if kind[0] == "typed":
                logits, routing = read(thinker.embed(inputs[0] % LEARNT))
                losses = {"typed": answer_loss(logits, inputs[0]), "typed_routing": routing}
            else:
                weight, *heard, spoken, counts = inputs
                answers, routing, found, own = hear(*heard)
                losses = {"answers": answers, "routing": routing}
                losses["words"] = weight * words_loss(found, own, spoken, counts)
            optimizer.zero_grad(set_to_none=True)
            torch.stack([value.float() for value in losses.values()]).sum().backward()
        clip([trainer], 1.0)
        optimizer.step()
        return losses

    steps = CapturedSteps(step, limits.captured)
    for progress in stage:
        as_stored = progress > 1 - ROUNDED_SHARE
        if stage.step % TYPED_EVERY == TYPED_EVERY - 1 and progress >= listening:
            ids = _typed_batch(sources.typed, rows_at_once)
            stage.report(steps(("typed", ids.shape, as_stored), ids))
        else:
            batch = sources.heard.draw(shares_at(progress, listening), seconds_at_once)
            first, last = _CTC
            weight = torch.full((), first + (last - first) * progress, device=device)
            heard = batch.features, batch.frames, batch.ids, batch.places, batch.spoken, batch.spoken_count
            stage.report(steps(("heard", batch.features.shape + batch.ids.shape, as_stored), weight, *heard))
        if (stage.step + 1) % _VALIDATE_EVERY == 0:
            validate(trainer, sources.held_out, seconds_at_once, stage)


def _typed_batch(sets: list[Tensor], rows_at_once: int) -> Tensor:
    shares = torch.tensor([float(one.numel()) for one in sets])
    chosen = sets[int(torch.multinomial(shares, 1))]
    count = max(1, rows_at_once // chosen.shape[1])
    return chosen[torch.randint(len(chosen), (count,), device=chosen.device)].long()


@torch.no_grad()
def validate(trainer: HearingTrainer, held_out: HeardBatches, seconds_at_once: float, stage: Stage) -> None:
    """Print the share of held-out examples, clean, of which every token is the likeliest after the true ones before."""
    trainer.eval()
    shares: dict[str, float] = {}
    for task in ("transcript", "answer", "noise"):
        right: list[Tensor] = []
        for _ in range(2):
            batch = held_out.draw({task: 1.0}, seconds_at_once, augmented=False)
            with autocast(stage.limits.device):
                rows, _ = trainer.thinker.audio_tower(batch.features, batch.frames)
                logits, _ = trainer.thinker(trainer.thinker.embed(batch.ids % LEARNT, rows, batch.places))
            targets = learnt_targets(batch.ids)
            right.append(((logits[:, :-1].argmax(-1) == targets) | (targets < 0)).all(1).float())
        shares[task] = round(float(torch.cat(right).mean()), 4)
    trainer.train()
    stage.curve.append({"step": stage.step, **{f"exact_{name}": value for name, value in shares.items()}})
    print(f"hearing {stage.step} held out {shares}", flush=True)


def main() -> None:
    """The command line."""
    parser = Limits.parser(__doc__)
    parser.add_argument("--sound", type=Path, nargs="+", required=True, help="sets to hear, of both splits")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the text stage's weights")
    parser.add_argument("--seconds-at-once", type=float, default=SECONDS_AT_ONCE, help="sound of a step")
    parser.add_argument("--conversations", type=int, default=600_000, help="typed ones")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--begin", default="text", help="the stage whose thinker to begin with: text, hearing")
    parser.add_argument("--listening", type=float, default=LISTENING_SHARE, help="share of the stage: transcripts")
    options = parser.parse_args()
    limits = Limits.of(options)
    torch.set_float32_matmul_precision("high")
    heard, held_out = (
        HeardBatches(*read_heard(options.sound, split, _NOISES, 1, options.jobs), limits.device, seed)
        for split, seed in (("train", 5), ("test", 6))
    )
    print([(one.seconds, one.rows, len(one)) for one in heard.examples], flush=True)
    typed = typed_conversations(options.conversations, "train", 1, options.jobs)
    sources = Sources(heard, held_out, [one.to(limits.device) for one in typed if len(one)])
    rows_at_once = int(ROWS_AT_ONCE * options.seconds_at_once / SECONDS_AT_ONCE)
    stages = options.begin, options.listening
    train(sources, options.weights, limits, options.seconds_at_once, rows_at_once, options.rate, *stages)


if __name__ == "__main__":
    main()
