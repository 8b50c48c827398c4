"""What a realtime session tells its client: OpenAI's server events, as structs that encode fast."""

from __future__ import annotations

from typing import Any

import msgspec

Object = dict[str, Any]


class ServerEvent(msgspec.Struct, kw_only=True, tag_field="type"):
    """``event_id`` is given when it is sent."""

    event_id: str = ""


class ErrorObject(msgspec.Struct, kw_only=True):
    """``event_id``: of the client's event that is at fault."""

    type: str
    message: str
    code: str | None = None
    param: str | None = None
    event_id: str | None = None


class ErrorEvent(ServerEvent, tag="error"):
    """Something was refused; the session goes on."""

    error: ErrorObject


class SessionCreated(ServerEvent, tag="session.created"):
    """The first event of all."""

    session: Object


class SessionUpdated(ServerEvent, tag="session.updated"):
    """What holds from now on."""

    session: Object


class ConversationCreated(ServerEvent, tag="conversation.created"):
    """The second event of all."""

    conversation: Object


class ItemEvent(ServerEvent):
    """An item, and the one before it (None: it is the first)."""

    previous_item_id: str | None
    item: Object


class ItemAdded(ItemEvent, tag="conversation.item.added"):
    """There is a new item, which may not be complete."""


class ItemDone(ItemEvent, tag="conversation.item.done"):
    """The item is complete."""


class ItemRetrieved(ServerEvent, tag="conversation.item.retrieved"):
    """The item as it is kept, a user's sound too."""

    item: Object


class ItemDeleted(ServerEvent, tag="conversation.item.deleted"):
    """The item is no part of the conversation any more."""

    item_id: str


class ItemTruncated(ServerEvent, tag="conversation.item.truncated"):
    """Of the item's sound, what was heard is kept."""

    item_id: str
    content_index: int
    audio_end_ms: int


class SpeechStarted(ServerEvent, tag="input_audio_buffer.speech_started"):
    """Somebody speaks, since ``audio_start_ms`` of all sound that was appended."""

    item_id: str
    audio_start_ms: int


class SpeechStopped(ServerEvent, tag="input_audio_buffer.speech_stopped"):
    """The turn ended at ``audio_end_ms``."""

    item_id: str
    audio_end_ms: int


class Committed(ServerEvent, tag="input_audio_buffer.committed"):
    """The buffer has become an item."""

    item_id: str
    previous_item_id: str | None


class Cleared(ServerEvent, tag="input_audio_buffer.cleared"):
    """The buffer is empty."""


class TimeoutTriggered(ServerEvent, tag="input_audio_buffer.timeout_triggered"):
    """Nobody spoke for ``idle_timeout_ms``."""

    item_id: str
    audio_start_ms: int
    audio_end_ms: int


class _Transcription(ServerEvent):
    item_id: str
    content_index: int


class TranscriptionDelta(_Transcription, tag="conversation.item.input_audio_transcription.delta"):
    """More of what the user said."""

    delta: str


class TranscriptionCompleted(_Transcription, tag="conversation.item.input_audio_transcription.completed"):
    """All that the user said."""

    transcript: str
    usage: Object


class TranscriptionFailed(_Transcription, tag="conversation.item.input_audio_transcription.failed"):
    """It could not be written down."""

    error: Object


class ResponseEvent(ServerEvent):
    """A response as it stands."""

    response: Object


class ResponseCreated(ResponseEvent, tag="response.created"):
    """An answer has begun."""


class ResponseDone(ResponseEvent, tag="response.done"):
    """Nothing of this answer follows."""


class _OutputItem(ServerEvent):
    response_id: str
    output_index: int
    item: Object


class OutputItemAdded(_OutputItem, tag="response.output_item.added"):
    """The answer has one more item."""


class OutputItemDone(_OutputItem, tag="response.output_item.done"):
    """The item is complete, or was cut off."""


class OutputEvent(ServerEvent):
    """Something of one item of an answer."""

    response_id: str
    item_id: str
    output_index: int


class _ContentEvent(OutputEvent, kw_only=True):
    content_index: int = 0


class ContentPartAdded(_ContentEvent, tag="response.content_part.added"):
    """The item has a part."""

    part: Object


class ContentPartDone(_ContentEvent, tag="response.content_part.done"):
    """The part is complete."""

    part: Object


class AudioDelta(_ContentEvent, tag="response.output_audio.delta"):
    """More sound, as base64 in the output format."""

    delta: str


class AudioDone(_ContentEvent, tag="response.output_audio.done"):
    """No more sound."""


class TranscriptDelta(_ContentEvent, tag="response.output_audio_transcript.delta"):
    """More of what is being said."""

    delta: str


class TranscriptDone(_ContentEvent, tag="response.output_audio_transcript.done"):
    """All that was said."""

    transcript: str


class TextDelta(_ContentEvent, tag="response.output_text.delta"):
    """More text."""

    delta: str


class TextDone(_ContentEvent, tag="response.output_text.done"):
    """The whole text."""

    text: str


class ArgumentsDelta(OutputEvent, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    call_id: str
    delta: str


class ArgumentsDone(OutputEvent, tag="response.function_call_arguments.done"):
    """A call's arguments."""

    call_id: str
    name: str
    arguments: str
