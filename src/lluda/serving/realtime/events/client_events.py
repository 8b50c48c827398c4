"""What a client may send, one JSON object a frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lluda.errors import CorruptFile
from lluda.files.json_file import parse_json
from lluda.serving.http.body import checked
from lluda.serving.http.errors import invalid
from lluda.serving.realtime.events.item_fields import ItemFields, ItemId
from lluda.serving.realtime.events.session_fields import ResponseFields, SessionFields
from lluda.serving.wire.wire_model import WireModel

MOST_ID = 512
"""Characters of an event's id."""


class ClientEvent(WireModel):
    """``event_id`` comes back with an error."""

    event_id: Annotated[str, Field(max_length=MOST_ID)] | None = None


class SessionUpdate(ClientEvent):
    """Change the session."""

    type: Literal["session.update"]
    session: SessionFields


class Append(ClientEvent):
    """More of the user's sound."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(ClientEvent):
    """What is in the buffer is a turn."""

    type: Literal["input_audio_buffer.commit"]


class Clear(ClientEvent):
    """Forget what is in the buffer."""

    type: Literal["input_audio_buffer.clear"]


class ItemEvent(ClientEvent):
    """Something is done to the conversation."""


class ItemCreate(ItemEvent):
    """Put an item into the conversation: at its end, behind another item, or as its first (``root``)."""

    type: Literal["conversation.item.create"]
    item: ItemFields
    previous_item_id: str | None = None


class ItemRetrieve(ItemEvent):
    """Show an item, its sound too."""

    type: Literal["conversation.item.retrieve"]
    item_id: ItemId


class ItemDelete(ItemEvent):
    """Take an item out of the conversation."""

    type: Literal["conversation.item.delete"]
    item_id: ItemId


class ItemTruncate(ItemEvent):
    """Of a spoken answer, only what was played counts."""

    type: Literal["conversation.item.truncate"]
    item_id: ItemId
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class ResponseCreate(ClientEvent):
    """Answer now."""

    type: Literal["response.create"]
    response: ResponseFields | None = None


class ResponseCancel(ClientEvent):
    """Stop answering."""

    type: Literal["response.cancel"]
    response_id: str | None = None


class OutputClear(ClientEvent):
    """Stop what still sounds."""

    type: Literal["output_audio_buffer.clear"]


EVENTS: tuple[type[ClientEvent], ...] = (
    *(SessionUpdate, Append, Commit, Clear, ItemCreate, ItemRetrieve, ItemDelete, ItemTruncate),
    *(ResponseCreate, ResponseCancel, OutputClear),
)

_BY_TYPE: dict[str, type[ClientEvent]] = {
    event.model_fields["type"].annotation.__args__[0]: event  # type: ignore[union-attr]
    for event in EVENTS
}


def read_json(text: str) -> dict[str, Any]:
    """The object in a frame. ApiError 400 ``invalid_json``."""
    try:
        value = parse_json(text.encode("utf-8", "surrogatepass"), Path("the event"))
    except CorruptFile as error:
        raise invalid(str(error), code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("an event must be a JSON object", code="invalid_json")
    return value


def read_event(value: dict[str, Any]) -> ClientEvent:
    """An object as the event that it says it is. ApiError 400: ``unknown_event``, or a field that is missing, unknown
    or of a wrong value."""
    kind = value.get("type")
    if kind is None:
        raise invalid("type is required", "type", "missing_required_parameter")
    event = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    if event is None:
        raise invalid(
            f"there is no client event {kind!r:.80}; there are {', '.join(_BY_TYPE)}", "type", "unknown_event"
        )
    return checked(value, event)
