// What openai (npm) does with a server, as JSON. node npm_session.mjs URL, in the folder with node_modules.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(pathToFileURL(process.cwd() + "/"));
const OpenAI = require("openai").default;
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "tiny-omni";
const messages = [{ role: "user", content: "What is two plus three?" }];
const found = { content: "", data: 0, transcript: "" };

found.answer = (await client.chat.completions.create({ model, messages })).choices[0].message.content;
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  found.content += chunk.choices[0].delta.content ?? "";

const parameters = { type: "object", properties: { city: { enum: ["Oslo", "Rome"] } }, required: ["city"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const asked = { model, messages, tools, tool_choice: "required", parallel_tool_calls: false };
const runner = client.chat.completions.stream(asked);
const final = await runner.finalChatCompletion();
found.call = final.choices[0].message.tool_calls[0].function;

const audio = { voice: "alloy", format: "pcm16" };
const spoken = await client.chat.completions.create({ model, messages, modalities: ["text", "audio"], audio, stream: true });
for await (const chunk of spoken) {
  const sound = chunk.choices[0]?.delta.audio;
  found.data += Buffer.from(sound?.data ?? "", "base64").length;
  found.transcript += sound?.transcript ?? "";
}

found.response = (await client.responses.create({ model, input: "What is two plus three?" })).output_text;
found.models = (await client.models.list()).data.map((one) => one.id);
try {
  await client.chat.completions.create({ model, messages, temperature: 9 });
} catch (error) {
  found.error = [error.constructor.name, error.status, error.param];
}
console.log(JSON.stringify(found));
