"""The names of the API's beta: taken from every client, spoken to those that speak them.

Source: OpenAI's migration from beta to general availability, and the clients of that time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lluda.serving.realtime.events.server_events import ItemDone, ServerEvent

_EVENTS = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
_PARTS = {"output_audio": "audio", "output_text": "text"}
_FORMATS = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
_FORMAT_NAMES = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}

_RENAMED = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}
_INPUT = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
_OUTPUT = {"output_audio_format": "format", "voice": "voice", "speed": "speed"}
_FLAT = frozenset({*_RENAMED, *_INPUT, *_OUTPUT})


def is_beta(event: Mapping[str, Any]) -> bool:
    """Whether only a client of the beta would send this: a session whose fields are flat."""
    session = event.get("session")
    updates = event.get("type") in ("session.update", "transcription_session.update")
    return updates and isinstance(session, dict) and bool(_FLAT & session.keys())


def to_ga(event: dict[str, Any]) -> dict[str, Any]:
    """A client's event with today's names in the place of older ones."""
    match event.get("type"):
        case "transcription_session.update":
            session = _fields(event.get("session"))
            if isinstance(session, dict):
                session = {"type": "transcription", **session}
            return {**event, "type": "session.update", "session": session}
        case "session.update" if "session" in event:
            return {**event, "session": _fields(event["session"])}
        case "response.create" if isinstance(wish := event.get("response"), dict):
            wish = _fields(wish)
            if isinstance(wish.get("input"), list):
                wish = {**wish, "input": [_item(item) for item in wish["input"]]}
            return {**event, "response": wish}
        case "conversation.item.create" if "item" in event:
            return {**event, "item": _item(event["item"])}
    return event


def _fields(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    fields = {_RENAMED.get(name, name): value for name, value in given.items() if name not in {**_INPUT, **_OUTPUT}}
    for side, names in (("input", _INPUT), ("output", _OUTPUT)):
        found = {
            new: _format(given[old]) if new == "format" else given[old] for old, new in names.items() if old in given
        }
        if found:
            audio = fields.get("audio")
            audio = audio if isinstance(audio, dict) else {}
            own = audio.get(side)
            fields["audio"] = {**audio, side: {**found, **(own if isinstance(own, dict) else {})}}
    if isinstance(fields.get("tools"), list):
        fields["tools"] = [_tool(tool) for tool in fields["tools"]]
    choice = fields.get("tool_choice")
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        fields["tool_choice"] = {"type": "function", "name": choice["function"].get("name")}
    return fields


def _format(given: Any) -> Any:
    return _FORMATS.get(given, given) if isinstance(given, str) else given


def _tool(given: Any) -> Any:
    """A function in chat's form, in the flat one."""
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        return {"type": given.get("type", "function"), **given["function"]}
    return given


def _item(given: Any) -> Any:
    """Parts ``text`` and ``audio`` are the assistant's, or the user's where older clients write them so."""
    if not isinstance(given, dict) or not isinstance(given.get("content"), list):
        return given
    side = "output" if given.get("role") == "assistant" else "input"
    return {**given, "content": [_part(part, side) for part in given["content"]]}


def _part(given: Any, side: str) -> Any:
    if isinstance(given, dict) and given.get("type") in ("text", "audio"):
        return {**given, "type": f"{side}_{given['type']}"}
    return given


def to_beta(event: ServerEvent) -> dict[str, Any] | None:
    """A server's event as clients of the beta know it; None: they do not know it."""
    if isinstance(event, ItemDone):
        return None
    told: dict[str, Any] = msgspec.to_builtins(event)
    told["type"] = _EVENTS.get(told["type"], told["type"])
    if "session" in told:
        told["session"] = _flat_session(told["session"])
    if "item" in told:
        told["item"] = _beta_item(told["item"])
    if "response" in told:
        told["response"] = _flat_response(told["response"])
    return told


def _beta_item(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return item
    return {**item, "content": [{**part, "type": _PARTS.get(part["type"], part["type"])} for part in item["content"]]}


def _flat_response(response: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    sound = response["audio"]["output"]
    flat["modalities"] = _modalities(response["output_modalities"])
    flat["voice"] = sound["voice"]
    flat["output_audio_format"] = _FORMAT_NAMES[sound["format"]["type"]]
    flat["output"] = [_beta_item(item) for item in response["output"]]
    return flat


def _flat_session(session: dict[str, Any]) -> dict[str, Any]:
    heard = session["audio"]["input"]
    flat = {name: value for name, value in session.items() if name not in ("audio", "type")}
    for old, new in _INPUT.items():
        flat[old] = heard[new]
    flat["input_audio_format"] = _FORMAT_NAMES[heard["format"]["type"]]
    if "output_modalities" in flat:
        sound = session["audio"]["output"]
        flat["modalities"] = _modalities(flat.pop("output_modalities"))
        flat["max_response_output_tokens"] = flat.pop("max_output_tokens")
        flat["voice"], flat["speed"] = sound["voice"], sound["speed"]
        flat["output_audio_format"] = _FORMAT_NAMES[sound["format"]["type"]]
    return flat


def _modalities(given: list[str]) -> list[str]:
    """The beta named the transcript of sound as well."""
    return ["text", "audio"] if given == ["audio"] else given
