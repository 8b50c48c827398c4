"""OpenAI's parts with media become lluda's, with their contents."""

import asyncio
import base64

import pytest

from lluda.serving.http.errors import ApiError
from lluda.serving.limits import Limits
from lluda.serving.media.fetch import Fetcher
from lluda.serving.media.parts import with_media

TEXT = base64.b64encode(b"content").decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}", "detail": "low"}}
SOUND = {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}
VIDEO = {
    "type": "video_url",
    "video_url": {"url": f"data:video/mp4;base64,{TEXT}", "fps": 2.0, "use_audio_in_video": True},
}


class FakeFetcher(Fetcher):
    def __init__(self):
        super().__init__((), 1, 1)
        self.asked = []

    async def fetch(self, urls):
        self.asked.append(list(urls))
        return [url.encode() for url, _ in urls]


def run(messages, limits=None, fetcher=None):
    async def in_worker(function, *arguments):
        return await asyncio.to_thread(function, *arguments)

    return asyncio.run(with_media(messages, limits or Limits(), fetcher or FakeFetcher(), in_worker))


def test_every_kind_of_part():
    fetcher = FakeFetcher()
    messages = [
        {"role": "system", "content": "text"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE, SOUND, VIDEO]},
        {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "https://a.org/b"}}], "name": "x"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": f"data:;base64,{TEXT}"}}]},
    ]
    assert run(messages, fetcher=fetcher) == [
        {"role": "system", "content": "text"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "image": b"content"},
                {"type": "audio", "audio": b"content"},
                {"type": "video", "video": b"content", "fps": 2.0, "use_audio": True},
            ],
        },
        {"role": "user", "content": [{"type": "audio", "audio": b"https://a.org/b"}], "name": "x"},
        {"role": "user", "content": [{"type": "audio", "audio": b"content"}]},
    ]
    assert fetcher.asked == [[("https://a.org/b", "messages[2].content[0].audio_url.url")]]
    assert messages[1]["content"][1] is IMAGE, "what was given is left as it was"


@pytest.mark.parametrize(("part", "limit"), [(IMAGE, "images"), (SOUND, "sounds"), (VIDEO, "videos")])
def test_one_medium_more_than_a_request_may_have(part, limit):
    """D16: over all messages together; nothing is decoded or fetched then."""
    most = getattr(Limits(), limit)
    messages = [{"role": "user", "content": [part]} for _ in range(most)]
    assert len(run(messages)) == most
    with pytest.raises(ApiError, match=f"may have {most} of kind") as refused:
        run([*messages, {"role": "user", "content": [{"type": "text", "text": "x"}, part]}])
    assert refused.value.param.startswith(f"messages[{most}].content[1].")


def test_what_came_with_the_request_is_checked_before_anything_is_fetched():
    fetcher = FakeFetcher()
    bad = {"type": "input_audio", "input_audio": {"data": "no base64"}}
    distant = {"type": "image_url", "image_url": {"url": "https://a.org/b"}}
    with pytest.raises(ApiError, match=r"messages\[0\].content\[1\].input_audio.data is not base64"):
        run([{"role": "user", "content": [distant, bad]}], fetcher=fetcher)
    assert fetcher.asked == []
