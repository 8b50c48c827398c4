"""What openai-agents does with a realtime session, as JSON. Runs in its environment: realtime_agents.py URL SOUND.

SOUND: raw mono int16 at 24 kHz, a question and the silence after it.
"""

import asyncio
import json
import sys
from pathlib import Path

from agents import function_tool, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.model_inputs import RealtimeModelSendRawMessage

LONG = "Spell the word elephant."
BLOCK = 1920  # bytes: 40 ms
called = []


@function_tool
def get_weather() -> str:
    """The weather."""
    called.append("get_weather")
    return "rain"


class Heard:
    """The events of a session, counted as they come."""

    def __init__(self, session):
        self.session, self.raw, self.events, self.sound, self.errors = session, [], [], 0, []
        self.changed = asyncio.Event()

    async def listen(self):
        async for event in self.session:
            if event.type == "raw_model_event":
                if event.data.type == "raw_server_event":
                    self.raw.append(event.data.data)
            else:
                self.events.append(event.type)
            if event.type == "audio":
                self.sound += len(event.audio.data)
            if event.type == "error":
                self.errors.append(str(event.error))
            self.changed.set()

    async def until(self, reached):
        async with asyncio.timeout(60):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def of(self, kind):
        return [event for event in self.raw if event["type"] == kind]

    def done(self, count):
        return lambda: len(self.of("response.done")) >= count


async def say(session, sound):
    for start in range(0, len(sound), BLOCK):
        await session.send_audio(sound[start : start + BLOCK])
        await asyncio.sleep(0.04)


async def update(session, **settings):
    message = {"type": "session.update", "other_data": {"session": {"type": "realtime", **settings}}}
    await session.model.send_event(RealtimeModelSendRawMessage(message=message))


async def main(url, sound):
    set_tracing_disabled(True)
    agent = RealtimeAgent(name="lion", instructions="", tools=[get_weather])
    address = url.replace("http://", "ws://") + "/v1/realtime?model=tiny-omni"
    async with await RealtimeRunner(agent).run(model_config={"url": address, "api_key": "none"}) as session:
        heard = Heard(session)
        listening = asyncio.create_task(heard.listen())

        # tiny-omni's questions are answered without functions: their description is not of its world.
        await heard.until(lambda: heard.of("session.updated"))
        tools = heard.of("session.updated")[0]["session"]["tools"]
        await update(session, tools=[])
        await say(session, sound)
        await heard.until(heard.done(1))
        found = {"turn": heard.of("response.done")[0]["response"], "sound": heard.sound}

        await session.send_message(LONG)
        await heard.until(lambda: heard.sound > found["sound"])
        await say(session, sound)
        await heard.until(heard.done(3))
        found["interrupted"] = "audio_interrupted" in heard.events
        found["truncated"] = heard.of("conversation.item.truncated")
        found["after"] = heard.of("response.done")[2]["response"]

        await update(session, tools=tools, tool_choice="required")
        await session.send_message("What is the weather?")
        await heard.until(lambda: called)
        await update(session, tool_choice="none")
        await heard.until(heard.done(5))
        found["called"] = heard.of("response.done")[3]["response"]["output"]
        found["answered"] = heard.of("response.done")[4]["response"]["output"]
        found |= {"calls": called, "errors": heard.errors, "events": sorted(set(heard.events)), "raw": heard.raw}
        listening.cancel()
    print(json.dumps(found))


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
