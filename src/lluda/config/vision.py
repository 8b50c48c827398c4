"""Configuration of the vision encoder and of its patches, and the limits of images and videos.

The encoder's numbers come from ``thinker_config.vision_config`` of a ``config.json``, those of the patches from the
processor's files beside it (spec section 4; `lluda.weights.media_settings`); both are read strictly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lluda.config.reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

# Nothing here is tied; image_size and tokens_per_second are read by no released implementation of this encoder.
_UNUSED_VISION_KEYS = ("image_size", "tie_word_embeddings", "tokens_per_second")

# Names that transformers takes for the same numbers, and two that the released file repeats.
_OTHER_NAMES = {
    "depth": "num_hidden_layers",
    "in_channels": "in_chans",
    "num_heads": "num_attention_heads",
    "patch_size": "spatial_patch_size",
}

_THETA = 10000.0

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class VisionEncoderConfig:
    """The vision encoder (spec section 4.2).

    A patch is ``temporal_patch_size`` frames of ``patch_size`` x ``patch_size`` pixels; ``spatial_merge_size`` squared
    patches become one token as wide as ``out_hidden_size``, the decoder's rows. ``num_position_embeddings``: rows of
    the learned, square table of positions. After the layers ``deepstack_visual_indexes`` (0-based, ascending) the rows
    also go to a merger of their own.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head (72)."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Numbers of one patch: channels x frames x rows x columns (1536)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_patches(self) -> int:
        """Patches that become one token (4)."""
        return self.spatial_merge_size**2

    @property
    def table_side(self) -> int:
        """Side of the square table of positions (48)."""
        return math.isqrt(self.num_position_embeddings)


def read_vision_encoder(reader: ConfigReader) -> VisionEncoderConfig:
    """The vision encoder of a ``vision_config`` section, every key of which must be known.

    Raises:
        UnsupportedModel: an activation, kind of position or key that is not implemented.
        CorruptFile: a value outside its rule.
    """
    reader.choice("hidden_act", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh", unsupported=True)
    if not reader.boolean("apply_vit_abs_pos_embed", default=True):
        raise UnsupportedModel(f"{reader.path}: apply_vit_abs_pos_embed false is not supported; supported: true")
    for name, other in _OTHER_NAMES.items():
        reader.one_name(name, other)
    depth = reader.integer("depth", 1, 4096)
    config = VisionEncoderConfig(
        depth=depth,
        hidden_size=reader.integer("hidden_size", 4, 1 << 20),
        intermediate_size=reader.integer("intermediate_size", 1, 1 << 22),
        num_heads=reader.integer("num_heads", 1, 4096),
        in_channels=reader.integer("in_channels", 3, 3, default=3),
        patch_size=reader.integer("patch_size", 1, 1024),
        temporal_patch_size=reader.integer("temporal_patch_size", 1, 64),
        spatial_merge_size=reader.integer("spatial_merge_size", 1, 64),
        out_hidden_size=reader.integer("out_hidden_size", 1, 1 << 20),
        num_position_embeddings=reader.integer("num_position_embeddings", 1, 1 << 20, default=2304),
        deepstack_visual_indexes=reader.integers("deepstack_visual_indexes", 0, depth - 1),
        rope_theta=_rope_theta(reader),
    )
    _check(config, reader)
    reader.ignore(*_UNUSED_VISION_KEYS)
    reader.refuse_unread()
    return config


def _rope_theta(reader: ConfigReader) -> float:
    """10000, or what the file says, in any of the places transformers looks at (`lluda.config.rope.read_rope`)."""
    reader.ignore("rope_theta")
    thetas = [_axial_theta(section, reader) for key in ("rope_scaling", "rope_parameters")
              if (section := reader.section(key)) and section.raw]  # fmt: skip
    if len(set(thetas)) > 1:
        rule = "rope_parameters and rope_scaling are one setting under two names and must not differ"
        raise CorruptFile(reader.path, rule, found=thetas)
    return thetas[0] if thetas else reader.number("rope_theta", 1, 1e12, default=_THETA)


def _axial_theta(section: ConfigReader, around: ConfigReader) -> float:
    """transformers takes "default" for "axial", the one kind of this encoder."""
    section.one_name("rope_type", "type")
    section.choice("rope_type", ("axial", "default"), default="axial", unsupported=True)
    outside = around.number("rope_theta", 1, 1e12, default=_THETA)
    theta = section.number("rope_theta", 1, 1e12, default=outside)
    section.refuse_unread()
    return theta


def _check(config: VisionEncoderConfig, reader: ConfigReader) -> None:
    """The rules between numbers."""
    if config.hidden_size % (4 * config.num_heads):
        # A quarter of each head is turned by the row, a quarter by the column, and pairs are half a head apart.
        rule = f"hidden_size must be a multiple of four times num_heads {config.num_heads}"
        raise CorruptFile(reader.path, rule, found=config.hidden_size)
    if config.table_side**2 != config.num_position_embeddings:
        raise CorruptFile(reader.path, "num_position_embeddings must be a square", found=config.num_position_embeddings)
    indexes = config.deepstack_visual_indexes
    if list(indexes) != sorted(set(indexes)):
        raise CorruptFile(reader.path, "deepstack_visual_indexes must ascend", found=indexes)


@dataclass(frozen=True, slots=True)
class VisionInputConfig:
    """How images and frames become patches (spec section 4.1). The defaults are the released values.

    Sides become multiples of ``patch_size * merge_size`` pixels, areas ``min_pixels`` to ``max_pixels`` (a frame's
    ``min_frame_pixels`` to ``max_frame_pixels``); a channel's byte b becomes ``(b / 255 - mean) / std``. ``fps``:
    frames taken from a second of video, at most ``max_frames`` in all. The frames' numbers are in no released file:
    they are the released processor's own.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056
    image_mean: Triple = (0.5, 0.5, 0.5)
    image_std: Triple = (0.5, 0.5, 0.5)
    min_frame_pixels: int = 128 * 32 * 32
    max_frame_pixels: int = 768 * 32 * 32
    fps: float = 2.0
    max_frames: int = 768

    @property
    def factor(self) -> int:
        """Pixels along one side of a token (32)."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_hf(
        cls,
        raw: Mapping[str, Any],
        path: str = "preprocessor_config.json",
        encoder: VisionEncoderConfig | None = None,
    ) -> VisionInputConfig:
        """Read the image settings; keys of audio settings are ignored. What they leave out has the defaults
        of transformers' image processor; where there are none (``raw`` is empty or of audio alone), the released values
        hold. ``encoder`` gives the numbers of patches where they are left out, and must agree where they are not.

        Raises:
            UnsupportedModel: another kind of processor or resampling, or one of its steps switched off.
            CorruptFile: a value outside its rule, or another patch than the encoder's.
        """
        reader = ConfigReader(raw, path)
        kinds = tuple(f"Qwen2VLImageProcessor{suffix}" for suffix in ("", "Fast", "Pil"))
        reader.choice("image_processor_type", kinds, default=kinds[0], unsupported=True)
        config = cls._read(reader, encoder)
        least, most = _pixels(reader, (config.min_pixels, config.max_pixels))
        if most < max(least, config.factor**2):
            rule = f"max_pixels must be at least min_pixels and one token's {config.factor**2}"
            raise CorruptFile(path, rule, found=most)
        return replace(config, min_pixels=least, max_pixels=most)

    @classmethod
    def for_video(
        cls,
        raw: Mapping[str, Any],
        path: str = "video_preprocessor_config.json",
        encoder: VisionEncoderConfig | None = None,
    ) -> VisionInputConfig:
        """Read the settings of video, as `from_hf` does. The size of frames is not read: transformers' Omni processor
        gives its own at every call, and so do we. UnsupportedModel also for frames that the processor is to choose."""
        reader = ConfigReader(raw, path)
        kind = "Qwen2VLVideoProcessor"
        reader.choice("video_processor_type", (kind,), default=kind, unsupported=True)
        for switch in ("do_sample_frames", "cap_pixels_per_frame"):
            reader.forbid(switch)
        return cls._read(reader, encoder)

    @classmethod
    def _read(cls, reader: ConfigReader, encoder: VisionEncoderConfig | None) -> VisionInputConfig:
        """Patches and normalisation, which images and frames have in common."""
        _check_steps(reader)
        named = any(key in reader.raw for key in _NAMES_PICTURES)
        default = TRANSFORMERS_VISION if named else RELEASED_VISION
        sizes = {
            key: getattr(encoder, name) if encoder else getattr(RELEASED_VISION, key) for key, name in _PATCH.items()
        }
        config = replace(
            default,
            patch_size=reader.integer("patch_size", 1, 1024, default=sizes["patch_size"]),
            temporal_patch_size=reader.integer("temporal_patch_size", 1, 64, default=sizes["temporal_patch_size"]),
            merge_size=reader.integer("merge_size", 1, 64, default=sizes["merge_size"]),
            image_mean=_triple(reader, "image_mean", default.image_mean),
            image_std=_triple(reader, "image_std", default.image_std),
        )
        if min(config.image_std) <= 0:
            raise CorruptFile(reader.path, "image_std must be above 0", found=config.image_std)
        for key, name in _PATCH.items():
            if encoder and getattr(config, key) != sizes[key]:
                rule = f"{key} must be the {name} of config.json's vision_config"
                raise CorruptFile(reader.path, rule, expected=sizes[key], found=getattr(config, key))
        return config


_NAMES_PICTURES = ("image_processor_type", "video_processor_type", "patch_size")
"""Keys that tell settings of images from those of audio alone."""

_PATCH = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""Numbers of a patch as the processor and as the encoder call them."""


def _pixels(reader: ConfigReader, default: tuple[int, int]) -> tuple[int, int]:
    """The least and most pixels of an image: those of ``size``, which transformers overrides with ``min_pixels`` and
    ``max_pixels``, each by itself."""
    size, bounds = reader.section("size"), list(default)
    edges = ("shortest_edge", "longest_edge")
    for index, (edge, key) in enumerate(zip(edges, ("min_pixels", "max_pixels"), strict=True)):
        if reader.raw.get(key) is not None:
            bounds[index] = reader.integer(key, 1, 1 << 30)
        elif size is not None:
            if size.raw.get(edge) is None:
                rule = f"size must hold {edges[0]} and {edges[1]} (pixels), or {key} must be set beside it"
                raise CorruptFile(reader.path, rule, found=dict(size.raw))
            bounds[index] = size.integer(edge, 1, 1 << 30)
    return bounds[0], bounds[1]


def _check_steps(reader: ConfigReader) -> None:
    """The steps of the released processor: bicubic resizing, rescaling by 1/255 and normalising RGB, each done."""
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not reader.boolean(step, default=True):
            raise UnsupportedModel(f"{reader.path}: {step} false is not supported; supported: true")
    if reader.integer("resample", 0, 5, default=3) != 3:
        raise UnsupportedModel(f"{reader.path}: resample {reader.raw['resample']} is not supported; supported: 3")
    if reader.raw.get("rescale_factor") is not None and abs(reader.number("rescale_factor", 0, 1) * 255 - 1) > 1e-6:
        raise UnsupportedModel(f"{reader.path}: rescale_factor must be 1/255")


def _triple(reader: ConfigReader, key: str, default: Triple) -> Triple:
    values = reader.raw.get(key, default)
    valid = isinstance(values, list | tuple) and len(values) == 3
    if not valid or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise CorruptFile(reader.path, f"{key} must be three numbers", found=values)
    return float(values[0]), float(values[1]), float(values[2])


RELEASED_VISION = VisionInputConfig()

TRANSFORMERS_VISION = VisionInputConfig(
    max_pixels=28 * 28 * 1280,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
"""What transformers 5.23's Qwen2VLImageProcessor has for settings that a file leaves out (but for the patch, which must
be the encoder's)."""


@dataclass(frozen=True, slots=True)
class VisionLimits:
    """What is taken as an image or video; all else is refused before memory is taken for it.

    | limit | value | why |
    |---|---|---|
    | ``max_image_bytes`` | 1 GiB | an uncompressed image of ``max_pixels`` in 16 bits fits |
    | ``max_pixels`` | 134,217,728 | of an image, before resizing: 400 MB of RGB; cameras make 108 million |
    | ``max_side`` | 163,840 | what the two rules around it leave |
    | ``max_aspect_ratio`` | 200 | long side to short; the released processor's own rule |
    | ``max_video_bytes`` | 64 GiB | hours of 4K video |
    | ``max_frame_pixels`` | 33,554,432 | of a stored frame: 8K video has 33,177,600 |
    | ``max_seconds`` | 4 hours | as for audio; the decoder's 65,536 positions hold 84 minutes |
    | ``max_array_frames`` | 768 | of an array, which is not sampled; the released processor's own rule for files |
    | ``max_fps`` | 240 | frames a second that may be asked for |
    | ``missing_seconds`` | 1 | by how much a video may end before its header says |
    """

    max_image_bytes: int = 1 << 30
    max_pixels: int = 1 << 27
    max_side: int = 163_840
    max_aspect_ratio: int = 200
    max_video_bytes: int = 64 << 30
    max_frame_pixels: int = 1 << 25
    max_seconds: int = 4 * 3600
    max_array_frames: int = 768
    max_fps: float = 240.0
    missing_seconds: float = 1.0


VISION_LIMITS = VisionLimits()
