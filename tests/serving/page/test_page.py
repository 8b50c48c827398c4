"""The page as it is sent: one file that brings all it needs, and may do nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

from lluda.serving import page
from tests.serving.running import RunningServer

SOURCE = (files(page) / "page.html").read_text()


class Reader(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def test_one_file_of_a_size_to_be_read() -> None:
    assert len(SOURCE.splitlines()) <= 600
    reader = Reader(SOURCE)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        # A policy without 'unsafe-inline' would drop these without a word.
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)


def test_text_is_never_read_as_markup() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", SOURCE)


def test_what_is_pressed_or_filled_in_has_a_name() -> None:
    """For those who do not see it; a text between the tags or a label counts."""
    labelled = set(re.findall(r'<label[^>]* for="(\w+)"', SOURCE))
    for found in re.finditer(r"<(button|input|select|textarea)([^>]*)>(.*?)(?=<button|</button|<input|\n)", SOURCE):
        attributes, inside = found[2], re.sub(r"<[^>]*>", "", found[3]).strip()
        name = re.search(r'id="(\w+)"', attributes)
        if "hidden>" not in found[0] and "hidden" not in attributes.split():
            assert "aria-label=" in attributes or inside or (name and name[1] in labelled), found[0]


def test_headers(server: RunningServer) -> None:
    first, second = server.get("/"), server.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["permissions-policy"] == "microphone=(self), camera=(self)"
    assert first.headers["x-content-type-options"] == "nosniff"
    policies = [answer.headers["content-security-policy"] for answer in (first, second)]
    nonces = [re.findall(r"'nonce-([\w-]{20,})'", policy) for policy in policies]
    assert len({*nonces[0], *nonces[1]}) == 2 and len(nonces[0]) == 2
    for answer, policy, (nonce, _) in zip((first, second), policies, nonces, strict=True):
        assert policy == (
            f"default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert answer.text == SOURCE.replace("{{nonce}}", nonce)
        tags = Reader(answer.text).tags
        assert [one["nonce"] for tag, one in tags if tag in ("script", "style")] == [nonce] * 2
