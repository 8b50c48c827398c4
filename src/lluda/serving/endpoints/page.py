"""GET /: the page to speak on (serving/page/page.html)."""

from __future__ import annotations

import secrets
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from lluda.serving import page as package
from lluda.serving.http.route import ApiRoute

_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; connect-src 'self'; "
    "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only what the page itself brings runs; its worklets are blobs, which fall under script-src."""

_HEADERS = {
    "cache-control": "no-store",  # the nonce is good for one answer
    "permissions-policy": "microphone=(self), camera=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def page(_: Request) -> Response:
    """The page, before the model is loaded too: it waits for that by itself. Needs no key: it asks for one."""
    nonce = secrets.token_urlsafe(16)
    headers = _HEADERS | {"content-security-policy": _POLICY.format(nonce=nonce)}
    return Response(_template().replace("{{nonce}}", nonce), headers=headers, media_type="text/html")


@cache
def _template() -> str:
    return (files(package) / "page.html").read_text(encoding="utf-8")


ROUTES = (ApiRoute("GET", "/", page, summary="The page to speak on", answers=("text/html",)),)
