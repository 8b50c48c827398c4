"""From an item as its client wrote it to an item of the conversation, its media decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lluda.errors import LludaError
from lluda.inputs.media.audio_file import open_audio
from lluda.serving.http.errors import ApiError, from_error, invalid
from lluda.serving.media.data_url import from_base64, from_data_url
from lluda.serving.realtime.conversation.conversation import user_sound
from lluda.serving.realtime.conversation.items import CallItem, CallOutputItem, Item, MessageItem, Part, new_id
from lluda.serving.realtime.events import item_fields as fields
from lluda.serving.realtime.turns.sound_format import HEARD_RATE, SoundDecoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lluda.serving.limits import Limits
    from lluda.serving.realtime.session_settings import SoundFormat

MOST_SOUND_BYTES = 15 << 20
"""Of one append, and of one part of an item."""

_OF_ROLE = {
    "system": (fields.InputText,),
    "user": (fields.InputText, fields.InputAudio, fields.InputImage),
    "assistant": (fields.OutputText, fields.OutputAudio),
}
_HEADERS = (b"RIFF", b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3", b"\xff\xfb", b"\xff\xf3")
"""How files of sound begin."""


def client_item(
    given: fields.Message | fields.FunctionCall | fields.FunctionCallOutput,
    sound: SoundFormat,
    limits: Limits,
    where: str = "item",
) -> Item:
    """``sound``: the format of sound without a header. Blocking where there are media.

    ApiError 400: a part that a message of its role does not have, or media that cannot be read; ``where`` is the path.
    """
    match given:
        case fields.FunctionCall():
            return CallItem(given.name, given.arguments, given.call_id or new_id("call"), given.id or new_id("item"))
        case fields.FunctionCallOutput():
            return CallOutputItem(given.call_id, given.output, given.id or new_id("item"))
    path = f"{where}.content"
    if len(given.content) > limits.parts:
        raise invalid(f"{path} has {len(given.content)} parts; at most {limits.parts} are taken", path)
    parts = []
    for index, part in enumerate(given.content):
        if not isinstance(part, _OF_ROLE[given.role]):
            words = f"{path}[{index}]: a message of role {given.role} has no part of type {part.type}"
            raise invalid(words, f"{path}[{index}].type")
        parts.append(_part(part, sound, limits, f"{path}[{index}]"))
    return MessageItem(given.role, parts, given.id or new_id("item"))


def has_media(given: object) -> bool:
    """Whether reading it takes time."""
    return isinstance(given, fields.Message) and any(
        isinstance(part, fields.InputAudio | fields.InputImage) for part in given.content
    )


def _part(part: fields.Part, sound: SoundFormat, limits: Limits, where: str) -> Part:
    match part:
        case fields.InputText() | fields.OutputText():
            return Part(part.type, part.text)
        case fields.OutputAudio():
            return Part("output_audio", part.transcript)
        case fields.InputImage():
            content = from_data_url(part.image_url, "image", f"{where}.image_url", limits.body_bytes)
            return Part("input_image", source=content)
        case fields.InputAudio(audio=None):
            return Part("input_audio", part.transcript)
        case fields.InputAudio():
            data = from_base64(part.audio or "", f"{where}.audio", MOST_SOUND_BYTES)
            found = user_sound(_samples(data, sound, f"{where}.audio"))
            found.text = part.transcript
            return found
    raise AssertionError(part)


def _samples(data: bytes, sound: SoundFormat, where: str) -> NDArray[np.float32]:
    try:
        if data.startswith(_HEADERS) or data[4:8] == b"ftyp":
            recording = open_audio(data, None, where=where)
            try:
                return np.concatenate([np.zeros(0, np.float32), *recording.blocks(HEARD_RATE)])
            finally:
                recording.close()
        decoder = SoundDecoder(sound.type, sound.rate)  # type: ignore[arg-type]
        return np.concatenate([decoder.push(data), decoder.finish()])
    except LludaError as error:
        found = from_error(error)
        raise ApiError(400, "invalid_media", found.message, param=where) from None
