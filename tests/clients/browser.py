"""Chromium, as the scripts of the environment `browser` open it."""

import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def is_fault(message, url):
    """Of the console's messages."""
    return message.type == "error" and message.location["url"].startswith(url)


@contextmanager
def open_page(url, faults):
    """A page of ``url``; errors of its scripts and in its console are added to ``faults``, but for what it wants from
    other servers (fonts), which need not be there."""
    path = next(found for name in NAMES if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: faults.append(message.text) if is_fault(message, url) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
