"""What a picture and a recording take while the encoders run, and what is kept of them for the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lluda.config.audio import AudioEncoderConfig, MelConfig
from lluda.config.omni import OmniConfig
from lluda.config.vision import VisionEncoderConfig, VisionInputConfig
from lluda.engine.loading.memory_plan import PlanRow
from lluda.errors import InvalidRequest
from lluda.inputs.media.vision_patches import image_size
from lluda.models.audio_encoder import BLOCKS_AT_ONCE, CHUNKS_AT_ONCE
from lluda.models.components import BY_NAME

_SPECTRUM_VALUES = 3
"""Of float32 for each sample: the recording, and the spectrum of a piece of it with its power."""


@dataclass(frozen=True, slots=True)
class MediaLoad:
    """The media of one prompt: a picture of ``image`` (height, width) pixels, ``audio`` seconds of sound.

    InvalidRequest: neither, or a number that is not above 0.
    """

    image: tuple[int, int] | None = None
    audio: float | None = None

    def __post_init__(self) -> None:
        if self.image is None and self.audio is None:
            raise InvalidRequest("there is no medium to plan for; give a picture's size, or seconds of sound")
        if self.image is not None and min(self.image) < 1:
            raise InvalidRequest(f"a picture needs sides of at least 1 pixel, not {self.image[1]}x{self.image[0]}")
        if self.audio is not None and not 0 < self.audio < float("inf"):
            raise InvalidRequest(f"seconds of sound must be above 0, not {self.audio}")


def plan_media(
    omni: OmniConfig,
    load: MediaLoad,
    settings: tuple[VisionInputConfig, MelConfig],
    itemsize: int,
    device_of: Callable[[str], str],
) -> Sequence[PlanRow]:
    """What ``load`` takes beside weights. ``itemsize``: bytes of a number of the prompt's rows; ``device_of`` a
    tensor's name.

    Media are encoded one after another, and what one took is free for the next: on each device only the largest counts.
    The rows that stand for media in the prompt are kept of all.
    """
    image, mel = settings
    working: list[PlanRow] = []
    kept = 0
    if load.image is not None:
        height, width = image_size(*load.image, image)
        patches = height * width // image.patch_size**2
        nbytes = patches * _patch_bytes(omni.vision)
        device = device_of(BY_NAME["vision_encoder"].prefix)
        working.append(PlanRow(f"encoding a picture, {patches} patches", 0, nbytes, device))
        outputs = 1 + len(omni.vision.deepstack_visual_indexes)
        kept += patches // omni.vision.merged_patches * omni.vision.out_hidden_size * outputs * itemsize
    if load.audio is not None:
        frames = mel.frames(int(load.audio * mel.sampling_rate))
        samples = frames * mel.hop_length * 4 * _SPECTRUM_VALUES
        nbytes = samples + _audio_bytes(omni.audio, frames)
        device = device_of(BY_NAME["audio_encoder"].prefix)
        working.append(PlanRow(f"encoding {load.audio:g} s of sound", 0, nbytes, device))
        kept += omni.audio.tokens(frames) * omni.audio.output_dim * itemsize
    largest = {row.device: row for row in sorted(working, key=lambda row: row.nbytes)}
    return [*largest.values(), PlanRow("rows of media", 0, kept, device_of(BY_NAME["thinker"].prefix))]


def _patch_bytes(config: VisionEncoderConfig) -> int:
    """Of one patch, in float32: its pixels, the residual before and after a block, and the feed-forward's rows, once
    more in BF16 for the product."""
    return 4 * config.patch_values + 2 * 4 * config.hidden_size + (4 + 2) * config.intermediate_size


def _audio_bytes(config: AudioEncoderConfig, frames: int) -> int:
    """Features and, of the blocks encoded together, the residual before and after a layer and the feed-forward's rows;
    beside them the first convolution's output of the chunks convolved together, and its activation."""
    rows = min(config.tokens(frames), BLOCKS_AT_ONCE * config.block_tokens)
    layers = rows * (2 * 4 * config.d_model + (4 + 2) * config.encoder_ffn_dim)
    chunks = min(CHUNKS_AT_ONCE, -(-frames // config.chunk_frames))
    convolved = config.downsample_hidden_size * (config.num_mel_bins // 2) * (config.chunk_frames // 2)
    return frames * config.num_mel_bins * 4 + layers + 2 * 4 * chunks * convolved
