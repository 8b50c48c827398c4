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
from torch.nn import functional as F

from training.codec import Encoder, PhonemeHead, Quantiser, encode_all
from training.config import read_config
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
        """Of each segment the phonemes (from 1) of the clips that end in it; and, on the host, how many, and in how
        many frames."""
        ids = {symbol: 1 + index for index, symbol in enumerate(self.symbols)}
        rows, frames = [], []
        for index in range(count):
            row, end, begin = [], 0, clips[index].first
            for one in clips[index : index + 16]:
                # One clip's frames less: a segment may begin up to a frame late.
                if one.first + one.frames - begin >= SEGMENT or one.first < begin + end:
                    break
                row += [ids[symbol] for symbol in one.phonemes]
                end = one.first + one.frames - begin
            rows.append(row)
            frames.append(end)
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.zeros(count, max(1, *map(len, rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return padded.to(self.sound.device), lengths, torch.tensor(frames)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """The clips that segments begin with, on the host and on the device, and the first frames of the pieces in
        them, each ``[batch]``. A piece begins in its segment's first clip, a tenth of them at its beginning."""
        device = self.sound.device
        drawn = torch.randint(len(self.first), (self.batch,))
        chosen = drawn.to(device, non_blocking=True)
        share = (torch.rand(self.batch, device=device) * 1.1 - 0.1).clamp(min=0)
        room = (SEGMENT - self.frames) * torch.ones_like(chosen)
        return drawn, chosen, (share * torch.minimum(self.lengths[chosen], room)).long()

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


def train_a(sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float) -> None:
    """Encoder, quantiser, code2wav and phoneme head, on log-mel distance, commitment and phonemes."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    config, device = omni.speech.code2wav, limits.device
    torch.manual_seed(0)
    hidden = config.transformer.hidden_size
    pieces = Pieces(sound, batch, frames, config.look_ahead)
    encoder, quantiser = Encoder(hidden), Quantiser(hidden, config.num_quantizers, config.codebook_size)
    vocoder, head = Code2Wav(config), PhonemeHead(hidden, max(1, len(pieces.symbols)))
    quieten(vocoder)
    modules = {"encoder": encoder, "quantiser": quantiser, "code2wav": vocoder, "phonemes": head}
    for module in modules.values():
        module.to(device).train()
    optimizer = adamw(list(modules.values()), rate, (0.8, 0.99), 0.01)
    distance = MelDistance().to(device)
    stage = Stage("codec_a", limits, modules, [optimizer])
    compiled = limits.compile
    frames_of, waveform = compiled(vocoder.frames), compiled(vocoder.waveform)
    far = distance
    for progress in stage:
        drawn, chosen, piece = pieces.draw()
        segment = pieces.segments(chosen)
        begin = piece[:, None] * FRAME + torch.arange(frames * FRAME - config.look_ahead, device=device)
        true = segment.gather(1, begin)
        with rounded([vocoder], progress > 1 - ROUNDED_SHARE), autocast(device):
            latent = encoder(segment)
            if stage.step % PLACE_EVERY == 0 and progress < 0.7:
                quantiser.place(latent.detach(), math.inf if stage.step == 0 else 1.0)
            used = torch.randint(2, config.num_quantizers + 1, (batch,), device=device)
            used = torch.where(torch.rand(batch, device=device) < 0.25, used, config.num_quantizers)
            with torch.autocast(device.split(":")[0], enabled=False):
                total, first, _, commitment = quantiser(latent, used)
            made = pieces.heard(waveform(pieces.cut(frames_of(total), piece)), true, piece)
            mel = far(made, true)
            spoken = head(first).float().log_softmax(-1).transpose(0, 1)
            phonemes = F.ctc_loss(
                spoken,
                pieces.targets[chosen],
                (4 * pieces.whole[drawn]).clamp(min=1),
                pieces.target_lengths[drawn],
                zero_infinity=True,
            )
            loss = _MEL * mel + commitment + _PHONEMES * phonemes
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        clip(list(modules.values()), 1.0)
        optimizer.step()
        used = {f"perplexity_{group}": perplexity(quantiser.counts[group]) for group in (0, config.num_quantizers - 1)}
        stage.report(mel=mel, commitment=commitment, phonemes=phonemes, **used)


def perplexity(counts: Tensor) -> Tensor:
    """How many codes a codebook uses: e to the entropy of how often each is chosen."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def train_b(sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float) -> None:
    """Code2wav from stage A, its table free, on the fixed codes of all clips, with discriminators."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    config, device = omni.speech.code2wav, limits.device
    torch.manual_seed(1)
    pieces = Pieces(sound, batch, frames, config.look_ahead)
    vocoder, discriminators = codec_of(limits.out, device)[2].train(), Discriminators().to(device).train()
    codes = codes_of(sound, limits.out).to(device).long()
    optimizer = adamw([vocoder], rate, (0.8, 0.99), 0.01)
    against = adamw([discriminators], rate, (0.8, 0.99), 0.01)
    stage = Stage("codec_b", limits, {"code2wav": vocoder, "discriminators": discriminators}, [optimizer, against])
    compiled = limits.compile
    frames_of, waveform = compiled(vocoder.frames), compiled(vocoder.waveform)
    judge, far = discriminators, MelDistance().to(device)
    for progress in stage:
        _, chosen, piece = pieces.draw()
        true = pieces.true(chosen, piece)
        index = pieces.first[chosen, None] + torch.arange(SEGMENT, device=device)
        with rounded([vocoder], progress > 1 - ROUNDED_SHARE), autocast(device):
            rows = frames_of(vocoder.latents(codes[:, index].transpose(0, 1)))
            made = pieces.heard(waveform(pieces.cut(rows, piece)), true, piece)
            judged = halves(judge(torch.cat((true, made.detach()))))
            doubt = hinge(*judged)
            against.zero_grad(set_to_none=True)
            doubt.backward()
            clip([discriminators], 10.0)
            against.step()
            discriminators.requires_grad_(False)
            verdicts, features = deceived(*halves(judge(torch.cat((true, made)))))
            discriminators.requires_grad_(True)
            mel = far(made, true)
            # The adversary's part comes in slowly: it begins knowing nothing.
            share = min(1.0, progress / 0.05)
            loss = _MEL * mel + share * (2 * verdicts + _FEATURES * features)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        clip([vocoder], 10.0)
        optimizer.step()
        stage.report(mel=mel, doubt=doubt, verdicts=verdicts, features=features)


def codec_of(folder: Path, device: str, stage: str = "codec_a") -> tuple[Encoder, Quantiser, Code2Wav]:
    """The codec that a stage has saved, code2wav's table made of stage A's quantiser."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    config = omni.speech.code2wav
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
