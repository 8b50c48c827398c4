"""A chat page of chainlit over the openai client, as people write it: models to choose from, pictures, folded thoughts.

Runs in chainlit's environment; OPENAI_BASE_URL is the server's.
"""

import base64
import json
from pathlib import Path

import chainlit as cl
from chainlit.input_widget import Select, TextInput
from openai import AsyncOpenAI

client = AsyncOpenAI(max_retries=0)


@cl.on_chat_start
async def start():
    names = [model.id async for model in client.models.list()]
    fields = TextInput(id="fields", label="More fields of the request, as JSON", initial="{}")
    await cl.ChatSettings([Select(id="model", label="Model", values=names, initial_index=0), fields]).send()
    cl.user_session.set("messages", [])


@cl.on_message
async def on_message(message):
    content = [{"type": "text", "text": message.content}]
    for element in message.elements:
        data = base64.b64encode(Path(element.path).read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:{element.mime};base64,{data}"}})
    messages = cl.user_session.get("messages")
    messages.append({"role": "user", "content": content})
    settings = cl.user_session.get("chat_settings")
    asked = {"model": settings["model"], "messages": messages, **json.loads(settings["fields"])}
    thoughts, answer = cl.Step(name="Thoughts", type="llm"), cl.Message("")
    options = {"include_usage": True}
    async for chunk in await client.chat.completions.create(**asked, stream=True, stream_options=options):
        if chunk.usage:
            answer.metadata = {"image_tokens": chunk.usage.prompt_tokens_details.image_tokens}
            continue
        delta = chunk.choices[0].delta
        if thought := getattr(delta, "reasoning_content", None):
            await thoughts.stream_token(thought)
        if delta.content:
            await answer.stream_token(delta.content)
    if thoughts.output:
        await thoughts.send()
    await answer.send()
    messages.append({"role": "assistant", "content": answer.content})
