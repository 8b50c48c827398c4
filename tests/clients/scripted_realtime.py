"""A server with the voice page and a realtime session that follows a script, so that what the page does in answer can
be told exactly. It hears a turn where the sound is loud, and speaks a tone."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lluda.serving.endpoints.page import page
from lluda.serving.http.listener import listen

RATE = 24_000
TEXT = "Paris is the capital of France. It lies on the river Seine, and some two million people live in it."
SECONDS = 60.0
_LOUD, _SILENCE_MS = 0.02, 500
_LEAD = 3.0
"""Seconds of sound that a server is ahead of its listener: an answer that is longer goes on until it is interrupted."""


@dataclass
class Script:
    """What the server has, what it says, and what it was told."""

    modalities: tuple[list[str], list[str]] = (["text", "audio", "image", "video"], ["text", "audio"])
    text: str = TEXT
    seconds: float = 8.0
    """Of each spoken answer."""
    calls: bool = False
    """Whether the first answer is a call of the clock."""
    refusal: tuple[str, int] | None = None
    """An error's message and a close code, in place of a session."""
    key: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    """Events of the page in their order, with ``at``: seconds of the monotonic clock. Sound: its number of samples."""
    sent: list[dict[str, Any]] = field(default_factory=list)
    """Events to the page, with ``at``, without sound."""
    offered: list[str] = field(default_factory=list)
    """Subprotocols of the last connection."""

    def types(self) -> list[str]:
        """Of what was told, sound left out."""
        return [event["type"] for event in self.told if event["type"] != "input_audio_buffer.append"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What was told of one type."""
        return [event for event in self.told if event["type"] == kind]


class _Session:
    """One connection."""

    def __init__(self, socket: WebSocket, script: Script) -> None:
        self._socket, self._script, self._numbers = socket, script, count(1)
        self._session: dict[str, Any] = {"object": "realtime.session", "type": "realtime", "id": "sess_1"}
        self._response, self._item = "", ""
        self._heard = self._quiet = 0
        self._user = ""
        self._begins = 0.0
        self._sounds_until = 0.0

    async def run(self) -> None:
        await self.send("session.created", session=self._session)
        while True:
            event = json.loads(await self._socket.receive_text())
            sound = event.get("audio")
            if sound is not None:
                samples = np.frombuffer(base64.b64decode(sound, validate=True), "<i2")
                event["audio"] = len(samples)
            self._script.told.append(event | {"at": time.monotonic()})
            match event["type"]:
                case "session.update":
                    self._session |= event["session"]
                    await self.send("session.updated", session=self._session)
                case "input_audio_buffer.append":
                    await self._listen(samples)
                case "input_audio_buffer.commit":
                    await self._commit(self._name("item"))
                case "conversation.item.create":
                    item = {"id": self._name("item"), "status": "completed"} | event["item"]
                    await self.send("conversation.item.added", previous_item_id=None, item=item)
                    await self.send("conversation.item.done", previous_item_id=None, item=item)
                case "conversation.item.truncate":
                    named = {name: event[name] for name in ("item_id", "content_index", "audio_end_ms")}
                    await self.send("conversation.item.truncated", **named)
                case "response.create":
                    await self._answer()
                case "response.cancel":
                    await self._cancel("client_cancelled")

    async def send(self, kind: str, **fields: Any) -> None:
        """One event."""
        event = {"type": kind, "event_id": self._name("event"), **fields}
        self._script.sent.append({**{n: v for n, v in event.items() if n != "delta"}, "at": time.monotonic()})
        await self._socket.send_text(json.dumps(event))

    def _name(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"

    async def _listen(self, samples: Any) -> None:
        self._heard += len(samples)
        if not self._session["audio"]["input"]["turn_detection"]:
            return
        loud = float(np.sqrt(np.mean((samples / 32768) ** 2))) > _LOUD
        self._quiet = 0 if loud else self._quiet + len(samples)
        now = self._heard * 1000 // RATE
        if loud and not self._user:
            self._user = self._name("item")
            await self.send("input_audio_buffer.speech_started", item_id=self._user, audio_start_ms=max(0, now - 300))
            if self._response or time.monotonic() < self._sounds_until:
                await self._cancel("turn_detected")
        elif self._user and self._quiet * 1000 // RATE >= _SILENCE_MS:
            item, self._user = self._user, ""
            await self.send("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=now - 300)
            await self._commit(item)
            await self._answer()

    async def _commit(self, name: str) -> None:
        item = {
            "id": name,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        await self.send("input_audio_buffer.committed", item_id=name, previous_item_id=None)
        await self.send("conversation.item.added", previous_item_id=None, item=item)
        await self.send("conversation.item.done", previous_item_id=None, item=item)
        said = {"item_id": name, "content_index": 0, "transcript": "what is the capital of france"}
        usage = {"type": "duration", "seconds": 1}
        await self.send("conversation.item.input_audio_transcription.completed", **said, usage=usage)

    async def _answer(self) -> None:
        """All of it is sent at once."""
        self._response, self._item = self._name("resp"), self._name("item")
        await self.send("response.created", response=self._made("in_progress"))
        await asyncio.sleep(0.1)
        if self._script.calls:
            self._script.calls = False
            await self._call()
            return
        item = {"id": self._item, "object": "realtime.item", "type": "message", "role": "assistant", "content": []}
        at = {"response_id": self._response, "item_id": self._item, "output_index": 0, "content_index": 0}
        spoken = self._session["output_modalities"] == ["audio"]
        kind = "response.output_audio_transcript" if spoken else "response.output_text"
        await self.send("response.output_item.added", response_id=self._response, output_index=0, item=item)
        for word in self._script.text.split(" "):
            await self.send(f"{kind}.delta", **at, delta=word + " ")
        if spoken:
            tone = 0.3 * np.sin(np.arange(int(self._script.seconds * RATE)) * 2 * np.pi * 220 / RATE)
            tone *= 0.55 + 0.45 * np.sin(np.arange(len(tone)) * 2 * np.pi * 3 / RATE)
            whole = (tone * 32767).astype("<i2")
            for begin in range(0, len(whole), RATE // 5):
                data = base64.b64encode(whole[begin : begin + RATE // 5].tobytes()).decode()
                await self.send("response.output_audio.delta", **at, delta=data)
            self._sounds_until = time.monotonic() + self._script.seconds
            await self.send("response.output_audio.done", **at)
            await self.send("response.output_audio_transcript.done", **at, transcript=self._script.text)
        else:
            await self.send("response.output_text.done", **at, text=self._script.text)
        if not spoken or self._script.seconds <= _LEAD:
            await self.send("response.done", response=self._made("completed"))
            self._response = ""

    async def _call(self) -> None:
        item = {"id": self._item, "type": "function_call", "call_id": "call_1", "name": "get_time"}
        done = item | {"status": "completed", "arguments": '{"time_zone": "Asia/Tokyo"}'}
        at = {"response_id": self._response, "output_index": 0}
        await self.send("response.output_item.added", **at, item=item | {"status": "in_progress", "arguments": ""})
        await self.send("response.output_item.done", **at, item=done)
        await self.send("response.done", response=self._made("completed"))
        self._response = ""

    async def _cancel(self, reason: str) -> None:
        self._sounds_until = 0.0
        if self._response:
            await self.send("response.done", response=self._made("cancelled", {"type": "cancelled", "reason": reason}))
            self._response = ""

    def _made(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"id": self._response, "object": "realtime.response", "status": status, "status_details": details}


@contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """Its address."""

    async def models(request: Request) -> Response:
        if script.key and request.headers.get("authorization") != f"Bearer {script.key}":
            return JSONResponse({"error": {"message": "no key"}}, 401)
        given, made = script.modalities
        voices = ["lark", "rms"] if "audio" in made else []
        one = {"id": "tiny-omni", "modalities": {"input": given, "output": made}, "voices": voices}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "state": "ready"})

    async def realtime(socket: WebSocket) -> None:
        script.offered = socket.scope["subprotocols"]
        await socket.accept("realtime")
        try:
            if script.refusal:
                message, code = script.refusal
                error = {"type": "invalid_request_error", "code": "refused", "message": message, "param": None}
                await socket.send_json({"type": "error", "event_id": "event_1", "error": error | {"event_id": None}})
                await socket.close(code)
                return
            await _Session(socket, script).run()
        except WebSocketDisconnect:
            script.told.append({"type": "left", "at": time.monotonic()})

    routes = [Route("/", page), Route("/health", health), Route("/v1/models", models)]
    app = Starlette(routes=[*routes, WebSocketRoute("/v1/realtime", realtime)])
    sockets = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="websockets-sansio", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=sockets)), name="scripted server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
