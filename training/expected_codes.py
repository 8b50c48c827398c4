"""The codes of clips as the talker would choose them, frame by frame after the true ones: what code2wav hears when the
model speaks, with the true sound beside it.

``python -m training.expected_codes --codes FOLDER … --weights FOLDER --talker FILE --out FOLDER``
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from training.code_set import CodeSet
from training.stage import autocast
from training.talker_examples import Examples
from training.train_talker import Batch, TalkerTrainer, examples, mistaken, trainer_of

FRAMES_AT_ONCE = 1 << 15
_DRAWN_FRAME = 0.3


@torch.no_grad()
def expected(trainer: TalkerTrainer, codes: CodeSet, jobs: int) -> Tensor:
    """uint8 ``[groups, frames]``, greedy as the model speaks; the frames before have mistakes like those in training.
    What is no example of the talker keeps its codes."""
    device = trainer.table.device
    true = codes.codes.to(device).T.contiguous()
    found = true.clone()
    for split in ("train", "test"):
        for chosen in examples(trainer, codes, split, jobs, neighbours=False):
            for batch, places in _batches(chosen, true):
                found[places[batch.own]] = _likeliest(trainer, batch)[batch.own].to(found.dtype)
    return found.T.contiguous()


def _batches(chosen: Examples, true: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    count = max(1, FRAMES_AT_ONCE // chosen.size)
    for index in torch.arange(len(chosen), device=true.device).split(count):
        places = chosen.frames[index]
        codes, nobody = true[places.clamp(min=0)].long(), places.new_zeros(len(index), 0)
        own = places >= 0
        yield Batch(chosen.text[index], codes, own, chosen.spoken[index], chosen.speaker[index], nobody, nobody), places


def _likeliest(trainer: TalkerTrainer, batch: Batch) -> Tensor:
    """int64 ``[batch, frames, groups]``."""
    talker, size = trainer.talker, trainer.config.talker.code_predictor.vocab_size
    with autocast(str(trainer.table.device)):
        share = torch.tensor(_DRAWN_FRAME, device=trainer.table.device)
        seen = mistaken(batch.codes, trainer.drawn(batch, None), share, batch.own, size)
        hidden, logits, _, _ = trainer.predicted(batch, None, seen)
        rows, first = hidden[:, :-1].flatten(0, 1), logits[:, :-1, :size].argmax(-1).flatten()
        others = talker.code_predictor.likeliest(rows, talker.model.codec_embedding(first))
    return torch.cat((first[:, None], others), dim=1).view_as(batch.codes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=Path, nargs="+", required=True, help="folders of training.code_set")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the text stage's weights")
    parser.add_argument("--talker", type=Path, required=True, help="file of a talker's weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(8)
    codes = CodeSet.load(*options.codes)
    trainer = trainer_of(options.weights, options.talker, options.device).eval()
    CodeSet(expected(trainer, codes, options.jobs), codes.clips).save(options.out)


if __name__ == "__main__":
    main()
