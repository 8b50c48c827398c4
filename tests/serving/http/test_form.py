"""Family B of bad requests: multipart forms and the files that they are spooled to (B5); test_transcriptions.py has the
rest of the forms."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest

from tests.conftest import watchdog
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer

PATH = "/v1/audio/transcriptions"
TYPE = {"content-type": "multipart/form-data; boundary=b"}
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\nno sound\r\n'


def field(name: bytes, value: bytes = b"x") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value + b"\r\n"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(b"--other--\r\n", id="another boundary"),
        pytest.param(field(b"model", b"v" * 2_000_000) + b"--b--\r\n", id="field of 2 MB"),
        pytest.param(field(b"a[b][c][d]") + b"--b--\r\n", id="brackets"),
        pytest.param(b"--b\r\n" + b"X-Header: y\r\n" * 50_000 + b"\r\nx\r\n--b--\r\n", id="50,000 headers of a part"),
        pytest.param(FILE % b"../../../../x" + b"--b--\r\n", id="name that leaves its folder"),
        pytest.param(FILE % b"a\x00b" + b"--b--\r\n", id="NUL in a file's name"),
        pytest.param(FILE % b"a.wav", id="cut off"),
    ],
)
def test_bad_forms_are_refused(
    server: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    form: bytes,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with watchdog(2):
        response = server.client.post(PATH, content=form, headers=TYPE)
    check_error(response, 400)
    assert not list(tmp_path.iterdir()), "files are left"
    assert not Path("x").exists() and not Path("/x").exists()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "the log is no place for it"
    check_well(server)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/mixed; boundary=b", "application/json", ""])
def test_other_types_are_refused(server: RunningServer, kind: str) -> None:
    response = server.client.post(PATH, content=FILE % b"a" + b"--b--\r\n", headers={"content-type": kind})
    assert response.status_code in (400, 415)
    check_error(response, response.status_code)
    check_well(server)


def test_large_upload_that_is_not_to_be_heard_leaves_no_file(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large for memory is spooled to disk, and removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    form = (FILE % b"a.wav").replace(b"no sound", bytes(5_000_000)) + field(b"model", b"tiny-omni") + b"--b--\r\n"
    check_error(server.client.post(PATH, content=form, headers=TYPE), 400, "invalid_media")
    assert not list(tmp_path.iterdir())
    check_well(server)


def test_no_room_for_what_is_spooled_is_no_crash(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of temporary files is gone (E16)."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    form = (FILE % b"a.wav").replace(b"no sound", bytes(5_000_000)) + b"--b--\r\n"
    response = server.client.post(PATH, content=form, headers=TYPE)
    check_error(response, 500, "internal_error")
    check_well(server)
