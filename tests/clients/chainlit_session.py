"""What a page of chainlit gets, as JSON: chainlit_session.py URL PICTURE FIELDS. It speaks to the app as the page's own
script does, over Socket.IO. The second message has the picture; with the third, FIELDS are in the page's settings."""

import asyncio
import datetime
import json
import sys
import uuid
from pathlib import Path

import aiohttp
import socketio

QUESTION = "What is two plus three?"
SECONDS = 100


class Page:
    """One open page: ``models`` that it lists and ``turns``, each with its streamed and folded pieces and messages."""

    def __init__(self, url):
        self.url, self.session = url, str(uuid.uuid4())
        self.models, self.turns = [], []
        self.answered = asyncio.Event()
        self.socket = socketio.AsyncClient()
        self.socket.on("chat_settings", self.on_settings)
        self.kinds = {}
        self.socket.on("stream_start", self.on_start)
        self.socket.on("stream_token", lambda data: self.on_piece(data["id"], data["token"]))
        self.socket.on("new_message", self.on_message)

    async def open(self):
        auth = {"sessionId": self.session, "clientType": "webapp"}
        await self.socket.connect(self.url, socketio_path="/ws/socket.io", auth=auth, transports=["websocket"])
        await self.wait_for(self.socket.emit("connection_successful"))

    async def upload(self, picture):
        """A reference to the picture, for a message."""
        form = aiohttp.FormData()
        form.add_field("file", Path(picture).read_bytes(), filename="picture.png", content_type="image/png")
        address = f"{self.url}/project/file?session_id={self.session}"
        async with aiohttp.ClientSession() as http, http.post(address, data=form) as reply:
            return await reply.json()

    async def ask(self, text, files=()):
        self.turns.append({"assistant_message": [], "llm": [], "messages": []})
        now = datetime.datetime.now(datetime.UTC).isoformat()
        message = {"id": str(uuid.uuid4()), "name": "user", "type": "user_message", "output": text, "createdAt": now}
        await self.wait_for(self.socket.emit("client_message", {"message": message, "fileReferences": list(files)}))

    async def wait_for(self, sent):
        """Sends and waits for what the app answers."""
        self.answered.clear()
        await sent
        await asyncio.wait_for(self.answered.wait(), SECONDS)

    def on_settings(self, inputs):
        self.models = [item["value"] for item in inputs[0]["items"]]
        self.answered.set()

    def on_start(self, step):
        self.kinds[step["id"]] = step["type"]
        self.on_piece(step["id"], step["output"])

    def on_piece(self, step, text):
        self.turns[-1][self.kinds[step]].append(text)

    def on_message(self, step):
        if step["type"] == "assistant_message":
            message = {"text": step["output"], "error": step["isError"], "metadata": step["metadata"]}
            self.turns[-1]["messages"].append(message)
            self.answered.set()


async def main(url, picture, fields):
    page = Page(url)
    await page.open()
    await page.ask(QUESTION)
    await page.ask("What do you see?", [await page.upload(picture)])
    await page.socket.emit("chat_settings_change", {"fields": fields})
    await page.ask(QUESTION)
    await page.socket.disconnect()
    print(json.dumps({"models": page.models, "turns": page.turns}))


asyncio.run(main(*sys.argv[1:]))
