"""From the media of a conversation to the rows that stand for them in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lluda.config_audio import MelConfig
from lluda.config_vision import VisionInputConfig
from lluda.engine.prompt_rows import PromptRows
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.inputs.audio_features import log_mel
from lluda.inputs.audio_file import audio_blocks
from lluda.inputs.image_file import read_image
from lluda.inputs.media_parts import MediaPart
from lluda.inputs.media_positions import AudioSpan, ImageSpan, Span, VideoSpan, media_positions
from lluda.inputs.media_prompt import Layout, MediaPrompt, expand_placeholders
from lluda.inputs.video_file import open_video
from lluda.inputs.vision_patches import VisionPatches, image_patches, video_patches
from lluda.models.decoder import InjectedRows
from lluda.models.thinker import Thinker
from lluda.models.vision_encoder import VisionOutput
from lluda.weights.checkpoint import PREPROCESSOR_CONFIG_NAME, read_preprocessor_config

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PreparedMedia:
    """One medium before its encoder: its ``span`` in the prompt, log-mel ``features [frames, mels]`` of what is heard,
    ``patches`` of what is seen."""

    span: Span
    features: NDArray[np.float32] | None = None
    patches: VisionPatches | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedMedia:
    """One medium as rows for the decoder: ``heard [tokens, hidden]`` and what was ``seen``."""

    span: Span
    heard: Tensor | None
    seen: VisionOutput | None


class MediaReader:
    """Reads media as the checkpoint's preprocessor_config.json says (the released values where it has none), and runs
    the thinker's encoders over them."""

    def __init__(self, thinker: Thinker, model: Path) -> None:
        """``model``: the folder or .gguf file. UnsupportedModel, CorruptFile: its preprocessor_config.json breaks a
        rule."""
        raw, path = read_preprocessor_config(model), model / PREPROCESSOR_CONFIG_NAME
        self._mel = MelConfig.from_hf(raw, str(path))
        self._vision = VisionInputConfig.from_hf(raw, str(path))
        self._thinker = thinker
        omni = thinker.omni
        self._layout = Layout(omni.tokens, omni.vision.spatial_merge_size, omni.position_id_per_seconds)

    def prepare(self, part: MediaPart, max_tokens: int) -> PreparedMedia:
        """Read and transform one medium; a video's frames are made small enough for it to take about ``max_tokens`` at
        most. Errors of the readers: InvalidRequest, LimitExceeded, CorruptFile."""
        if part.kind == "audio":
            features = self._features(part)
            return PreparedMedia(AudioSpan(self._thinker.omni.audio.tokens(len(features))), features)
        if part.kind == "image":
            patches = image_patches(read_image(part.source, where=part.where), self._vision, where=part.where)
            return PreparedMedia(ImageSpan(patches.grid), None, patches)
        return self._prepare_video(part, max_tokens)

    def expand(self, ids: Sequence[int], media: Sequence[PreparedMedia | EncodedMedia]) -> MediaPrompt:
        """The template's ids with its placeholders expanded. TemplateError as `expand_placeholders`."""
        return expand_placeholders(ids, [medium.span for medium in media], self._layout)

    def encode(self, medium: PreparedMedia) -> EncodedMedia:
        """Run the encoders over one medium."""
        heard = seen = None
        with torch.inference_mode():
            if medium.features is not None:
                heard = self._thinker.audio_tower([torch.tensor(medium.features)])
            if medium.patches is not None:
                seen = self._thinker.visual(medium.patches.values, [medium.patches.grid])
        return EncodedMedia(medium.span, heard, seen)

    def prompt_rows(self, prompt: MediaPrompt, media: Sequence[EncodedMedia]) -> PromptRows:
        """The prompt with positions and the rows of its ``media``, in order."""
        positions = media_positions(
            prompt.spans, merge_size=self._layout.merge_size, positions_per_second=self._layout.positions_per_second
        )
        if not media:
            return PromptRows(prompt.ids)
        rows = torch.tensor(positions.rows, dtype=torch.float32)
        spans = list(zip(prompt.spans, prompt.counts, strict=True))
        return PromptRows(prompt.ids, rows, self._injected(prompt.ids, media), spans)

    def _injected(self, ids: Sequence[int], media: Sequence[EncodedMedia]) -> InjectedRows:
        tokens, device = self._layout.tokens, self._thinker.backend.device
        placed = torch.tensor(ids, device=device)
        is_heard = placed == tokens.audio_pad
        is_seen = (placed == tokens.image_pad) | (placed == tokens.video_pad)
        width = self._thinker.config.hidden_size
        heard = [medium.heard for medium in media if medium.heard is not None]
        seen = [medium.seen for medium in media if medium.seen is not None]
        embeddings = torch.empty(len(ids), width, dtype=self._thinker.backend.precision.compute, device=device)
        if heard:
            embeddings[is_heard] = torch.cat(heard).to(device)
        if seen:
            embeddings[is_seen] = torch.cat([output.embeddings for output in seen]).to(device)
        injected = is_heard | is_seen
        return InjectedRows(
            rows=injected.nonzero()[:, 0],
            embeddings=embeddings[injected],
            deepstack_rows=is_seen.nonzero()[:, 0],
            deepstack=[
                torch.cat(parts).to(device) for parts in zip(*(output.deepstack for output in seen), strict=True)
            ],
        )

    def _features(self, part: MediaPart) -> NDArray[np.float32]:
        blocks = audio_blocks(
            part.source, part.options.get("sampling_rate"), rate=self._mel.sampling_rate, where=part.where
        )
        return log_mel(blocks, self._mel)

    def _prepare_video(self, part: MediaPart, max_tokens: int) -> PreparedMedia:
        video = open_video(part.source, part.options.get("fps"), config=self._vision, where=part.where)
        patches = video_patches(video.frames(), video.count, self._vision, max_tokens=max_tokens, where=part.where)
        features, tokens = None, 0
        if part.options.get("use_audio"):
            if not video.has_sound:
                raise InvalidRequest(f"{part.where}: use_audio was asked for, but the video has no sound track")
            features = self._features(part)
            tokens = self._thinker.omni.audio.tokens(len(features))
        span = VideoSpan(patches.grid, self._vision.temporal_patch_size / video.fps, tokens)
        return PreparedMedia(span, features, patches)


def read_media(
    reader: MediaReader,
    ids: Sequence[int],
    parts: Sequence[MediaPart],
    context: int,
    known: Mapping[object, EncodedMedia],
) -> tuple[PromptRows, dict[object, EncodedMedia]]:
    """The prompt's rows, and each medium encoded, by `MediaPart.key`; those of ``known`` are not read again.

    LimitExceeded: the prompt does not fit ``context`` positions; found before anything is encoded. Else as
    `MediaReader.prepare` and `expand`.
    """
    prepared = [known.get(part.key) or reader.prepare(part, context) for part in parts]
    prompt = reader.expand(ids, prepared)
    if len(prompt.ids) >= context:
        raise LimitExceeded(
            f"with its media the prompt has {len(prompt.ids)} tokens, but the context holds {context}; shorten the "
            "media, take fewer frames (fps), or load with a larger max_context"
        )
    media = [medium if isinstance(medium, EncodedMedia) else reader.encode(medium) for medium in prepared]
    return reader.prompt_rows(prompt, media), {part.key: medium for part, medium in zip(parts, media, strict=True)}
