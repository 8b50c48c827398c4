"""From the media of a conversation to the rows that stand for them in the prompt."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lluda.config.audio import AUDIO_LIMITS, MelConfig
from lluda.config.vision import VISION_LIMITS, VisionInputConfig
from lluda.engine.forked import require_own_threads
from lluda.engine.prompt_rows import PromptRows
from lluda.errors import ContextExceeded, CorruptFile, InvalidRequest
from lluda.inputs.media.audio_features import log_mel
from lluda.inputs.media.audio_file import open_audio
from lluda.inputs.media.image_file import open_image
from lluda.inputs.media.media_parts import MediaPart
from lluda.inputs.media.media_positions import AudioSpan, ImageSpan, Span, TextSpan, VideoSpan, media_positions
from lluda.inputs.media.media_prompt import Layout, MediaPrompt, expand_placeholders
from lluda.inputs.media.video_file import open_video
from lluda.inputs.media.vision_patches import (
    VisionPatches,
    frame_size,
    image_size,
    resized_image_patches,
    video_patches,
)
from lluda.models.audio_encoder import SoundBlock, sound_blocks
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.thinker import Thinker
from lluda.models.vision_encoder import VisionOutput
from lluda.weights.checkpoint import Source
from lluda.weights.media_settings import read_media_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INEXACT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class MediaBlock:
    """``rows`` of a medium that depend on nothing but what ``key`` is the digest of, and on their place."""

    rows: int
    key: bytes


@dataclass(frozen=True, slots=True, eq=False)
class PreparedMedia:
    """One medium before its encoder: its ``span`` in the prompt, log-mel ``features [frames, mels]`` of what is heard,
    ``patches`` of what is seen. ``key``: the digest of its content and of all that shaped the features; ``blocks`` as
    `EncodedMedia`."""

    key: bytes
    span: Span
    features: NDArray[np.float32] | None = field(default=None, repr=False)
    patches: VisionPatches | None = field(default=None, repr=False)
    blocks: Sequence[MediaBlock] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedMedia:
    """One medium as rows for the decoder: ``heard [tokens, hidden]`` and what was ``seen``. Media of one ``key`` are
    the same. It may stand in a message in the place of its file or array, as what was heard then; ``model`` stands for
    the model whose encoders made it, the only one that can take it. ``blocks``: of sound, its blocks of attention, in
    order, by which a longer recording is known to begin as a shorter one; none: all its rows are one."""

    key: bytes = field(repr=False)
    span: Span
    heard: Tensor | None = field(repr=False)
    seen: VisionOutput | None = field(repr=False)
    model: object = field(default=None, repr=False)
    blocks: Sequence[MediaBlock] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Room:
    """A context of ``context`` positions, of which a prompt takes ``taken`` so far."""

    context: int
    taken: int

    def require(self, tokens: int, *, whole: bool = False) -> None:
        """ContextExceeded: ``tokens`` more do not fit, and one for an answer. ``whole``: nothing more is to come."""
        if self.taken + tokens >= self.context:
            raise ContextExceeded(
                f"with its media the prompt has {'' if whole else 'at least '}{self.taken + tokens} tokens, but the "
                f"context holds {self.context}; shorten the media, take fewer frames (fps), or load with a larger "
                "max_context"
            )


class MediaReader:
    """Reads media as the checkpoint's settings say (`read_media_settings`; the released values where it has none), and
    runs the thinker's encoders over them."""

    def __init__(self, thinker: Thinker, model: Source) -> None:
        """``model``: the folder or .gguf file. UnsupportedModel, CorruptFile: its settings break a rule."""
        audio, image, video = (read_media_settings(model, medium) for medium in ("audio", "image", "video"))
        self._thinker, omni = thinker, thinker.omni
        self.model = object()  # not the model itself, which messages would keep in memory
        self._mel = MelConfig.from_hf(audio.raw, audio.where, omni.audio)
        self._image = VisionInputConfig.from_hf(image.raw, image.where, omni.vision)
        self._video = VisionInputConfig.for_video(video.raw, video.where, omni.vision)
        self.audio_limits, self.vision_limits = AUDIO_LIMITS, VISION_LIMITS
        """What is taken; a server takes less than one person."""
        self._layout = Layout(omni.tokens, omni.vision.spatial_merge_size, omni.position_id_per_seconds)

    def key(self, part: MediaPart, max_tokens: int) -> bytes:
        """The digest of a medium as it is now, with all that shapes what `prepare` makes of it. InvalidRequest: it was
        encoded by another model."""
        if isinstance(part.source, EncodedMedia):
            if part.source.model is not self.model:
                raise InvalidRequest(f"{part.where}: this {part.kind} was encoded by another model; give its file")
            return part.source.key
        settings = {
            "audio": (self._mel,),
            "image": (self._image,),
            "video": (self._video, self._mel, max_tokens),
        }
        return part.digest(repr(settings[part.kind]))

    def prepare(
        self, part: MediaPart, max_tokens: int, room: Room | None = None, key: bytes | None = None
    ) -> PreparedMedia:
        """Read and transform one medium; a video's frames are made small enough for it to take about ``max_tokens`` at
        most. ``key``: what `key` gave for it, if it was asked.

        Errors of the readers: InvalidRequest, LimitExceeded, CorruptFile. ContextExceeded: it does not fit ``room``,
        found as early as the file tells. CorruptFile: the file was written to meanwhile.
        """
        key, room = key or self.key(part, max_tokens), room or Room(sys.maxsize, 0)
        if part.kind == "audio":
            features = self._features(part, room)
            blocks = tuple(block for block, _ in self.sound_blocks(features))
            medium = PreparedMedia(key, AudioSpan(self._sound_tokens(len(features))), features, blocks=blocks)
        elif part.kind == "image":
            patches = self._picture(part, room)
            medium = PreparedMedia(key, ImageSpan(patches.grid), None, patches)
        else:
            medium = PreparedMedia(key, *self._video_parts(part, max_tokens, room))
        if part.is_file and self.key(part, max_tokens) != key:
            raise CorruptFile(part.source, "the file was written to while it was read; try again when it is complete")
        return medium

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
        return EncodedMedia(medium.key, medium.span, heard, seen, self.model, medium.blocks)

    def sound_blocks(self, features: NDArray[np.float32]) -> list[tuple[MediaBlock, SoundBlock]]:
        """The blocks of a recording of these features: as they are known, and as they are encoded."""
        config = self._thinker.omni.audio
        blocks = sound_blocks(torch.from_numpy(features), config)
        return [(MediaBlock(config.tokens(len(each.frames)), _block_key(each)), each) for each in blocks]

    @torch.inference_mode()
    def encode_block(self, block: SoundBlock) -> Tensor:
        """Run the audio encoder over one block: its rows ``[rows, hidden]``."""
        return self._thinker.audio_tower.encode_block(block)

    def heard(self, blocks: Sequence[MediaBlock], rows: Sequence[Tensor]) -> EncodedMedia:
        """The recording of these blocks, by the rows of each."""
        tower = self._thinker.audio_tower
        key = hashlib.sha256(b"".join(block.key for block in blocks)).digest()
        span = AudioSpan(sum(block.rows for block in blocks))
        return EncodedMedia(key, span, torch.cat([tower([]), *rows]), None, self.model, tuple(blocks))

    @property
    def mel(self) -> MelConfig:
        """How sound becomes features."""
        return self._mel

    @property
    def block_frames(self) -> int:
        """Frames of features in a full block."""
        return self._thinker.omni.audio.block_frames

    def prompt_rows(self, prompt: MediaPrompt, media: Sequence[EncodedMedia]) -> PromptRows:
        """The prompt with positions and the rows of its ``media``, in order."""
        positions = media_positions(
            prompt.spans, merge_size=self._layout.merge_size, positions_per_second=self._layout.positions_per_second
        )
        if not media:
            return PromptRows(prompt.ids)
        rows = torch.tensor(positions, dtype=torch.float32)
        spans = list(zip(prompt.spans, prompt.counts, strict=True))
        return PromptRows(prompt.ids, rows, self._injected(prompt.ids, media), spans, _block_keys(prompt, media))

    def _injected(self, ids: Sequence[int], media: Sequence[EncodedMedia]) -> MultimodalEmbeddings:
        """Rows are on the host, who places them: asking a GPU for them would wait for its encoders."""
        tokens, backend = self._layout.tokens, self._thinker.backend
        device, compute = backend.device, backend.precision.compute
        placed = torch.tensor(ids)
        heard_rows = (placed == tokens.audio_pad).nonzero()[:, 0]
        seen_rows = ((placed == tokens.image_pad) | (placed == tokens.video_pad)).nonzero()[:, 0]
        heard = [medium.heard for medium in media if medium.heard is not None]
        seen = [medium.seen for medium in media if medium.seen is not None]
        parts = (*heard, *(output.embeddings for output in seen))
        embeddings = torch.cat([part.to(device, compute) for part in parts])
        rows = torch.cat([heard_rows, seen_rows])
        if len(heard_rows) and len(seen_rows):
            rows, order = rows.sort()
            embeddings = embeddings[order.to(device)]
        return MultimodalEmbeddings(
            rows=rows,
            embeddings=embeddings,
            deepstack_rows=seen_rows,
            deepstack=[
                torch.cat(parts).to(device) for parts in zip(*(output.deepstack for output in seen), strict=True)
            ],
        )

    def count(self, span: Span) -> int:
        """Tokens that a medium takes in a prompt."""
        return self._layout.count(span)

    def _sound_tokens(self, frames: int) -> int:
        return self._thinker.omni.audio.tokens(frames)

    def _features(self, part: MediaPart, room: Room) -> NDArray[np.float32]:
        rate = self._mel.sampling_rate
        rate_given = part.options.get("sampling_rate")
        recording = open_audio(part.source, rate_given, where=part.where, limits=self.audio_limits)
        try:
            if recording.seconds is not None:
                # Packets say to a frame or so how long they are; what is decoded is counted.
                self._require_sound(int(max(recording.seconds - _INEXACT_SECONDS, 0) * rate), room)
            # Many small operations: waking several threads for each costs more than they save.
            with self._thinker.backend.single_threaded_torch():
                return log_mel(self._fitting(recording.blocks(rate), room), self._mel)
        finally:
            recording.close()

    def _require_sound(self, samples: int, room: Room) -> None:
        room.require(self._sound_tokens(self._mel.frames(samples)))

    def _fitting(self, blocks: Iterable[NDArray[np.float32]], room: Room) -> Iterator[NDArray[np.float32]]:
        samples = 0
        for block in blocks:
            samples += len(block)
            self._require_sound(samples, room)
            yield block

    def _picture(self, part: MediaPart, room: Room) -> VisionPatches:
        picture = open_image(part.source, where=part.where, limits=self.vision_limits)
        try:
            size = image_size(picture.height, picture.width, self._image, where=part.where)
            room.require(size[0] * size[1] // self._image.factor**2)
            return resized_image_patches(picture.pixels(size), self._image)
        finally:
            picture.close()

    def _video_parts(
        self, part: MediaPart, max_tokens: int, room: Room
    ) -> tuple[VideoSpan, NDArray[np.float32] | None, VisionPatches]:
        config, heard = self._video, bool(part.options.get("use_audio"))
        fps, limits = part.options.get("fps"), self.vision_limits
        video = open_video(part.source, fps, config=config, where=part.where, limits=limits)
        if heard and not video.has_sound:
            raise InvalidRequest(f"{part.where}: use_audio was asked for, but the video has no sound track")
        height, width = frame_size(
            video.height, video.width, video.count, config, max_tokens=max_tokens, where=part.where
        )
        slices = -(-video.count // config.temporal_patch_size)
        seen = slices * height * width // config.factor**2
        room.require(seen)
        features = self._features(part, Room(room.context, room.taken + seen)) if heard else None
        patches = video_patches(video.frames(), video.count, config, max_tokens=max_tokens, where=part.where)
        tokens = 0 if features is None else self._sound_tokens(len(features))
        return VideoSpan(patches.grid, config.temporal_patch_size / video.fps, tokens), features, patches


def read_media(
    reader: MediaReader,
    ids: Sequence[int],
    parts: Sequence[MediaPart],
    context: int,
    known: Mapping[bytes, EncodedMedia],
    compute: Callable[[Callable[[], EncodedMedia]], EncodedMedia] = lambda work: work(),
) -> tuple[PromptRows, list[EncodedMedia]]:
    """The prompt's rows, and each medium encoded, in order. Those of ``known``, by `MediaReader.key`, and those that
    were given encoded are not read again. ``compute`` runs the encoders: `Engine.call`, where others compute too.

    A part whose source is a Future of EncodedMedia (`Listener.finish`) is waited for.

    ContextExceeded: the prompt does not fit ``context`` positions; found before anything is encoded, and mostly before
    anything is decoded. Else as `MediaReader.prepare` and `expand`, and what a Future raises.
    """
    require_own_threads()
    parts = [replace(part, source=part.source.result()) if isinstance(part.source, Future) else part for part in parts]
    prepared: list[PreparedMedia | EncodedMedia] = []
    found: dict[bytes, PreparedMedia | EncodedMedia] = {
        **known,
        **{part.source.key: part.source for part in parts if isinstance(part.source, EncodedMedia)},
    }
    taken = len(ids) - len(parts)
    for part in parts:
        key = reader.key(part, context)
        medium = found.get(key) or reader.prepare(part, context, Room(context, taken), key)
        found[key] = medium
        taken += reader.count(medium.span)
        prepared.append(medium)
    prompt = reader.expand(ids, prepared)
    Room(context, len(prompt.ids)).require(0, whole=True)
    encoded: dict[bytes, EncodedMedia] = {}
    for each in prepared:
        if each.key not in encoded:
            encoded[each.key] = each if isinstance(each, EncodedMedia) else compute(partial(reader.encode, each))
    media = [encoded[each.key] for each in prepared]
    return reader.prompt_rows(prompt, media), media


def _block_keys(prompt: MediaPrompt, media: Sequence[EncodedMedia]) -> dict[int, bytes]:
    keys, row, waiting = {}, 0, iter(media)
    for span, count in zip(prompt.spans, prompt.counts, strict=True):
        end = row + count
        if not isinstance(span, TextSpan):
            medium = next(waiting)
            for block in medium.blocks or [MediaBlock(count, medium.key)] * (count > 0):
                keys[row] = block.key
                row += block.rows
            assert row == end, f"blocks of {span} do not make up its rows"
        row = end
    return keys


def _block_key(block: SoundBlock) -> bytes:
    return hashlib.sha256(bytes([block.alone]) + block.frames.numpy().tobytes()).digest()
