"""What a person does with the voice page, in Chromium with a recording as microphone; what is seen, as JSON.

Runs in the environment `browser`: page_session.py URL DEED CHROMIUM MICROPHONE.wav
"""

import asyncio
import json
import sys

from playwright.async_api import async_playwright

SECONDS = 20
FLAGS = (
    "--disable-gpu",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
PICTURE = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 3000, height: 1000 });
  canvas.getContext("2d").fillRect(0, 0, 1500, 1000);
  const file = new File([await new Promise((done) => canvas.toBlob(done))], "half.png", { type: "image/png" });
  const carried = new DataTransfer();
  carried.items.add(file);
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""
WATCH = """() => {
  window.reports = [];
  document.addEventListener("securitypolicyviolation", (event) => window.reports.push(event.violatedDirective));
}"""
FIREFOX = """() => {
  const open = AudioContext.prototype.createMediaStreamSource;
  AudioContext.prototype.createMediaStreamSource = function (stream) {
    if (this.sampleRate === 24000) throw new DOMException("another rate", "NotSupportedError");
    return open.call(this, stream);
  };
}"""


async def state(page, name):
    await page.wait_for_selector(f"body[data-state={name}]", timeout=SECONDS * 1000)


async def interrupted(page):
    """A spoken question, and a second one into its answer."""
    await page.click("#orb")
    await state(page, "speaking")
    await state(page, "hearing")
    await page.wait_for_selector("#log .assistant.cut")
    await state(page, "speaking")
    await page.wait_for_timeout(300)


async def asked(page):
    """One spoken question, heard to the end of its answer."""
    await page.click("#orb")
    await state(page, "speaking")
    await state(page, "listening")


async def held(page):
    """Hold to talk: a press that is too short, then one with the space bar for a second; then the answer is stopped."""
    await page.click("#hold")
    await page.click("#orb")
    await state(page, "hold")
    await page.keyboard.down(" ")
    await page.keyboard.up(" ")
    await state(page, "hold")
    await page.keyboard.down(" ")
    await page.wait_for_timeout(1000)
    await page.keyboard.up(" ")
    await state(page, "speaking")
    await page.wait_for_timeout(700)
    await page.keyboard.press("Escape")
    await page.wait_for_selector("#log .assistant.cut")


async def typed(page):
    """A picture is dropped, a message typed to it; then one into the answer; then the conversation ends."""
    await page.evaluate(PICTURE)
    await page.wait_for_selector("#tray img")
    await page.fill("#words", "What is this?")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("body[data-state=speaking], #log .assistant", timeout=SECONDS * 1000)
    await page.wait_for_timeout(600)
    await page.fill("#words", "What is two plus three?")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("#log .assistant p >> nth=1", timeout=SECONDS * 1000)
    await page.wait_for_timeout(1500)
    if await page.is_visible("#stop"):
        await page.click("#stop")
    await page.click("#end")
    await page.wait_for_selector("body[data-link=off]")


async def muted(page):
    """Muted before the question; then settings are changed; then the tab is left."""
    await page.click("#orb")
    await state(page, "listening")
    await page.keyboard.press("m")
    await state(page, "muted")
    await page.wait_for_timeout(3500)
    await page.click("#settings")
    await page.select_option("#voice", "rms")
    await page.click("text=Eagerly")
    await page.fill("#instructions", "Be brief.")
    await page.keyboard.press("Escape")
    await page.wait_for_timeout(200)
    await page.reload()
    await page.wait_for_selector("#tries button")


async def tool(page):
    """A question that the clock answers."""
    await page.click("#settings")
    await page.check("#clock")
    await page.click("[data-close]")
    await page.fill("#words", "What time is it in Tokyo?")
    await page.click("#send")
    await page.wait_for_selector("#log .tool")
    await state(page, "speaking")


async def chat(page):
    """A typed question, by one of the buttons."""
    await page.click("#tries button >> nth=0")
    await page.wait_for_selector("#log .assistant p", timeout=SECONDS * 1000)
    await page.wait_for_timeout(500)


async def refused(page):
    """The orb is pressed, and the server does not want to."""
    await page.click("#orb")
    await page.wait_for_selector("#error:not([hidden])")


async def with_key(page):
    """A server that wants a key: a wrong one, then the right one."""
    await page.wait_for_selector("#drawer[open]")
    for key in ("wrong", "sk-right"):
        await page.fill("#key", key)
        await page.keyboard.press("Tab")
        await page.wait_for_timeout(500)
    await page.keyboard.press("Escape")
    await chat(page)


async def snapshot(page):
    """A picture is taken with the camera, another and taken out again, and one is sent without a word."""
    for _ in range(2):
        await page.click("#snap")
        await page.wait_for_selector("#camera[open]")
        await page.wait_for_timeout(1500)
        await page.click("#shoot")
        await page.wait_for_selector("#camera:not([open])", state="attached")
    await page.click("#tray button >> nth=0")
    await page.click("#send")
    await page.wait_for_selector("#log .assistant p")


DEEDS = {one.__name__: one for one in (interrupted, asked, held, typed, muted, tool, chat, refused, with_key, snapshot)}


async def seen(page):
    """The page as it is."""
    return await page.evaluate(
        """() => ({
          turns: [...document.querySelectorAll("#log li")].map((one) => ({
            kind: one.className, text: one.querySelector("p")?.textContent ?? one.textContent,
            heard: one.querySelector("p span")?.textContent ?? "", note: one.querySelector("small")?.textContent ?? "",
            pictures: [...one.querySelectorAll("img")].map((picture) => [picture.naturalWidth, picture.naturalHeight]),
          })),
          state: document.body.dataset.state, status: document.querySelector("#status").textContent,
          hint: document.querySelector("#hint").textContent, voice: document.querySelector("#voice").value,
          error: document.querySelector("#error").hidden ? "" : document.querySelector("#error span").textContent,
          numbers: [...document.querySelectorAll("#numbers dd")].map((one) => one.textContent),
          reports: window.reports, secure: window.isSecureContext,
          wide: document.documentElement.scrollWidth > innerWidth,
        })"""
    )


async def session(url, deed, chromium, microphone):
    said = []
    async with async_playwright() as playwright:
        files = [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
        if deed == "insecure":
            files.append("--host-resolver-rules=MAP lan.test 127.0.0.1")
            url, deed = url.replace("127.0.0.1", "lan.test"), "chat"
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *files])
        page = await browser.new_page(viewport={"width": 360, "height": 740})
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.add_init_script(f"({WATCH})()")
        if deed == "firefox":
            await page.add_init_script(f"({FIREFOX})()")
            deed = "asked"
        await page.goto(url)
        await page.wait_for_selector("#tries button")
        await page.wait_for_selector("#name:not(:empty), #drawer[open]", state="attached")
        await DEEDS[deed](page)
        found = await seen(page) | {"console": said}
        await browser.close()
    print(json.dumps(found))


asyncio.run(session(*sys.argv[1:]))
