"""All limits of the server, in one table: ``lluda serve --print-limits`` prints it, ``--limit NAME=N`` changes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    from lluda.engine.media import MediaReader


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds; a request beyond one of them is refused with a message that names it."""

    running: int = _limit(16, "sequences that run at once; a request with n choices is n sequences")
    waiting: int = _limit(0, "sequences that wait for these; more are answered 429 (0: four times running)")
    queue_seconds: float = _limit(60, "waiting, then 503 queue_timeout")
    request_seconds: float = _limit(600, "one request from its admission to its end")
    step_seconds: float = _limit(300, "one step of the engine; then it counts as hung, and the process ends")
    drain_seconds: float = _limit(30, "after SIGTERM, for what runs to end by itself")
    connections: int = _limit(1024, "open at once; the next are answered 503 and closed")
    header_bytes: int = _limit(16 << 10, "request line and headers")
    headers: int = _limit(100, "of one request")
    header_seconds: float = _limit(10, "until request line and headers are complete")
    keep_alive_seconds: float = _limit(5, "between two requests of one connection")
    body_bytes: int = _limit(64 << 20, "of one request")
    bodies_bytes: int = _limit(1 << 30, "of all requests that are being read or answered; more are answered 429")
    body_idle_seconds: float = _limit(15, "between two pieces of a body")
    write_stall_seconds: float = _limit(30, "during which a client reads nothing; then it is disconnected")
    ping_seconds: float = _limit(15, "between two comment lines of a silent event stream")
    messages: int = _limit(1024, "of one conversation")
    parts: int = _limit(64, "of one message")
    text_bytes: int = _limit(4 << 20, "text of one request")
    images: int = _limit(16, "of one request")
    videos: int = _limit(1, "of one request")
    sounds: int = _limit(8, "of one request")
    image_pixels: int = _limit(50_000_000, "of an image, known before it is decoded")
    image_side: int = _limit(16_384, "pixels, of an image or a video")
    video_seconds: int = _limit(600, "of a video")
    audio_seconds: int = _limit(2400, "of a recording, in a conversation or to be transcribed")
    audio_file_bytes: int = _limit(64 << 20, "of the file of a recording to be transcribed")
    fetch_seconds: float = _limit(20, "for fetching one medium from a URL (only with --media-domains)")
    fetch_bytes: int = _limit(64 << 20, "of all media that one request fetches")
    transcription_window_seconds: float = _limit(30, "of a recording that are transcribed at once")
    choices: int = _limit(8, "n of one request")
    stop_strings: int = _limit(64, "of one request")
    stop_characters: int = _limit(256, "of one stop string")
    logit_bias: int = _limit(300, "entries")
    top_logprobs: int = _limit(20, "alternatives of a token")
    tools: int = _limit(128, "of one request")
    schema_bytes: int = _limit(64 << 10, "of a JSON schema")
    schema_depth: int = _limit(16, "levels of a JSON schema")
    speech_input_characters: int = _limit(4096, "of a text to be spoken")
    realtime_sessions: int = _limit(4, "realtime sessions that are open at once; the next are closed with 1013")
    realtime_session_seconds: float = _limit(3600, "of one realtime session")
    realtime_event_bytes: int = _limit(16 << 20, "of one event of a realtime client; then close 1009")
    realtime_unread_bytes: int = _limit(4 << 20, "that a realtime client has not read; then close 1008")
    realtime_buffer_seconds: float = _limit(600, "of sound in a realtime session's buffer, and kept of its turns")
    realtime_items: int = _limit(4096, "of a realtime conversation")
    realtime_ping_seconds: float = _limit(20, "between two pings of a realtime session, and for their answer")
    workers: int = _limit(4, "threads for templates, media, JSON and encoding of sound")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type == "int" and (value != int(value) or value < (one.name != "waiting")):
                raise InvalidRequest(f"limit {one.name} must be a whole number from 1 on, not {value!r}")
            if not 0 <= value < math.inf or (value == 0 and one.type == "float"):
                raise InvalidRequest(f"limit {one.name} must be a number above 0, not {value!r}")
        if not self.waiting:
            object.__setattr__(self, "waiting", 4 * self.running)

    def changed(self, assignments: Sequence[str]) -> Limits:
        """With ``NAME=VALUE`` for some. InvalidRequest: no such limit, or not a number that it can be."""
        known = {one.name: one for one in fields(self)}
        values: dict[str, float] = {}
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            if name not in known:
                raise InvalidRequest(f"--limit {assignment}: no limit is called {name!r}; --print-limits shows them")
            try:
                values[name] = int(text) if known[name].type == "int" else float(text)
            except ValueError:
                raise InvalidRequest(f"--limit {assignment}: {text!r} is not a number") from None
        if "running" in values:
            values.setdefault("waiting", 0)
        return replace(self, **values)  # type: ignore[arg-type]

    def bound(self, media: MediaReader) -> None:
        """Let ``media`` take no more than these allow."""
        media.audio_limits = replace(media.audio_limits, max_seconds=self.audio_seconds)
        media.vision_limits = replace(
            media.vision_limits,
            max_pixels=self.image_pixels,
            max_side=self.image_side,
            max_seconds=self.video_seconds,
        )

    def table(self) -> str:
        """One line a limit: name, value, meaning."""
        return "\n".join(
            f"{one.name:<28} {getattr(self, one.name):>12,}  {one.metadata['meaning']}" for one in fields(self)
        )

    def numbers(self) -> dict[str, float]:
        """Name to value."""
        return {one.name: getattr(self, one.name) for one in fields(self)}
