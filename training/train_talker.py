"""The talker and its code predictor on clips as codes, with the table of tokens of the text stage.

``python -m training.train_talker --codes FOLDER --weights FOLDER --out FOLDER --seconds 1000``
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.omni import SpeechConfig
from training.captured import CapturedSteps, Values
from training.code_set import CodeSet
from training.config import read_config
from training.optimizer import adamw, clip
from training.prompts import writer
from training.stage import LOG_EVERY, ROUNDED_SHARE, Limits, Stage, autocast, load_weights, rounded
from training.talker_examples import Examples, examples_of, user_turns
from training.tokenizer import FIRST_ADDED
from training.twin.talker import Talker

FRAMES_AT_ONCE = 128 * 32
OPENING = 9
"""Rows between the user's turns and frame 0's: the header, four of the prompt's own, tts_bos, the first token."""

TURNS = 20_000
_ALONE, _TYPED = 0.5, 0.25
_SMOOTHING = 0.05
_OTHERS, _WORD, _PLACE = 2.0, 0.3, 0.3
_WRONG_FRAME, _WRONG_CODE, _OTHER_FRAME = 0.1, 0.4, 0.03
_DRAWN_FRAME = 0.3
"""The share of frames that the talker drew itself, at most; reached halfway."""

TAUGHT = (1, 3)
_VALIDATE_EVERY = 10 * LOG_EVERY
HELD_OUT = ("first", "others", "word", "place")


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one size with the user's turns before them.

    ``user [batch, rows]``: token ids, -1 padding before them; ``heard`` bool of the same shape: rows of sound."""

    text: Tensor
    codes: Tensor
    own: Tensor
    spoken: Tensor
    speaker: Tensor
    user: Tensor
    heard: Tensor


class TalkerTrainer(nn.Module):
    """The talker with the frozen table of tokens: a batch -> its losses.

    All of the text is fed long before it is spoken, and with codes alone to learn from, speech begins right and then
    loses its place. So one head of each of the ``TAUGHT`` layers is taught to look at the row that brought the token
    which is spoken next (guided attention, Tachibana et al. 2017), and a layer that is thrown away reads that token
    from the last rows."""

    def __init__(self, config: SpeechConfig, table: Tensor) -> None:
        super().__init__()
        self.config, self.talker = config, Talker(config.talker)
        self.words = nn.Linear(config.talker.decoder.hidden_size, FIRST_ADDED + 1)
        self.taught = [layer.self_attn for index, layer in enumerate(self.talker.model.layers) if index in TAUGHT]
        for attention in self.taught:
            attention.watched = True
        self.register_buffer("table", table, persistent=False)
        codec, tokens = config.talker.codec, config.tokens
        text = [tokens.im_start, tokens.assistant, 0, *[tokens.tts_pad] * 4, tokens.tts_bos]
        self.register_buffer("opening", torch.tensor(text), persistent=False)
        codes = [codec.nothink, codec.think_bos, codec.think_eos, 0, codec.pad, codec.bos]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)

    def rows(self, batch: Batch, heard: Tensor | None, seen: Tensor) -> Tensor:
        """All rows of the examples: the user's, the opening, the frames with the codes ``seen``."""
        count, talker = len(batch.text), self.talker
        text = talker.text_projection(
            F.embedding(torch.cat((self.opening.expand(count, -1), batch.text), dim=1), self.table)
        )
        codes = self.codes.repeat(count, 1)
        codes[:, 3] = batch.speaker
        added = talker.model.codec_embedding(codes).float()
        frames = talker.frame_rows(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        own = torch.cat((text[:, :3], text[:, 3:OPENING] + added, text[:, OPENING:] + frames), dim=1)
        if not batch.user.shape[1]:
            return own
        user = talker.text_projection(F.embedding(batch.user.clamp(min=0), self.table))
        if heard is not None:
            user = torch.where(batch.heard[..., None], talker.hidden_projection(heard), user)
        return torch.cat((user, own), dim=1)

    def predicted(self, batch: Batch, heard: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From the frames ``seen``: the rows that choose each frame and the end ``[batch, frames + 1, hidden]``, the
        logits of their first codes, those of the other codes after the batch's codes ``[batch * frames, groups - 1,
        codes]``, and the routers' loss."""
        ahead = (batch.user < 0).sum(1) if batch.user.shape[1] else None
        hidden, logits, routing = self.talker(self.rows(batch, heard, seen), ahead)
        first = batch.user.shape[1] + OPENING - 1
        rows, codes = hidden[:, first:-1].flatten(0, 1), batch.codes.flatten(0, 1)
        predictor = self.talker.code_predictor
        found = predictor(rows, self.talker.model.codec_embedding(codes[:, 0]), predictor.tables(codes[:, 1:-1]))
        return hidden[:, first:], logits[:, first:], found, routing

    @torch.no_grad()
    def drawn(self, batch: Batch, heard: Tensor | None) -> Tensor:
        """Codes drawn from what the talker expects after the true ones, of the shape of the batch's: the mistakes that
        generation will make."""
        _, logits, found, _ = self.predicted(batch, heard, batch.codes)
        first = logits[:, :-1, : found.shape[-1]].flatten(0, 1)
        scores = torch.cat((first[:, None].float(), found.float()), dim=1)
        noise = -torch.rand_like(scores).clamp(min=1e-9).log()
        return (scores.softmax(-1) / noise).argmax(-1).view_as(batch.codes)

    def forward(self, batch: Batch, heard: Tensor | None, seen: Tensor) -> dict[str, Tensor]:
        """The losses; ``seen`` are the batch's codes with mistakes, as generation will make them."""
        hidden, logits, found, routing = self.predicted(batch, heard, seen)
        length = batch.own.sum(1)
        wanted = F.pad(batch.codes[..., 0], (0, 1))
        places = torch.arange(wanted.shape[1], device=wanted.device)
        wanted = torch.where(places == length[:, None], self.config.talker.codec.eos, wanted)
        wanted = torch.where(places > length[:, None], -100, wanted)
        firsts = F.cross_entropy(
            logits.flatten(0, 1).float(), wanted.flatten(), label_smoothing=_SMOOTHING * self.training
        )
        targets = torch.where(batch.own.flatten()[:, None], batch.codes.flatten(0, 1)[:, 1:], -100)
        others = F.cross_entropy(found.flatten(0, 1).float(), targets.flatten())
        known = (batch.spoken >= 0) & (batch.spoken <= places) & (places <= length[:, None])
        return {
            "first": firsts,
            "others": others,
            "word": self.word(batch, hidden, known),
            "place": self.place(batch, known),
            "routing": routing,
        }

    def word(self, batch: Batch, hidden: Tensor, known: Tensor) -> Tensor:
        """Cross entropy of the token spoken in the frame that each row chooses."""
        wanted = batch.text.gather(1, batch.spoken.clamp(min=0)).clamp(max=FIRST_ADDED)
        found = self.words(hidden).flatten(0, 1).float()
        losses = F.cross_entropy(found, torch.where(known, wanted, -100).flatten(), ignore_index=-100, reduction="sum")
        return losses / known.sum().clamp(min=1)

    def place(self, batch: Batch, known: Tensor) -> Tensor:
        """Minus the logarithm of what the taught heads give to the row that brought that token."""
        first = batch.user.shape[1] + OPENING - 1
        wanted = (first + batch.spoken.clamp(min=0))[..., None]
        losses = [-attention.shares[:, first:].gather(2, wanted)[..., 0] for attention in self.taught]
        return torch.stack(losses).mean(0).mul(known).sum() / known.sum().clamp(min=1)


class Batches:
    """Draws batches of one split."""

    def __init__(self, codes: CodeSet, examples: Sequence[Examples], turns: tuple[Tensor, Tensor]) -> None:
        device = turns[0].device
        self.codes, self.examples, self.turns = codes.codes.to(device).T.contiguous(), examples, turns
        self.shares = torch.tensor([float(len(one) * one.size) for one in examples])

    def kind(self) -> tuple[int, bool]:
        """Which examples the next batch has, and whether turns of the user are before them, as in half of the
        batches."""
        return int(torch.multinomial(self.shares, 1)), bool(torch.rand(()) >= _ALONE)

    def draw(self, kind: tuple[int, bool], frames: int) -> Batch:
        """About so many frames."""
        chosen = self.examples[kind[0]]
        device, count = chosen.text.device, max(1, frames // chosen.size)
        index = torch.randint(len(chosen), (count,), device=device)
        places = chosen.frames[index]
        codes = self.codes[places.clamp(min=0)].long()
        user, heard = self.turns
        if not kind[1]:
            user, heard = user.new_zeros(count, 0), heard.new_zeros(count, 0)
        else:
            turn = torch.randint(len(user), (count,), device=device)
            sounds = torch.rand(count, 1, device=device) < (1 - _ALONE - _TYPED) / (1 - _ALONE)
            user, heard = user[turn], heard[turn] & sounds
        return Batch(chosen.text[index], codes, places >= 0, chosen.spoken[index], chosen.speaker[index], user, heard)


def mistaken(codes: Tensor, drawn: Tensor, share: Tensor, own: Tensor, size: int) -> Tensor:
    """Codes ``[batch, frames, groups]``: a ``share`` of the frames as ``drawn``, in others single random codes, and
    some frames of other examples."""
    device = codes.device
    codes = torch.where(torch.rand(codes.shape[:2], device=device)[..., None] < share, drawn, codes)
    frames = torch.rand(codes.shape[:2], device=device)[..., None]
    wrong = (frames < _WRONG_FRAME) & (torch.rand(codes.shape, device=device) < _WRONG_CODE)
    codes = torch.where(wrong, torch.randint(size, codes.shape, device=device), codes)
    shuffled = torch.rand(codes.shape[0] * codes.shape[1], device=device).argsort()
    other = codes.flatten(0, 1)[shuffled].view_as(codes)
    return torch.where((frames > 1 - _OTHER_FRAME) & own[..., None], other, codes)


def heard_rows(batch: Batch, table: Tensor) -> Tensor | None:
    """Rows that stand for sound before the thinker can hear: random ones, as long as those of tokens. The talker learns
    that what the user said does not change how the answer is pronounced."""
    if not batch.user.shape[1]:
        return None
    noise = torch.randn(*batch.user.shape, table.shape[1], device=table.device)
    return noise * table.std() * (0.5 + 3 * torch.rand(len(noise), 1, 1, device=table.device))


def trainer_of(weights: Path, begin: Path | None, device: str) -> TalkerTrainer:
    """With the table of the text stage in the folder ``weights`` and a talker's weights in the file ``begin``."""
    config = read_config()[1].omni
    assert config is not None and config.speech is not None
    table = load_file(weights / "text.thinker.safetensors")["model.embed_tokens.weight"].bfloat16().float().to(device)
    trainer = TalkerTrainer(config.speech, table)
    trainer.opening[2] = writer().line
    if begin is not None:
        load_weights(trainer.talker, begin)
    return trainer.to(device)


def examples(trainer: TalkerTrainer, codes: CodeSet, split: str, jobs: int, neighbours: bool = True) -> list[Examples]:
    """Of a split, on the trainer's device."""
    speech = trainer.config
    ends = speech.tokens.tts_eos, speech.tokens.tts_pad
    return examples_of(codes, split, dict(speech.talker.speakers), ends, str(trainer.table.device), jobs, neighbours)


def train(
    codes: CodeSet, weights: Path, limits: Limits, frames: int, rate: float, begin: Path | None, jobs: int
) -> None:
    """The talker and the code predictor together, from the weights in the file ``begin``."""
    device = limits.device
    torch.manual_seed(3)
    trainer = trainer_of(weights, begin, device).train()
    table, speech = trainer.table, trainer.config
    turns = user_turns(writer(), TURNS if frames >= FRAMES_AT_ONCE else 50, device)
    batches, held_out = (Batches(codes, examples(trainer, codes, split, jobs), turns) for split in ("train", "test"))
    print([(one.size, len(one)) for one in batches.examples], flush=True)
    optimizer = adamw([trainer], rate, (0.9, 0.98), 0.1)
    stage = Stage("talker", limits, {"talker": trainer.talker, "words": trainer.words}, [optimizer])
    forward, size = limits.compile(trainer.forward), speech.talker.code_predictor.vocab_size

    def step(kind: tuple[tuple[int, bool], bool], share: Tensor) -> Values:
        batch = batches.draw(kind[0], frames)
        with rounded([trainer], kind[1]), autocast(device):
            heard = heard_rows(batch, table)
            seen = mistaken(batch.codes, trainer.drawn(batch, heard), share, batch.own, size)
            losses: Values = forward(batch, heard, seen)
            optimizer.zero_grad(set_to_none=True)
            taught = _WORD * losses["word"] + _PLACE * losses["place"]
            (losses["first"] + _OTHERS * losses["others"] + taught + losses["routing"]).backward()
        clip([trainer], 1.0)
        optimizer.step()
        return losses

    steps = CapturedSteps(step, limits.captured)
    for progress in stage:
        share = torch.tensor(_DRAWN_FRAME * min(1.0, 2 * progress)).to(device)
        stage.report(steps((batches.kind(), progress > 1 - ROUNDED_SHARE), share))
        if (stage.step + 1) % _VALIDATE_EVERY == 0 and held_out.examples:
            validate(trainer, held_out, frames, device, stage)


@torch.no_grad()
def validate(trainer: TalkerTrainer, held_out: Batches, frames: int, device: str, stage: Stage) -> None:
    """Print the losses of held-out texts, from true codes."""
    trainer.eval()
    with autocast(device):
        batches = [held_out.draw(held_out.kind(), frames) for _ in range(8)]
        found = [trainer(batch, heard_rows(batch, trainer.table), batch.codes) for batch in batches]
    means = {name: round(float(torch.stack([one[name] for one in found]).mean()), 4) for name in HELD_OUT}
    trainer.train()
    stage.curve.append({"step": stage.step, **{f"held_out_{name}": value for name, value in means.items()}})
    print(f"talker {stage.step} held out {means}", flush=True)


def main() -> None:
    """The command line."""
    parser = Limits.parser(__doc__)
    parser.add_argument("--codes", type=Path, nargs="+", required=True, help="folders of training.code_set")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the text stage's weights")
    parser.add_argument("--frames", type=int, default=FRAMES_AT_ONCE, help="frames of a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--begin", type=Path, help="file of a talker's weights to begin with")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    limits = Limits.of(options)
    codes = CodeSet.load(*options.codes)
    train(codes, options.weights, limits, options.frames, options.rate, options.begin, options.jobs)


if __name__ == "__main__":
    main()
