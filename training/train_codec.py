"""The codec in two stages. A: encoder, quantiser and code2wav together. B: code2wav alone as a vocoder of fixed codes,
against discriminators.

``python -m training.train_codec a --sound FOLDER --out FOLDER --seconds 480``, then ``b`` with the same folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lluda.config.code2wav import Code2WavConfig
from lluda.config.omni import SpeechConfig
from training.captured import CapturedSteps, Values
from training.codec import PLACES, Encoder, PhonemeHead, Quantiser, encode_all
from training.config import read_config
from training.ctc import ctc_losses, usable
from training.discriminators import Discriminators, deceived, halves, hinge
from training.optimizer import adamw, clip
from training.sound_set import FRAME, Clip, SoundSet, read_sets
from training.spectrum import MelDistance
from training.stage import ROUNDED_SHARE, Limits, Stage, autocast, load_weights, rounded
from training.twin.code2wav import Code2Wav

SEGMENT = 64
"""Frames that encoder and transformer see of each example."""

UNHEARD = 2
"""First frames of a piece from the middle of a segment that no loss is taken of: the convolutions begin with zeros."""

PLACE_EVERY = 200
_MEL, _PHONEMES, _FEATURES = 15.0, 1.0, 20.0


class Pieces:
    """Draws segments of a set, each beginning at a clip, and pieces of ``frames`` frames of them."""

    def __init__(self, sound: SoundSet, batch: int, frames: int, looked_ahead: int) -> None:
        self.sound, self.batch, self.frames, self.ahead = sound.sound, batch, frames, looked_ahead
        device = sound.sound.device
        total = len(sound.sound) // FRAME
        fitting = [clip for clip in sound.trained if clip.first + SEGMENT <= total]
        self.first = torch.tensor([clip.first for clip in fitting], device=device)
        self.lengths = torch.tensor([clip.frames for clip in fitting], device=device)
        self.symbols = sorted({symbol for clip in sound.clips for symbol in clip.phonemes})
        self.targets, self.target_lengths, self.whole = self._phonemes(sound.trained, len(fitting))

    def _phonemes(self, clips: Sequence[Clip], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each segment the phonemes (from 1) of the clips that end in it, how many, and in how many frames."""
        ids = {symbol: 1 + index for index, symbol in enumerate(self.symbols)}
        rows, frames = [], []
        for index in range(count):
            row, end, begin = [], 0, clips[index].first
            for one in clips[index : index + 16]:
                # One clip's frames less: a segment may begin up to a frame late.
                if not one.phonemes or one.first + one.frames - begin >= SEGMENT or one.first < begin + end:
                    break
                row += [ids[symbol] for symbol in one.phonemes]
                end = one.first + one.frames - begin
            rows.append(row)
            frames.append(end)
        device = self.sound.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        padded = torch.zeros(count, max(1, *map(len, rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return padded.to(device), lengths, torch.tensor(frames, device=device)

    def draw(self) -> Tensor:
        """The clips that segments begin with, ``[batch]`` on the host."""
        return torch.randint(len(self.first), (self.batch,))

    def begin(self, chosen: Tensor) -> Tensor:
        """The first frames of pieces of segments, ``[batch]``: in the segment's first clip, a tenth of them at its
        beginning."""
        share = (torch.rand(self.batch, device=chosen.device) * 1.1 - 0.1).clamp(min=0)
        return (share * self.lengths[chosen].clamp(max=SEGMENT - self.frames)).long()

    def segments(self, chosen: Tensor) -> Tensor:
        """Samples ``[batch, SEGMENT * FRAME]`` float32, which begin up to a frame late."""
        late = torch.randint(FRAME, chosen.shape, device=chosen.device)
        begin = (self.first[chosen] * FRAME + late).clamp(max=len(self.sound) - SEGMENT * FRAME)
        return self._samples(begin, SEGMENT * FRAME)

    def true(self, chosen: Tensor, piece: Tensor) -> Tensor:
        """Samples of the pieces of exact segments, as many as code2wav makes of their frames."""
        return self._samples((self.first[chosen] + piece) * FRAME, self.frames * FRAME - self.ahead)

    def _samples(self, begin: Tensor, count: int) -> Tensor:
        return self.sound[begin[:, None] + torch.arange(count, device=begin.device)].float() / 32768

    def cut(self, rows: Tensor, piece: Tensor) -> Tensor:
        """Rows ``[batch, SEGMENT, hidden]`` -> those of the pieces ``[batch, frames, hidden]``."""
        index = piece[:, None] + torch.arange(self.frames, device=piece.device)
        return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))

    def heard(self, made: Tensor, true: Tensor, piece: Tensor) -> Tensor:
        """``made``, with the true samples where nothing is asked of it."""
        unheard = (piece > 0)[:, None] & (torch.arange(made.shape[1], device=made.device) < UNHEARD * FRAME)
        return torch.where(unheard, true, made)


def quieten(network: Code2Wav) -> None:
    """Begin with small sounds: the last convolution at a tenth, so that the first steps do not clip."""
    with torch.no_grad():
        network.decoder[-1].conv.weight.mul_(0.1)


class CodecTrainer:
    """Stage A: encoder, quantiser, code2wav and phoneme head, on log-mel distance, commitment and phonemes."""

    def __init__(self, config: Code2WavConfig, pieces: Pieces, limits: Limits, rate: float) -> None:
        self.config, self.pieces, self.device = config, pieces, limits.device
        hidden = config.transformer.hidden_size
        self.encoder = Encoder(hidden)
        self.quantiser = Quantiser(hidden, config.num_quantizers, config.codebook_size)
        self.vocoder, self.head = Code2Wav(config), PhonemeHead(hidden, max(1, len(pieces.symbols)))
        quieten(self.vocoder)
        named = (self.encoder, self.quantiser, self.vocoder, self.head)
        self.modules = dict(zip(("encoder", "quantiser", "code2wav", "phonemes"), named, strict=True))
        for module in named:
            module.to(self.device).train()
        self.optimizer = adamw(named, rate, (0.8, 0.99), 0.01)
        self.distance = MelDistance().to(self.device)
        self.frames, self.waveform = limits.compile(self.vocoder.frames), limits.compile(self.vocoder.waveform)

    def step(self, is_rounded: bool, chosen: Tensor) -> Values:
        """One step on the segments ``chosen``."""
        pieces, device = self.pieces, self.device
        piece = pieces.begin(chosen)
        segment = pieces.segments(chosen)
        samples = torch.arange(pieces.frames * FRAME - pieces.ahead, device=device)
        true = segment.gather(1, piece[:, None] * FRAME + samples)
        with rounded([self.vocoder], is_rounded), autocast(device):
            total, first, commitment = self.quantised(self.encoder(segment))
            made = pieces.heard(self.waveform(pieces.cut(self.frames(total), piece)), true, piece)
            values = {"mel": self.distance(made, true), "commitment": commitment}
            values["phonemes"] = self.phonemes(first, chosen)
            loss = _MEL * values["mel"] + commitment + _PHONEMES * values["phonemes"]
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        clip(list(self.modules.values()), 1.0)
        self.optimizer.step()
        for group in (0, self.config.num_quantizers - 1):
            values[f"perplexity_{group}"] = perplexity(self.quantiser.counts[group])
        return values

    def quantised(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quantiser's sum, its first stage and its loss; of a quarter of the segments the last stages are not
        used."""
        count, groups = len(latent), self.config.num_quantizers
        fewer = torch.randint(2, groups + 1, (count,), device=latent.device)
        used = torch.where(torch.rand(count, device=latent.device) < 0.25, fewer, groups)
        with torch.autocast(latent.device.type, enabled=False):
            total, first, _, commitment = self.quantiser(latent, used)
        return total, first, commitment

    def phonemes(self, first: Tensor, chosen: Tensor) -> Tensor:
        """CTC of the phonemes in the first codebook's rows ``[batch, SEGMENT, hidden]``, a phoneme on average."""
        spoken = self.head(first).float().log_softmax(-1).transpose(0, 1)
        own, count = PLACES * self.pieces.whole[chosen], self.pieces.target_lengths[chosen]
        targets = self.pieces.targets[chosen]
        losses, counted = ctc_losses(spoken, own, targets, count, 0), usable(own, targets, count)
        return torch.where(counted, losses, 0.0).sum() / (count * counted).sum().clamp(min=1)


def train_a(sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float) -> None:
    """Stage A."""
    config = speech_config().code2wav
    torch.manual_seed(0)
    pieces = Pieces(sound, batch, frames, config.look_ahead)
    trainer = CodecTrainer(config, pieces, limits, rate)
    stage = Stage("codec_a", limits, trainer.modules, [trainer.optimizer])
    steps = CapturedSteps(trainer.step, limits.captured)
    for progress in stage:
        chosen = pieces.draw().to(limits.device)
        is_rounded = progress > 1 - ROUNDED_SHARE
        if stage.step % PLACE_EVERY == 0 and progress < 0.7:
            with torch.no_grad(), autocast(limits.device):
                latent = trainer.encoder(pieces.segments(chosen))
            trainer.quantiser.place(latent, math.inf if stage.step == 0 else 1.0)
        stage.report(steps(is_rounded, chosen))


def perplexity(counts: Tensor) -> Tensor:
    """How many codes a codebook uses: e to the entropy of how often each is chosen."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


class VocoderTrainer:
    """Stage B: code2wav, its table free, on the fixed codes of all clips, against discriminators."""

    def __init__(self, folder: Path, sound: SoundSet, pieces: Pieces, limits: Limits, rate: float) -> None:
        self.pieces, self.device = pieces, limits.device
        self.vocoder, self.discriminators = codec_of(folder, self.device)[2].train(), Discriminators().to(self.device)
        self.codes = codes_of(sound, folder).long()
        self.optimizers = [adamw([one], rate, (0.8, 0.99), 0.01) for one in (self.vocoder, self.discriminators)]
        self.distance = MelDistance().to(self.device)
        self.frames, self.waveform = limits.compile(self.vocoder.frames), limits.compile(self.vocoder.waveform)

    def step(self, is_rounded: bool, chosen: Tensor, share: Tensor) -> Values:
        """One step of both; ``share``: of the adversary's part of code2wav's loss, which comes in slowly since it
        begins knowing nothing."""
        pieces, (own, against) = self.pieces, self.optimizers
        piece = pieces.begin(chosen)
        true = pieces.true(chosen, piece)
        index = pieces.first[chosen, None] + torch.arange(SEGMENT, device=self.device)
        with rounded([self.vocoder], is_rounded), autocast(self.device):
            rows = self.frames(self.vocoder.latents(self.codes[:, index].transpose(0, 1)))
            made = pieces.heard(self.waveform(pieces.cut(rows, piece)), true, piece)
            doubt = hinge(*halves(self.discriminators(torch.cat((true, made.detach())))))
            against.zero_grad(set_to_none=True)
            doubt.backward()
            clip([self.discriminators], 10.0)
            against.step()
            self.discriminators.requires_grad_(False)
            verdicts, features = deceived(*halves(self.discriminators(torch.cat((true, made)))))
            self.discriminators.requires_grad_(True)
            mel = self.distance(made, true)
            own.zero_grad(set_to_none=True)
            (_MEL * mel + share * (2 * verdicts + _FEATURES * features)).backward()
        clip([self.vocoder], 10.0)
        own.step()
        return {"mel": mel, "doubt": doubt, "verdicts": verdicts, "features": features}


def train_b(sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float) -> None:
    """Stage B."""
    torch.manual_seed(1)
    pieces = Pieces(sound, batch, frames, speech_config().code2wav.look_ahead)
    trainer = VocoderTrainer(limits.out, sound, pieces, limits, rate)
    modules = {"code2wav": trainer.vocoder, "discriminators": trainer.discriminators}
    stage = Stage("codec_b", limits, modules, trainer.optimizers)
    steps = CapturedSteps(trainer.step, limits.captured)
    for progress in stage:
        share = torch.tensor(min(1.0, progress / 0.05)).to(limits.device)
        stage.report(steps(progress > 1 - ROUNDED_SHARE, pieces.draw().to(limits.device), share))


def speech_config() -> SpeechConfig:
    """The speaking half of the tiny config."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    return omni.speech


def codec_of(folder: Path, device: str, stage: str = "codec_a") -> tuple[Encoder, Quantiser, Code2Wav]:
    """The codec that a stage has saved, code2wav's table made of stage A's quantiser."""
    config = speech_config().code2wav
    hidden = config.transformer.hidden_size
    encoder, quantiser = Encoder(hidden), Quantiser(hidden, config.num_quantizers, config.codebook_size)
    vocoder = Code2Wav(config)
    load_weights(encoder, folder / "codec_a.encoder.safetensors")
    load_weights(quantiser, folder / "codec_a.quantiser.safetensors")
    load_weights(vocoder, folder / f"{stage}.code2wav.safetensors")
    if stage == "codec_a":
        vocoder.code_embedding.weight.data.copy_(quantiser.table())
    return encoder.to(device).eval(), quantiser.to(device).eval(), vocoder.to(device)


def codes_of(sound: SoundSet, folder: Path) -> Tensor:
    """Codes int16 ``[groups, frames]`` of all of a set, by the codec of stage A."""
    encoder, quantiser, _ = codec_of(folder, str(sound.sound.device))
    return encode_all(encoder, quantiser, sound.sound)


def main() -> None:
    """The command line."""
    parser = Limits.parser(__doc__)
    parser.add_argument("stage", choices=("a", "b"))
    parser.add_argument("--sound", type=Path, nargs="+", required=True, help="folders of sound sets at 24 kHz")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--frames", type=int, default=16, help="frames of each piece that is heard")
    parser.add_argument("--rate", type=float, help="first learning rate (A 5e-4, B 2e-4)")
    options = parser.parse_args()
    limits = Limits.of(options)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    sound = read_sets(options.sound).to(limits.device)
    print(f"{len(sound.clips)} clips, {len(sound.sound) / 24000 / 3600:.2f} h", flush=True)
    train, rate = (train_a, 5e-4) if options.stage == "a" else (train_b, 2e-4)
    train(sound, limits, options.batch, options.frames, options.rate or rate)


if __name__ == "__main__":
    main()
