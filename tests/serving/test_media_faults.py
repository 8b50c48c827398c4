"""Family D of the bad requests: media in a chat through HTTP, each row with a healthy request after it.

What decoders make of damaged files is tested where they are (tests/faults); here is what a client is told, and that the
server is as it was. D5 and D6 to D9 are in tests/serving/media (the fetch guard needs no model) and below; D11 is in
test_transcriptions.py too.
"""

import asyncio
import base64
import io
import os
import signal
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import numpy as np
import psutil
import pytest
from PIL import Image

from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.decoding.media_decoder import DecodingJob
from lluda.outputs.encoded_audio import encoded_audio
from lluda.serving.media.fetch import Fetcher
from tests.faults.test_vision_faults import image_bytes, png_header
from tests.inputs.media.synthetic_video import grey_frames, write_video
from tests.serving.asking import wait_for
from tests.serving.oracle import check_error, check_well

KEYS = {"image": "image_url", "video": "video_url", "audio": "audio_url"}
TONE = (np.sin(np.arange(16000) / 5) / 3).astype(np.float32)


@pytest.fixture(autouse=True)
def well(server):
    yield
    check_well(server)


def data_url(kind, content, subtype="png"):
    return f"data:{kind}/{subtype};base64,{base64.b64encode(content).decode()}"


def part(kind, url, **options):
    return {"type": KEYS[kind], KEYS[kind]: {"url": url, **options}}


def chat(server, *parts):
    body = {
        "model": "tiny-omni",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "what is this"}, *parts]}],
        "max_tokens": 1,
    }
    return server.post("/v1/chat/completions", body)


def show(server, kind, content, **options):
    return chat(server, part(kind, data_url(kind, content), **options))


def refused(server, kind, content, code=("invalid_media", "invalid_value"), **options):
    error = check_error(show(server, kind, content, **options), 400)
    assert error["code"] in code, error
    assert error["param"].startswith("messages[0].content[1]"), error
    return error["message"]


def tokens(response, kind="image"):
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"][f"{kind}_tokens"]


def animation(form, count=3):
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


FITS = b"SIMPLE  =                    T".ljust(2880)
NO_PICTURES = {
    "text": b"hello",
    "html": b"<!doctype html><p>hi",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.7\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "fits": FITS,
    "psd": b"8BPS\x00\x01" + bytes(100),
    "heic": b"\x00\x00\x00\x18ftypheic" + bytes(100),
    "noise": np.random.default_rng(1).bytes(3000),
    "signature": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=NO_PICTURES)
def test_d1_what_is_no_picture(server, content):
    refused(server, "image", content, "invalid_media")


def test_d1_nothing_at_all(server):
    check_error(chat(server, part("image", "data:image/png;base64,")), 400, "invalid_media")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000"])
def test_d1_what_a_picture_is_its_bytes_say_whatever_it_is_called(server, form):
    """Every one is either a decoder on the list, or refused."""
    response = show(server, "image", image_bytes(form))
    if response.status_code != 200:
        check_error(response, 400, "invalid_media")


@pytest.mark.parametrize(
    "size", [(13_000, 13_000), (20_000, 20_000), (1, 200_000_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_d2_bombs_are_refused_by_their_headers(server, size):
    process = psutil.Process()
    before = process.memory_info().rss
    refused(server, "image", png_header(*size))
    assert process.memory_info().rss - before < 100_000_000


@pytest.mark.parametrize(
    ("size", "limit"), [((7_072, 7_071), "50000000"), ((16_385, 100), "16384"), ((100, 16_385), "16384")]
)
def test_d2_the_server_takes_less_than_the_decoder(server, size, limit):
    assert limit in refused(server, "image", png_header(*size), "invalid_value")


def test_d2_a_jpeg_that_claims_65535_squared(server):
    content = bytearray(image_bytes("JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    refused(server, "image", bytes(content))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_d2_an_animation_is_its_first_frame_or_refused(server, form):
    response = show(server, "image", animation(form, 300))
    if response.status_code != 200:
        check_error(response, 400)


@pytest.mark.parametrize(
    ("size", "taken"),
    [((1, 1), True), ((1, 200), True), ((3, 3), True), ((27, 28), True), ((400, 2), True), ((402, 2), False)],
)
def test_d3_small_and_narrow_pictures(server, size, taken):
    content = image_bytes("PNG", Image.new("RGB", size, (9, 99, 199)))
    if not taken:
        assert "200 times" in refused(server, "image", content)
        return
    assert tokens(show(server, "image", content)) >= 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.55, 0.8, 0.95])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_d4_cut_off(server, form, share):
    content = image_bytes(form)
    refused(server, "image", content[: int(len(content) * share)], "invalid_media")


def test_d4_damaged(server):
    content = bytearray(image_bytes("PNG"))
    content[content.index(b"IDAT") + 30] ^= 0xFF
    refused(server, "image", bytes(content), "invalid_media")
    wrong_checksum = bytearray(image_bytes("PNG"))
    wrong_checksum[29] ^= 1
    refused(server, "image", bytes(wrong_checksum), "invalid_media")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "CMYK", "I;16", "RGBA", "F"])
def test_d4_kinds_of_pixels(server, mode):
    source = Image.new("RGB", (64, 48), (200, 30, 30))
    image = Image.new("I;16", (64, 48)) if mode == "I;16" else source.convert(mode)
    form = "TIFF" if mode in ("CMYK", "F", "PA") else "PNG"
    if mode == "PA":
        image = image.convert("LA")
    response = show(server, "image", image_bytes(form, image))
    if response.status_code != 200:
        check_error(response, 400, "invalid_media")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_d4_orientation_is_applied(server, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = image_bytes("JPEG", Image.new("RGB", (256, 64)))
    turned = image_bytes("JPEG", Image.new("RGB", (256, 64)), exif=exif)
    assert tokens(show(server, "image", turned)) == tokens(show(server, "image", upright))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:image/png,%89PNG",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,AAA",
        "data:image/png;base64,__--",
        "data:image/png;base64,AAAA AAAA",
        "data:image/jpeg;base64," + "AAAA," * 5000,
    ],
)
def test_d5_data_urls(server, url):
    error = check_error(chat(server, part("image", url)), 400, "invalid_media")
    assert error["param"] == "messages[0].content[1].image_url.url"


def test_d5_more_than_a_body_may_have(server):
    check_error(chat(server, part("image", "data:image/png;base64," + "A" * (65 << 20))), 413, "request_too_large")


@pytest.mark.parametrize("kind", KEYS)
def test_d6_addresses_while_fetching_is_off(server, kind):
    for url in ("http://example.org/a", "https://127.0.0.1/a", "HTTP://[::1]/"):
        error = check_error(chat(server, part(kind, url)), 400, "url_fetch_disabled")
        assert error["param"] == f"messages[0].content[1].{KEYS[kind]}.url"


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "/dev/zero", "/proc/self/environ", "a.png", ""]
)
def test_d9_files_of_the_server_are_never_read(server, kind, url, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *given, **named: opened.append(path) or real(path, *given, **named))
    response = chat(server, part(kind, url))
    assert url not in opened
    check_error(response, 400)


def wav(rate=16000, channels=1, bits=16, samples=b"", *, kind=1, size=None, form=16):
    block = channels * bits // 8
    head = struct.pack(
        "<4sIHHIIHH", b"fmt ", form, kind, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits
    )
    size = len(samples) if size is None else size
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(samples), b"WAVE") + head + struct.pack("<4sI", b"data", size) + samples
    )


SECOND = (np.sin(np.arange(16000) / 5) * 9000).astype("<i2").tobytes()
BAD_SOUND = {
    "no samples": wav(),
    "riff only": b"RIFF\x04\x00\x00\x00WAVE",
    "rate 0": wav(0, samples=SECOND),
    "rate 1": wav(1, samples=SECOND),
    "rate 2^31-1": wav(2**31 - 1, samples=SECOND),
    "rate 2^32-1": wav(2**32 - 1, samples=SECOND),
    "0 channels": wav(channels=0, samples=SECOND),
    "255 channels": wav(channels=255, samples=SECOND),
    "65535 channels": wav(channels=65535, samples=SECOND),
    "0 bits": wav(bits=0, samples=SECOND),
    "not a number": wav(bits=32, kind=3, samples=np.full(16000, np.nan, "<f4").tobytes()),
    "infinite": wav(bits=32, kind=3, samples=np.full(16000, np.inf, "<f4").tobytes()),
    "1e30": wav(bits=32, kind=3, samples=np.full(16000, 1e30, "<f4").tobytes()),
    "promises more": wav(samples=SECOND, size=1_000_000),
    "text": b"hello, this is text",
    "page": b"<html></html>",
    "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
}


@pytest.mark.parametrize("content", BAD_SOUND.values(), ids=BAD_SOUND)
def test_d10_what_is_no_sound(server, content):
    refused(server, "audio", content)


GOOD_SOUND = {
    "4 GB promised by a stream": wav(samples=SECOND, size=0xFFFFFFFF),
    "constant": wav(samples=np.full(16000, 8000, "<i2").tobytes()),
    "square of full scale": wav(samples=np.where(np.arange(16000) % 80 < 40, 32767, -32768).astype("<i2").tobytes()),
    "64 bits": wav(bits=64, kind=3, samples=TONE.astype("<f8").tobytes()),
    "silence": wav(samples=bytes(32000)),
}


@pytest.mark.parametrize("content", GOOD_SOUND.values(), ids=GOOD_SOUND)
def test_d10_odd_sound_that_is_taken(server, content):
    assert tokens(show(server, "audio", content), "audio") == 13


EITHER_SOUND = {
    "one sample": wav(samples=b"\x01\x02"),
    "half a sample": wav(samples=SECOND + b"\x01"),
    "17 bits": wav(bits=17, samples=SECOND),
    "1000 tags before an mp3": (b"ID3\x03\x00\x00\x00\x00\x00\x0a" + bytes(10)) * 1000
    + encoded_audio("mp3", 16000, TONE),
}


@pytest.mark.parametrize("content", EITHER_SOUND.values(), ids=EITHER_SOUND)
def test_d10_sound_that_decoders_may_take_or_not(server, content):
    response = show(server, "audio", content)
    if response.status_code != 200:
        check_error(response, 400)


@pytest.mark.parametrize("format", ["flac", "aac"])
def test_d11_more_sound_than_the_context_holds(server, format):
    """Found by the header, or as soon as it is too much."""
    content = encoded_audio(format, 8000, np.zeros(8000 * 400, np.float32))
    error = check_error(show(server, "audio", content), 400, "context_length_exceeded")
    assert "4096" in error["message"]


def test_d11_longer_than_a_server_takes(server, videos, monkeypatch):
    media = server.model.media
    assert (media.audio_limits.max_seconds, media.vision_limits.max_seconds) == (2400, 600)
    monkeypatch.setattr(media, "audio_limits", replace(media.audio_limits, max_seconds=2))
    monkeypatch.setattr(media, "vision_limits", replace(media.vision_limits, max_seconds=0.1))
    sound = encoded_audio("flac", 8000, np.zeros(8000 * 3, np.float32))
    assert "exceed the 2 s" in refused(server, "audio", sound, "invalid_value")
    assert "exceed the 0.1 s" in refused(server, "video", videos["5 frames"], "invalid_value")


def test_a_broken_template_is_not_the_media_s_fault(server, monkeypatch):
    broken = ChatTemplate("<|nothing|>{{ messages[0].role }}", Path("chat_template.jinja"))
    with monkeypatch.context() as patch, closing(broken):
        patch.setattr(server.model, "chat_template", broken)
        check_error(chat(server), 500, "internal_error")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")

    def made(name, count, size=(32, 48), **options):
        return write_video(folder / name, grey_frames(count, *size), **options).read_bytes()

    found = {
        "1 frame": made("one.mkv", 1),
        "5 frames": made("odd.mkv", 5),
        "2 by 2": made("tiny.mkv", 4, (2, 2)),
        "1000 fps": made("fast.mkv", 40, rate=1000),
        "frames of one time": made("same.mkv", 4, times=[0, 10, 10, 500]),
        "uneven": made("uneven.mkv", 4, times=[0, 7, 900, 901]),
        "with sound": made("sound.mkv", 25, sound=True),
    }
    found["cut off"] = found["5 frames"][: len(found["5 frames"]) // 2]
    return found


@pytest.mark.parametrize("name", ["1 frame", "5 frames", "2 by 2", "1000 fps", "frames of one time", "uneven"])
def test_d13_odd_videos(server, videos, name):
    response = show(server, "video", videos[name])
    if response.status_code != 200:
        check_error(response, 400)
    else:
        assert tokens(response) >= 1


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"hello, no video", {}),
        (encoded_audio("wav", 16000, TONE), {}),
        (image_bytes("PNG"), {}),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(50), {}),
    ],
)
def test_d13_what_is_no_video(server, content, options):
    refused(server, "video", content, **options)


def test_d13_a_video_cut_off_without_sound_and_out_of_range(server, videos):
    refused(server, "video", videos["cut off"])
    refused(server, "video", videos["5 frames"], use_audio_in_video=True)
    for fps in (0, -1, 1e9, "2"):
        error = check_error(show(server, "video", videos["5 frames"], fps=fps), 400)
        assert error["param"].endswith("fps")


def test_d13_the_sound_of_a_video(server, videos):
    without = show(server, "video", videos["with sound"], fps=2)
    with_sound = show(server, "video", videos["with sound"], fps=2, use_audio_in_video=True)
    assert tokens(without, "audio") == 0
    assert tokens(with_sound, "audio") == 13
    assert tokens(with_sound) == tokens(without)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=["crash", "out of memory"])
def test_d14_a_decoder_that_dies(server, monkeypatch, number):
    ask = DecodingJob._ask

    def die(self, message, descriptor=None):
        os.kill(self._worker.pid, number)
        return ask(self, message, descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(DecodingJob, "_ask", die)
        refused(server, "image", image_bytes("PNG"), "invalid_media")
    assert tokens(show(server, "image", image_bytes("PNG"))) >= 1


def test_d14_a_decoder_that_hangs(server, monkeypatch):
    ask = DecodingJob._ask

    def hang(self, message, descriptor=None):
        os.kill(self._worker.pid, signal.SIGSTOP)
        return ask(self, message, descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(DecodingJob, "_ask", hang)
        patched.setattr(DecodingJob, "_answer_seconds", 0.3)
        refused(server, "audio", encoded_audio("wav", 16000, TONE), "invalid_media")
    assert tokens(show(server, "audio", encoded_audio("wav", 16000, TONE)), "audio") == 13


def test_d15_the_same_bytes_under_another_name_and_the_same_pixels_in_another_shape(server):
    """No cache mistakes one for the other: each answers as it does on its own."""
    content = encoded_audio("wav", 16000, TONE)
    named = [chat(server, part("audio", data_url("audio", content, subtype))) for subtype in ("wav", "mp3", "x")]
    assert {tokens(response, "audio") for response in named} == {13}
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    square = image_bytes("PNG", Image.fromarray(pixels))
    wide = image_bytes("PNG", Image.fromarray(pixels.reshape(32, 128, 3)))
    video = show(server, "video", square)
    check_error(video, 400)
    for _ in range(2):
        for content in (square, wide):
            assert tokens(show(server, "image", content)) >= 1


def test_d16_counts(server):
    sound, picture = encoded_audio("wav", 16000, TONE[:1600]), image_bytes("PNG")
    images, sounds = [part("image", data_url("image", picture))] * 16, [part("audio", data_url("audio", sound))] * 8
    assert chat(server, *images, *sounds).status_code == 200
    for parts in ([*images, images[0]], [*sounds, sounds[0]]):
        error = check_error(chat(server, *parts), 400, "invalid_value")
        assert "may have" in error["message"]


def test_d16_sixteen_large_pictures_are_taken_or_refused(server):
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    picture = part("image", data_url("image", image_bytes("JPEG", Image.fromarray(noise), quality=30)))
    check_error(chat(server, *[picture] * 16), 400, "context_length_exceeded")


def test_several_callers_send_bad_and_good_media_at_once(server):
    good, bad = encoded_audio("wav", 16000, TONE), wav(rate=0, samples=SECOND)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(lambda number: show(server, "audio", bad if number % 2 else good).status_code, range(16))
        )
    assert statuses == [200, 400] * 8


class Site:
    """A web site behind one public address, of which ``holds`` keeps back the last byte until `release`."""

    def __init__(self, content, *, holds=False):
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content
        self.holds, self.held = holds, []

    @property
    def fetcher(self):
        return Fetcher(("example.org",), 1 << 20, 60, resolve=self.resolve, connect=self.connect)

    async def resolve(self, host, _port):
        return ["127.0.0.1"] if host.startswith("private") else ["93.184.216.34"]

    async def connect(self, address, *_):
        assert address == "93.184.216.34"
        reader = asyncio.StreamReader()
        reader.feed_data(self.answer[:-1])
        if self.holds:
            self.held.append((asyncio.get_running_loop(), reader))
        else:
            reader.feed_data(self.answer[-1:])
        return reader, Mock(drain=AsyncMock())

    def release(self):
        for loop, reader in self.held:
            loop.call_soon_threadsafe(reader.feed_data, self.answer[-1:])


def test_d7_a_picture_that_is_fetched_is_the_picture(server, monkeypatch):
    content = image_bytes("PNG")
    expected = tokens(show(server, "image", content))
    monkeypatch.setattr(server.service, "fetcher", Site(content).fetcher)
    assert tokens(chat(server, part("image", "https://cdn.example.org/a.png"))) == expected
    for url in ("https://other.net/a.png", "http://ok@example.org/", "http://example.org:22/", "ftp://example.org/"):
        check_error(chat(server, part("image", url)), 400, "unsupported_value")
    refusal = check_error(chat(server, part("image", "https://private.example.org/")), 400, "invalid_media")
    assert "127.0.0.1" not in refusal["message"]


def test_d8_ten_hosts_that_send_nothing_hold_up_nobody_else(server, monkeypatch):
    site = Site(image_bytes("PNG"), holds=True)
    monkeypatch.setattr(server.service, "fetcher", site.fetcher)
    slow = part("image", "https://example.org/a.png")
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(chat, server, slow) for _ in range(10)]
        wait_for(lambda: len(site.held) == 10)
        assert [chat(server).status_code for _ in range(5)] == [200] * 5
        assert not any(one.done() for one in waiting)
        site.release()
        assert all(tokens(one.result()) for one in waiting)
