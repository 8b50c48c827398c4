"""Media inside a request (D5): what is base64 is decoded, all else refused with the path of the field."""

import base64
import time

import pytest

from lluda.serving.http.errors import ApiError
from lluda.serving.media.data_url import from_base64, from_data_url

CONTENT = bytes(range(256))
TEXT = base64.b64encode(CONTENT).decode()
LIMIT = 1 << 20


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (f"data:image/png;base64,{TEXT}", "image"),
        (f"DATA:IMAGE/PNG;BASE64,{TEXT}", "image"),
        (f"data:image/svg+xml;base64,{TEXT}", "image"),  # its bytes are refused later
        (f"data:;base64,{TEXT}", "audio"),
        (f"data:application/octet-stream;base64,{TEXT}", "audio"),
        (f"data:audio/wav;codecs=1;base64,{TEXT}", "audio"),
        (f"data:video/webm;base64,{TEXT}", "audio"),
        (f"data:video/mp4;base64,{TEXT}", "video"),
    ],
)
def test_what_is_taken(url, kind):
    assert from_data_url(url, kind, "url", LIMIT) == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64", "is not a data URL"),
        (f"data:image/png;base64{TEXT}", "is not a data URL"),
        ("data:," + TEXT, "must say ;base64"),
        ("data:image/png,%89PNG", "must say ;base64"),
        (f"data:text/html;base64,{TEXT}", "is text/html, and image is needed"),
        (f"data:video/mp4;base64,{TEXT}", "is video/mp4, and image is needed"),
        (f"data:image/png;{'a=b;' * 100}base64,{TEXT}", "is not a data URL"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,AAA", "is not base64"),
        ("data:image/png;base64,AAAA=", "is not base64"),
        ("data:image/png;base64,AA==AAAA", "is not base64"),
        ("data:image/png;base64,AA A", "is not base64"),
        ("data:image/png;base64,AAA\n", "is not base64"),
        ("data:image/png;base64,__--", "is not base64"),
        ("data:image/png;base64,AA%3D", "is not base64"),
        ("data:image/png;base64,ÄÖÜß", "is not base64"),
        ("data:image/jpeg;base64," + "AAAA," * 5000, "is not base64"),
    ],
)
def test_what_is_refused(url, words):
    with pytest.raises(ApiError, match=words) as refused:
        from_data_url(url, "image", "messages[0].content[1].image_url.url", LIMIT)
    assert refused.value.status == 400
    assert refused.value.code == "invalid_media"
    assert refused.value.param == "messages[0].content[1].image_url.url"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("beyond", [0, 1, 2, 3])
def test_the_limit_is_of_the_decoded_bytes_and_exact(beyond):
    limit = 999
    text = base64.b64encode(bytes(limit + beyond)).decode()
    if not beyond:
        assert len(from_base64(text, "data", limit)) == limit
        return
    with pytest.raises(ApiError, match="more than the 999 bytes") as refused:
        from_base64(text, "data", limit)
    assert refused.value.status == 413


def test_time_is_linear_in_the_length():
    """5,000 frames as vLLM takes them, a megabyte of commas, parameters without end: all within one watchdog."""
    start = time.monotonic()
    for url in (
        "data:image/png" + ";a=b" * 500_000,
        "data:" + "," * 1_000_000,
        "data:image/png;base64," + "A,b=" * 500_000,
    ):
        with pytest.raises(ApiError):
            from_data_url(url, "image", "url", 1 << 30)
    assert time.monotonic() - start < 10
