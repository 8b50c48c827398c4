"""What openai-agents does with a server, as JSON. Runs in its environment: agents_session.py URL."""

import asyncio
import json
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

QUESTION = "What is two plus three?"
called = []


@function_tool
def get_weather(city: Literal["Oslo", "Rome"]) -> str:
    """The weather of a city."""
    called.append(city)
    return "rain"


async def session(kind, client):
    model = kind(model="tiny-omni", openai_client=client)
    agent = Agent(name="plain", instructions="Be short.", model=model)
    settings = ModelSettings(tool_choice="get_weather", parallel_tool_calls=False, max_tokens=200)
    caller = Agent(name="caller", model=model, tools=[get_weather], model_settings=settings)
    found = {"answer": (await Runner.run(agent, QUESTION)).final_output}
    streamed = Runner.run_streamed(agent, QUESTION)
    found["events"] = [event.type async for event in streamed.stream_events()]
    found["streamed"] = streamed.final_output
    found["items"] = [type(item).__name__ for item in (await Runner.run(caller, "Weather?")).new_items]
    streamed = Runner.run_streamed(caller, "Weather?")
    async for _ in streamed.stream_events():
        pass
    found["streamed items"] = [type(item).__name__ for item in streamed.new_items]
    return found


async def main(url):
    set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = {
            kind.__name__: await session(kind, client) for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel)
        }
    print(json.dumps({"called": called, "sessions": found}))


asyncio.run(main(sys.argv[1]))
