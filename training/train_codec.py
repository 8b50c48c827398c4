"""The codec in two stages. A: encoder, quantiser and code2wav together. B: code2wav alone as a vocoder of fixed codes,
against discriminators.

``python -m training.train_codec a --sound FOLDER --out FOLDER --seconds 480``, then ``b`` with the same folders.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lluda.config.code2wav import Code2WavConfig
from training.captured import CapturedSteps, Values
from training.code_set import CodeSet
from training.codec import Encoder, PhonemeHead, Quantiser
from training.discriminators import Discriminators, deceived, halves, hinge
from training.optimizer import adamw, clip
from training.phoneme_listener import PhonemeListener
from training.sound_set import FRAME, PLACE, PLACES, SoundSet, read_sets
from training.spectrum import MelDistance
from training.stage import ROUNDED_SHARE, Limits, Stage, autocast, load_weights, rounded
from training.stored_codec import codec_of, codes_of, speech_config
from training.twin.code2wav import Code2Wav

SEGMENT = 64
"""Frames that encoder and transformer see of each example."""

UNHEARD = 2
"""First frames of a piece from the middle of a segment that no loss is taken of: the convolutions begin with zeros."""

PLACE_EVERY = 200
_MEL, _PHONEMES, _LISTENER, _FEATURES = 15.0, 1.0, 2.0, 20.0


class Pieces:
    """Draws segments of a set, each beginning at a clip, and pieces of ``frames`` frames of them."""

    def __init__(self, sound: SoundSet, batch: int, frames: int, looked_ahead: int) -> None:
        self.sound, self.batch, self.frames, self.ahead = sound.sound, batch, frames, looked_ahead
        device = sound.sound.device
        total = len(sound.sound) // FRAME
        fitting = [clip for clip in sound.trained if clip.first + SEGMENT <= total]
        self.first = torch.tensor([clip.first for clip in fitting], device=device)
        self.lengths = torch.tensor([clip.frames for clip in fitting], device=device)
        self.phonemes, self.symbols = sound.phonemes, sound.symbols

    def draw(self) -> Tensor:
        """The clips that segments begin with, ``[batch]`` on the host."""
        return torch.randint(len(self.first), (self.batch,))

    def begin(self, chosen: Tensor) -> Tensor:
        """The first frames of pieces of segments, ``[batch]``: in the segment's first clip, a tenth of them at its
        beginning."""
        share = (torch.rand(self.batch, device=chosen.device) * 1.1 - 0.1).clamp(min=0)
        return (share * self.lengths[chosen].clamp(max=SEGMENT - self.frames)).long()

    def segments(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``[batch, SEGMENT * FRAME]`` float32, which begin up to a frame late, and the phonemes spoken in
        them, int8 ``[batch, SEGMENT * PLACES]``."""
        late = torch.randint(FRAME, chosen.shape, device=chosen.device)
        begin = (self.first[chosen] * FRAME + late).clamp(max=len(self.sound) - SEGMENT * FRAME)
        places = torch.arange(SEGMENT * PLACES, device=begin.device)
        spoken = self.phonemes[((begin + PLACE // 2) // PLACE)[:, None] + places]
        return self._samples(begin, SEGMENT * FRAME), spoken

    def true(self, chosen: Tensor, piece: Tensor) -> Tensor:
        """Samples of the pieces of exact segments, as many as code2wav makes of their frames."""
        return self._samples((self.first[chosen] + piece) * FRAME, self.frames * FRAME - self.ahead)

    def spoken(self, chosen: Tensor, piece: Tensor) -> Tensor:
        """The phonemes of the pieces of exact segments, int8 ``[batch, frames * PLACES]``."""
        begin = (self.first[chosen] + piece)[:, None] * PLACES
        return self.phonemes[begin + torch.arange(self.frames * PLACES, device=begin.device)]

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
    """Stage A: encoder, quantiser and code2wav on log-mel distance and commitment; on the phonemes of the first
    codebook's rows, so that these codes follow from the text, and of all; and on the phonemes heard in what is made."""

    def __init__(self, config: Code2WavConfig, pieces: Pieces, limits: Limits, rate: float) -> None:
        self.config, self.pieces, self.device = config, pieces, limits.device
        hidden = config.transformer.hidden_size
        self.encoder = Encoder(hidden)
        self.quantiser = Quantiser(hidden, config.num_quantizers, config.codebook_size)
        self.vocoder = Code2Wav(config)
        self.heads = nn.ModuleList(PhonemeHead(hidden, len(pieces.symbols)) for _ in range(2))
        self.listener = PhonemeListener(len(pieces.symbols))
        quieten(self.vocoder)
        named = (self.encoder, self.quantiser, self.vocoder, self.heads, self.listener)
        self.modules = dict(zip(("encoder", "quantiser", "code2wav", "phonemes", "listener"), named, strict=True))
        for module in named:
            module.to(self.device).train()
        self.optimizer = adamw(named, rate, (0.8, 0.99), 0.01)
        self.distance = MelDistance().to(self.device)
        self.frames, self.waveform = limits.compile(self.vocoder.frames), limits.compile(self.vocoder.waveform)

    def step(self, is_rounded: bool, chosen: Tensor) -> Values:
        """One step on the segments ``chosen``."""
        pieces, device = self.pieces, self.device
        piece = pieces.begin(chosen)
        segment, spoken = pieces.segments(chosen)
        samples = torch.arange(pieces.frames * FRAME - pieces.ahead, device=device)
        true = segment.gather(1, piece[:, None] * FRAME + samples)
        with rounded([self.vocoder], is_rounded), autocast(device):
            total, first, commitment = self.quantised(self.encoder(segment))
            made = pieces.heard(self.waveform(pieces.cut(self.frames(total), piece)), true, piece)
            values = {"mel": self.distance(made, true), "commitment": commitment}
            for name, head, rows in zip(("first", "all"), self.heads, (first, total), strict=True):
                values[f"phonemes_{name}"] = phoneme_loss(head(rows), spoken)
            places = piece[:, None] * PLACES + torch.arange(pieces.frames * PLACES, device=device)
            own, other = self.listener.losses(true, made, spoken.gather(1, places))
            values |= {"listener": own, "heard": other}
            loss = _MEL * values["mel"] + commitment + own + _LISTENER * other
            loss = loss + _PHONEMES * (values["phonemes_first"] + values["phonemes_all"])
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


def train_a(sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float, begin: Path | None) -> None:
    """Stage A, from the weights of another run in the folder ``begin``."""
    config = speech_config().code2wav
    torch.manual_seed(0)
    pieces = Pieces(sound, batch, frames, config.look_ahead)
    trainer = CodecTrainer(config, pieces, limits, rate)
    for name in ("encoder", "quantiser", "code2wav") if begin else ():
        load_weights(trainer.modules[name], begin / f"codec_a.{name}.safetensors")
    stage = Stage("codec_a", limits, trainer.modules, [trainer.optimizer])
    steps = CapturedSteps(trainer.step, limits.captured)
    for progress in stage:
        chosen = pieces.draw().to(limits.device)
        is_rounded = progress > 1 - ROUNDED_SHARE
        if stage.step % PLACE_EVERY == 0 and progress < 0.7:
            with torch.no_grad(), autocast(limits.device):
                latent = trainer.encoder(pieces.segments(chosen)[0])
            trainer.quantiser.place(latent, math.inf if stage.step == 0 and not begin else 1.0)
        stage.report(steps(is_rounded, chosen))


def phoneme_loss(logits: Tensor, spoken: Tensor) -> Tensor:
    """Cross entropy of ``logits [batch, places, phonemes]`` where the phoneme is known."""
    return F.cross_entropy(logits.flatten(0, 1).float(), spoken.flatten().long(), ignore_index=-1)


def perplexity(counts: Tensor) -> Tensor:
    """How many codes a codebook uses: e to the entropy of how often each is chosen."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


class VocoderTrainer:
    """Stage B: code2wav, its table free, on the fixed codes of all clips; from some point on against discriminators.
    Half of the segments are of the codes that the talker expects, if there are any: it must hear them as speech too."""

    def __init__(
        self, folder: Path, sound: SoundSet, pieces: Pieces, limits: Limits, rate: float, expected: Path | None
    ) -> None:
        self.pieces, self.device = pieces, limits.device
        begun = "codec_b" if (folder / "codec_b.code2wav.safetensors").exists() else "codec_a"
        self.vocoder = codec_of(folder, self.device, begun)[2].train()
        self.discriminators = Discriminators().to(self.device)
        self.listener = PhonemeListener(len(pieces.symbols)).to(self.device)
        if (folder / "codec_a.listener.safetensors").exists():
            load_weights(self.listener, folder / "codec_a.listener.safetensors")
        codes = [codes_of(sound, folder)]
        if expected is not None:
            codes.append(codes_expected(expected, sound))
        self.codes = torch.stack([one.long() for one in codes])
        named = ((self.vocoder, self.listener), (self.discriminators,))
        self.optimizers = [adamw(modules, rate, (0.8, 0.99), 0.01) for modules in named]
        self.distance = MelDistance().to(self.device)
        self.frames, self.waveform = limits.compile(self.vocoder.frames), limits.compile(self.vocoder.waveform)

    def step(self, kind: tuple[bool, bool], chosen: Tensor, share: Tensor) -> Values:
        """One step on the segments ``chosen``. ``kind``: whether weights are rounded, and whether the discriminators
        take part; ``share``: of their part of the loss, which comes in slowly since they begin knowing nothing."""
        pieces = self.pieces
        piece = pieces.begin(chosen)
        true, spoken = pieces.true(chosen, piece), pieces.spoken(chosen, piece)
        index = pieces.first[chosen, None] + torch.arange(SEGMENT, device=self.device)
        with rounded([self.vocoder], kind[0]), autocast(self.device):
            which = torch.randint(len(self.codes), (len(index), 1), device=self.device)
            rows = self.frames(self.vocoder.latents(self.codes[which, :, index].transpose(1, 2)))
            made = pieces.heard(self.waveform(pieces.cut(rows, piece)), true, piece)
            listener, heard = self.listener.losses(true, made, spoken)
            values = {"mel": self.distance(made, true), "listener": listener, "heard": heard}
            loss = _MEL * values["mel"] + listener + _LISTENER * heard
            if kind[1]:
                values |= self.contest(true, made)
                loss = loss + share * (2 * values["verdicts"] + _FEATURES * values["features"])
            self.optimizers[0].zero_grad(set_to_none=True)
            loss.backward()
        clip([self.vocoder], 10.0)
        self.optimizers[0].step()
        return values

    def contest(self, true: Tensor, made: Tensor) -> Values:
        """A step of the discriminators, then what they say of ``made``."""
        against = self.optimizers[1]
        doubt = hinge(*halves(self.discriminators(torch.cat((true, made.detach())))))
        against.zero_grad(set_to_none=True)
        doubt.backward()
        clip([self.discriminators], 10.0)
        against.step()
        self.discriminators.requires_grad_(False)
        verdicts, features = deceived(*halves(self.discriminators(torch.cat((true, made)))))
        self.discriminators.requires_grad_(True)
        return {"doubt": doubt, "verdicts": verdicts, "features": features}


def train_b(
    sound: SoundSet, limits: Limits, batch: int, frames: int, rate: float, contested: float, expected: Path | None
) -> None:
    """Stage B; ``contested``: how far the stage is when the discriminators come in; ``expected``: folder of
    training.expected_codes."""
    torch.manual_seed(1)
    pieces = Pieces(sound, batch, frames, speech_config().code2wav.look_ahead)
    trainer = VocoderTrainer(limits.out, sound, pieces, limits, rate, expected)
    modules = {"code2wav": trainer.vocoder, "listener": trainer.listener, "discriminators": trainer.discriminators}
    stage = Stage("codec_b", limits, modules, trainer.optimizers)
    steps = CapturedSteps(trainer.step, limits.captured)
    for progress in stage:
        share = torch.tensor(max(0.0, min(1.0, (progress - contested) / 0.05))).to(limits.device)
        kind = progress > 1 - ROUNDED_SHARE, progress >= contested
        stage.report(steps(kind, pieces.draw().to(limits.device), share))


def codes_expected(folder: Path, sound: SoundSet) -> Tensor:
    """Codes ``[groups, frames]`` of the same clips by training.expected_codes. ValueError: they are of other clips."""
    found = CodeSet.load(folder)
    if [(one.text, one.first) for one in found.clips] != [(one.text, one.first) for one in sound.clips]:
        raise ValueError(f"{folder} has the codes of other clips: give it the same sets in the same order")
    return found.codes.to(sound.sound.device)


def main() -> None:
    """The command line."""
    parser = Limits.parser(__doc__)
    parser.add_argument("stage", choices=("a", "b"))
    parser.add_argument("--sound", type=Path, nargs="+", required=True, help="folders of sound sets at 24 kHz")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16, help="frames of each piece that is heard")
    parser.add_argument("--rate", type=float, help="first learning rate (A 5e-4, B 3e-4)")
    parser.add_argument("--begin", type=Path, help="A: folder of a run of stage A, whose weights to begin with")
    parser.add_argument("--contested", type=float, default=1.0, help="B: share after which discriminators come in")
    parser.add_argument("--expected", type=Path, help="B: folder of training.expected_codes of the same sets")
    options = parser.parse_args()
    limits = Limits.of(options)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    sound = read_sets(options.sound).to(limits.device)
    print(f"{len(sound.clips)} clips, {len(sound.sound) / 24000 / 3600:.2f} h", flush=True)
    if options.stage == "a":
        train_a(sound, limits, options.batch, options.frames, options.rate or 5e-4, options.begin)
    else:
        train_b(sound, limits, options.batch, options.frames, options.rate or 3e-4, options.contested, options.expected)


if __name__ == "__main__":
    main()
