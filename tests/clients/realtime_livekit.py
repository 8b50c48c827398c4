"""What LiveKit's RealtimeModel does with a session, as JSON. Runs in its environment: realtime_livekit.py URL SOUND.

SOUND: raw mono int16 at 24 kHz, a question and the silence after it. No LiveKit server is needed: the plugin's session
is driven as its agents drive it.
"""

import asyncio
import json
import sys
from pathlib import Path

from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai

RATE, BLOCK = 24_000, 1920  # bytes: 40 ms
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}


@llm.function_tool(raw_schema=WEATHER)
async def get_weather(raw_arguments: dict[str, object]) -> str:
    return "rain"


class Driver:
    """A session, with what came of it."""

    def __init__(self, session):
        self.session, self.raw, self.errors, self.generations = session, [], [], asyncio.Queue()
        session.on("openai_server_event_received", self.raw.append)
        session.on("error", lambda event: self.errors.append(str(event.error)))
        session.on("generation_created", self.generations.put_nowait)

    async def say(self, sound):
        for start in range(0, len(sound), BLOCK):
            block = sound[start : start + BLOCK]
            self.session.push_audio(rtc.AudioFrame(block, RATE, 1, len(block) // 2))
            await asyncio.sleep(0.04)

    async def heard(self, generation, first=None):
        """Text and samples of an answer; ``first`` is called with its message when sound has come."""
        text, samples, calls = "", 0, []
        async for message in generation.message_stream:
            async for frame in message.audio_stream:
                samples += frame.samples_per_channel
                if first:
                    first.set_result(message)
                    first = None
            async for part in message.text_stream:
                text += part
        async for call in generation.function_stream:
            calls.append(call)
        return {"text": text, "samples": samples, "calls": calls}

    async def ask(self, text):
        context = self.session.chat_ctx.copy()
        context.add_message(role="user", content=text)
        await self.session.update_chat_ctx(context)

    async def next(self):
        return await asyncio.wait_for(self.generations.get(), 60)


async def main(url, sound):
    model = openai.realtime.RealtimeModel(base_url=f"{url}/v1", model="tiny-omni", api_key="none")
    session = model.session()
    driver = Driver(session)
    found = {}

    await driver.say(sound)
    found["turn"] = await driver.heard(await driver.next())

    await driver.ask("Spell the word elephant.")
    generation = await asyncio.wait_for(session.generate_reply(), 60)
    await driver.next()
    first = asyncio.get_running_loop().create_future()
    hearing = asyncio.create_task(driver.heard(generation, first))
    message = await asyncio.wait_for(first, 60)
    started = asyncio.Event()
    session.on("input_speech_started", lambda _: started.set())
    saying = asyncio.create_task(driver.say(sound))
    await asyncio.wait_for(started.wait(), 60)
    session.interrupt()
    session.truncate(message_id=message.message_id, modalities=["audio"], audio_end_ms=400)
    await saying
    found["interrupted"] = await hearing
    found["after"] = await driver.heard(await driver.next())

    # Only now: tiny-omni's questions are answered without functions, whose description is not of its world.
    await session.update_tools([get_weather])
    session.send_event({"type": "session.update", "session": {"type": "realtime", "parallel_tool_calls": False}})
    await driver.ask("What is the weather?")
    await asyncio.wait_for(session.generate_reply(tool_choice="required"), 60)
    called = await driver.heard(await driver.next())
    context = session.chat_ctx.copy()
    for call in called["calls"]:
        output = llm.FunctionCallOutput(call_id=call.call_id, name=call.name, output="rain", is_error=False)
        context.items.append(output)
    await session.update_chat_ctx(context)
    await asyncio.wait_for(session.generate_reply(tool_choice="none"), 60)
    found["answered"] = await driver.heard(await driver.next())
    found["calls"] = [call.name for call in called["calls"]]
    found["turn"].pop("calls"), found["interrupted"].pop("calls"), found["after"].pop("calls")
    found["answered"].pop("calls")
    found |= {"errors": driver.errors, "raw": driver.raw}
    await session.aclose()
    await model.aclose()
    print(json.dumps(found))


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
