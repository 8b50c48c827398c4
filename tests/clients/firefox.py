"""Firefox over WebDriver BiDi, which it speaks itself: a page opened in it, what is done there and what it says.

Its microphone is a tone that never ends: speech, where the page does not mute it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.clients.environments import variables

SECONDS = 60.0
NAMES = ("firefox-esr", "firefox")
_PREFERENCES = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.autoplay.default": 0,
    "media.cubeb.sandbox": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.safebrowsing.downloads.remote.enabled": False,
}


class FirefoxPage:
    """One page of ``width`` pixels. ``console``: errors and warnings that it logged so far."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, count(1)
        self.console: list[str] = []
        self._command("session.new", capabilities={})
        self._command("session.subscribe", events=["log.entryAdded"])
        self._context = self._command("browsingContext.getTree")["contexts"][0]["context"]

    def open(self, url: str, width: int, height: int) -> None:
        """Go there, and wait until it is loaded."""
        self._command("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})
        self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives, as if a person had asked for it."""
        wrapped = f"Promise.resolve({expression}).then((value) => JSON.stringify(value ?? null))"
        found = self._command(
            "script.evaluate",
            expression=wrapped,
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])

    def wait(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < end, f"{expression} did not become true; {self.console}"
            time.sleep(0.05)

    def wait_state(self, name: str) -> None:
        """Until the page is listening, hearing, speaking, muted, …"""
        self.wait(f"document.body.dataset.state === {name!r}")

    def click(self, selector: str) -> None:
        """An element, as a person does."""
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def _command(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=SECONDS))
            if message.get("method") == "log.entryAdded":
                entry = message["params"]
                if entry["level"] in ("error", "warn"):
                    self.console.append(f"{entry['level']}: {entry['text']}")
            elif message.get("id") == number:
                assert message["type"] == "success", message
                return message["result"]


@contextmanager
def silent_loudspeaker(folder: Path) -> Iterator[dict[str, str]]:
    """A loudspeaker that nobody hears, without which Firefox's clock of sound stands still: the environment variables
    of who is to play to it. ``folder``: for its socket."""
    modules = ("--load=module-null-sink", "--load=module-native-protocol-unix")
    where = {"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *modules]
    with subprocess.Popen(command, env=variables(**where), stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + SECONDS
            while not (folder / "pulse" / "native").exists():
                assert process.poll() is None and time.monotonic() < end, "pulseaudio does not start"
                time.sleep(0.05)
            yield where
        finally:
            process.terminate()


@contextmanager
def firefox_page(path: str, folder: Path, where: dict[str, str]) -> Iterator[FirefoxPage]:
    """A page in a Firefox of its own, whose profile is in ``folder``; ``where``: further environment variables."""
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _PREFERENCES.items()]
    (folder / "user.js").write_text("\n".join(lines))
    command = [path, "--headless", "--remote-debugging-port", "0", "--profile", str(folder), "--no-remote"]
    with subprocess.Popen(command, env=variables(**where), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = next(match for line in process.stderr if (match := re.search(r"listening on (ws://\S+)", line)))
            with connect(f"{found[1]}/session", max_size=1 << 24, compression=None) as connection:
                yield FirefoxPage(connection)
        finally:
            process.terminate()
