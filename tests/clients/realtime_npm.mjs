// What @openai/agents-realtime (npm) does with a session, as JSON. node realtime_npm.mjs URL SOUND, in the folder with
// node_modules. SOUND: raw mono int16 at 24 kHz, a question and the silence after it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(pathToFileURL(process.cwd() + "/"));
const { RealtimeAgent, RealtimeSession, tool } = require("@openai/agents-realtime");
const { z } = require("zod");
const [, , url, path] = process.argv;
const sound = readFileSync(path);
const BLOCK = 1920;  // bytes: 40 ms
const found = { raw: [], errors: [], interrupted: 0, sound: 0, calls: 0 };

const getWeather = tool({
  name: "get_weather",
  description: "The weather.",
  parameters: z.object({}),
  execute: async () => {
    found.calls += 1;
    session.transport.sendEvent({ type: "session.update", session: { type: "realtime", tool_choice: "none" } });
    return "rain";
  },
});
const agent = new RealtimeAgent({ name: "lion", instructions: "", tools: [getWeather] });
const session = new RealtimeSession(agent, { transport: "websocket", model: "tiny-omni", tracingDisabled: true });
session.on("error", (error) => found.errors.push(JSON.stringify(error)));
session.on("audio_interrupted", () => (found.interrupted += 1));
session.on("audio", (event) => (found.sound += event.data.byteLength));
session.on("transport_event", (event) => found.raw.push(event));

const of = (type) => found.raw.filter((event) => event.type === type);
async function until(reached) {
  for (const end = Date.now() + 60000; !reached(); ) {
    if (Date.now() > end) throw new Error(`not reached: ${reached}; ${found.errors}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
async function say() {
  for (let start = 0; start < sound.length; start += BLOCK) {
    const block = sound.subarray(start, start + BLOCK);
    session.sendAudio(block.buffer.slice(block.byteOffset, block.byteOffset + block.length));
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
}

await session.connect({ apiKey: "none", url: `${url.replace("http:", "ws:")}/v1/realtime?model=tiny-omni` });
// tiny-omni's questions are answered without functions: their description is not of its world.
const described = () => of("session.updated").find((event) => event.session.tools.length > 0);
await until(described);
const { tools } = described().session;
session.transport.sendEvent({ type: "session.update", session: { type: "realtime", tools: [] } });
await say();
await until(() => of("response.done").length >= 1);
found.turn = of("response.done")[0].response;

const before = found.sound;
session.sendMessage("Spell the word elephant.");
await until(() => found.sound > before);
await say();
await until(() => of("response.done").length >= 3);
found.truncated = of("conversation.item.truncated");
found.after = of("response.done")[2].response;

session.transport.sendEvent({ type: "session.update", session: { type: "realtime", tools, tool_choice: "required" } });
session.sendMessage("What is the weather?");
await until(() => of("response.done").length >= 5);
found.called = of("response.done")[3].response.output;
found.answered = of("response.done")[4].response.output;
session.close();
process.stdout.write(JSON.stringify(found), () => process.exit(0));
