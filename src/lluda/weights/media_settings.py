"""Where a checkpoint stores the settings of its media: the files of transformers 4 and 5, in transformers' order.

transformers 5 nests the settings of each medium in processor_config.json; before, audio and images shared
preprocessor_config.json, and video had a file of its own in some versions. The first that has a medium's settings
is used alone: nothing is merged (5.23: ``get_image_processor_dict``, ``get_feature_extractor_dict``,
``get_video_processor_dict``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lluda.errors import CorruptFile
from lluda.weights.checkpoint import (
    PREPROCESSOR_CONFIG_NAME,
    PROCESSOR_CONFIG_NAME,
    VIDEO_PREPROCESSOR_CONFIG_NAME,
    Source,
    read_document,
)

Medium = Literal["audio", "image", "video"]

_SECTIONS: Mapping[Medium, tuple[str, ...]] = {
    "audio": ("feature_extractor", "audio_processor"),
    "image": ("image_processor",),
    "video": ("video_processor",),
}
"""Keys of processor_config.json, the first that is set counting."""

_FILES: Mapping[Medium, tuple[str, ...]] = {
    "audio": (PREPROCESSOR_CONFIG_NAME,),
    "image": (PREPROCESSOR_CONFIG_NAME,),
    "video": (VIDEO_PREPROCESSOR_CONFIG_NAME, PREPROCESSOR_CONFIG_NAME),
}
"""Files for what is in none of the sections."""


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """The settings of one medium as they are stored (empty: the checkpoint has none), and ``where``, for errors."""

    raw: Mapping[str, Any]
    where: str


def read_media_settings(source: Source, medium: Medium) -> MediaSettings:
    """The settings of ``medium`` in a model folder, or in a .gguf file that carries its files.

    CorruptFile: not strict JSON, or a section that is no object. Else as `read_document`."""
    path = Path(source)
    processor = read_document(source, PROCESSOR_CONFIG_NAME)
    for key in _SECTIONS[medium]:
        section = processor.get(key)
        if section is not None:
            where = f"{path / PROCESSOR_CONFIG_NAME}: {key}"
            if not isinstance(section, dict):
                raise CorruptFile(where, "must be a JSON object", found=section)
            return MediaSettings(section, where)
    for name in _FILES[medium]:
        if found := read_document(source, name):
            return MediaSettings(found, str(path / name))
    return MediaSettings({}, str(path / _FILES[medium][-1]))
