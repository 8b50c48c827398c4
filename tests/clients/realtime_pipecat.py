"""What a pipecat pipeline does with a realtime session, as JSON. realtime_pipecat.py URL SOUND, in its environment.

SOUND: raw mono int16 at 24 kHz, a question and the silence after it: the file that the pipeline hears.
"""

import asyncio
import json
import sys
from pathlib import Path

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE, BLOCK = 24_000, 1920  # bytes: 40 ms
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}


class Ear(FrameProcessor):
    """The first of the pipeline: says a sound into it, and sees the errors that come back."""

    def __init__(self):
        super().__init__()
        self.errors = []

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        await self.push_frame(frame, direction)

    async def say(self, sound):
        for start in range(0, len(sound), BLOCK):
            await self.push_frame(InputAudioRawFrame(sound[start : start + BLOCK], RATE, 1))
            await asyncio.sleep(0.04)


class Mouth(FrameProcessor):
    """The last of the pipeline: counts what is to be played."""

    def __init__(self):
        super().__init__()
        self.sound = self.interruptions = 0

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.sound += len(frame.audio)
        if isinstance(frame, InterruptionFrame):
            self.interruptions += 1
        await self.push_frame(frame, direction)


class Recorded(OpenAIRealtimeLLMService):
    """The service, which writes down what is sent and what it could parse."""

    def __init__(self, **options):
        super().__init__(**options)
        self.sent, self.responses, self.truncated, self.speaking = [], [], [], set()

    async def _ws_send(self, message):
        self.sent.append(message["type"])
        if message["type"] == "conversation.item.truncate":
            self.truncated.append(message)
        await super()._ws_send(message)

    async def _handle_evt_audio_delta(self, event):
        self.speaking.add(event.response_id)
        await super()._handle_evt_audio_delta(event)

    async def _handle_evt_response_done(self, event):
        self.responses.append(event.response.model_dump())
        await super()._handle_evt_response_done(event)


async def until(reached):
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.01)


async def main(url, sound):
    logger.remove()
    called = []
    properties = events.SessionProperties(
        audio=events.AudioConfiguration(
            input=events.AudioInput(
                transcription=events.InputAudioTranscription(), turn_detection=events.TurnDetection(type="server_vad")
            )
        )
    )
    address = url.replace("http:", "ws:") + "/v1/realtime"
    settings = OpenAIRealtimeLLMService.Settings(model="tiny-omni", session_properties=properties)
    service = Recorded(api_key="none", base_url=address, settings=settings)

    async def get_weather(params):
        called.append(params.function_name)
        await service.send_client_event(events.SessionUpdateEvent(session=events.SessionProperties(tool_choice="none")))
        await params.result_callback("rain")

    service.register_function("get_weather", get_weather)
    context = LLMContext()
    pair = LLMContextAggregatorPair(context, realtime_service_mode=True)
    ear, mouth = Ear(), Mouth()

    async def ask(text):
        # pipecat appends typed messages as the system's, which is not of tiny-omni's world: as the user's, by hand.
        content = [events.ItemContent(type="input_text", text=text)]
        item = events.ConversationItem(type="message", role="user", content=content)
        await service.send_client_event(events.ConversationItemCreateEvent(item=item))
        await service.send_client_event(events.ResponseCreateEvent())

    worker = PipelineWorker(Pipeline([ear, pair.user(), service, mouth, pair.assistant()]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await until(lambda: "session.update" in service.sent)

    await ear.say(sound)
    await until(lambda: len(service.responses) >= 1)
    found = {"turn": service.responses[0], "sound": mouth.sound}

    await ask("Spell the word elephant.")
    await until(lambda: len(service.speaking) >= 2)
    await ear.say(sound)
    await until(lambda: len(service.responses) >= 3)
    found |= {"after": service.responses[2], "truncated": service.truncated, "interruptions": mouth.interruptions}

    # Only now: tiny-omni's questions are answered without functions, whose description is not of its world.
    calling = events.SessionProperties(tools=[WEATHER], tool_choice="required")
    await service.send_client_event(events.SessionUpdateEvent(session=calling))
    await ask("What is the weather?")
    await until(lambda: len(service.responses) >= 5)
    found["called"], found["answered"] = (response["output"] for response in service.responses[3:5])
    await worker.queue_frame(EndFrame())
    await running
    print(json.dumps(found | {"calls": called, "errors": ear.errors, "sent": service.sent}))


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))
