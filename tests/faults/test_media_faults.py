"""What is given as a medium by mistake, and small files that promise much: one clear error each, at little cost."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, LludaError
from lluda.inputs.decoding.media_decoder import DECODER, DecodingJob
from lluda.inputs.media.image_file import open_image, read_image
from lluda.inputs.media.media_parts import check_file
from lluda.inputs.media.video_file import open_video
from tests.inputs.media.recordings import read_audio, sound, write
from tests.inputs.media.synthetic_video import grey_frames, write_video

READERS = {"audio": read_audio, "image": read_image, "video": lambda path: list(open_video(path).frames())}
KINDS = {"audio": "recording", "image": "image", "video": "video"}


def refused(kind, path, error=CorruptFile):
    with pytest.raises(error) as caught:
        READERS[kind](path)
    text = str(caught.value)
    assert type(caught.value) is error, text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("content", "words", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><title>404</title>", "a web page", "download the file itself"),
        (b"\xef\xbb\xbf<HTML><head>", "a web page", "download the file itself"),
        (
            b'<?xml version="1.0"?>\n<!-- made -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "SVG",
            "convert it to PNG",
        ),
        (b"%PDF-1.7\n", "a PDF", "pdftoppm -png"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "a list of other files", "give one of the files"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "convert it to JPEG"),
        (b"PK\x03\x04" + bytes(60), "zip archive", "unpack it"),
        (b"\x1f\x8b\x08" + bytes(60), "gzip", "gunzip"),
    ],
)
def test_a_well_known_file_that_is_no_medium_has_a_sentence_of_its_own(tmp_path, kind, content, words, remedy):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    text = refused(kind, path)
    assert words in text
    assert remedy in text


@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_path_of_a_file(tmp_path, kind):
    name = KINDS[kind]
    for source, words, error in (
        (
            "https://example.org/a.bin",
            f"this is an address, and the {name} must be a file; download it",
            InvalidRequest,
        ),
        ("s3://bucket/a.bin", "this is an address", InvalidRequest),
        ("file:///tmp/a.bin", "leave out file://", InvalidRequest),
        ("data:audio/wav;base64," + "A" * 9999, "a data: URL holds", InvalidRequest),
        (str(tmp_path), f"this is a folder, and a regular file is needed; give one {name} in it", CorruptFile),
        (str(tmp_path / "none"), f"no such {name}", InvalidRequest),
        ("/dev/null", "a regular file is needed", CorruptFile),
        ("x" * 5000, "", CorruptFile),
    ):
        text = refused(kind, source, error)
        assert words in text
        assert len(text) < 400 + 5000 * (source[0] == "x")
    with pytest.raises(InvalidRequest, match="this is an address"):
        check_file(kind, "https://example.org/a.bin")


@pytest.fixture
def peaks(monkeypatch):
    """The most memory (bytes) that each decoding process had, its libraries among it, as its file was done with."""
    DECODER.close()
    found, real = [], DecodingJob._end

    def end(self, *, unusable=False):
        status = Path(f"/proc/{self._worker.pid}/status").read_text()
        found.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)
        real(self, unusable=unusable)

    monkeypatch.setattr(DecodingJob, "_end", end)
    return found


def png(width, height, depth=8, colour=2):
    """A picture of one colour that is decoded to its last row, and whose checksum is then wrong."""

    def chunk(kind, data, crc=0):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)

    row = bytes(1 + width * (3 if colour == 2 else 1))
    packer = zlib.compressobj(9)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data, 1) + chunk(b"IEND", b"")


def test_a_small_picture_of_many_pixels_takes_memory_by_its_size(tmp_path, peaks):
    """0.2 MB that hold 61 million pixels: 244 MB as they are stored, and 0.9 GB as they were copied."""
    path = tmp_path / "a.png"
    path.write_bytes(png(9500, 6400))
    assert path.stat().st_size < 300_000
    assert "takes more memory" in refused("image", path, LimitExceeded)
    assert 0 < max(peaks) < 350_000_000


def test_a_length_that_only_a_header_has_takes_no_memory(tmp_path):
    """12 x 9 pixels in a chunk that claims 2 GB: read as far as the file goes."""
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:at] + b"\x7f\0\0\0" + content[at + 4 :])
    assert read_image(tmp_path / "a.png").shape == (9, 12, 3)


def test_large_pictures_of_few_bits_are_resized_in_bands(tmp_path):
    """A drawing of 20 million pixels: its bands are what Pillow makes of the whole, up to a rounding."""
    grey = (np.add.outer(np.arange(4000), np.arange(5000)) % 251).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = open_image(tmp_path / "a.png").pixels((512, 640))
    whole = np.asarray(Image.fromarray(grey).convert("RGB").resize((640, 512), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - whole).max() <= 1
    small = Image.fromarray(grey[:900, :700])
    small.save(tmp_path / "b.png")
    expected = np.asarray(small.convert("RGB").resize((320, 416), Image.Resampling.BICUBIC))
    assert np.array_equal(open_image(tmp_path / "b.png").pixels((416, 320)), expected)


def mp4_of_many_samples(path, count, size):
    """A video whose index says that ``count`` frames of ``size`` bytes each follow each other."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(4)]
    content = bytearray(write_video(path, frames, 10, codec="mpeg4", pixels="yuv420p").read_bytes())
    table = content.index(b"stsz")
    content[table + 8 : table + 16] = struct.pack(">II", size, count)
    for name, place in ((b"stsc", 16), (b"stts", 12)):
        at = content.index(name) + place
        content[at : at + 4] = struct.pack(">I", count)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("count", "size"), [(0x05000000, 1), (0x7FFFFFFF, 1), (0x00FFFFFF, 100), (300_000, 900)])
def test_an_index_of_more_frames_than_the_file_holds(tmp_path, peaks, count, size):
    """Each of 80 million takes 24 bytes of FFmpeg's memory, and came to 2 GB."""
    path = mp4_of_many_samples(tmp_path / "a.mp4", count, size)
    with pytest.raises(LludaError):
        READERS["video"](path)
    assert 0 < max(peaks) < 350_000_000


def test_a_stream_that_appears_while_others_are_decoded(tmp_path):
    """In a transport stream tracks may begin at any time: PyAV then looks for one that it does not have."""
    path = tmp_path / "a.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.rate = 48000
        for part in av.AudioResampler(format="fltp", layout="mono", rate=48000, frame_size=1024).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    begins = [at for at in range(0, len(content), 188) if content[at + 1 : at + 3] == b"\x41\x00"]
    content[begins[-1] + 2] = 7  # the last frame is now another track's, of which nothing was said
    path.write_bytes(content)
    try:
        assert np.isfinite(read_audio(path)).all()
    except LludaError as error:
        assert str(path) in str(error)


def test_what_libraries_raise_is_one_error_wherever_it_comes_from(tmp_path, monkeypatch):
    from lluda.config.audio import AUDIO_LIMITS
    from lluda.config.vision import VISION_LIMITS
    from lluda.inputs.decoding import audio_decoders, image_decoder, video_decoder

    paths = {
        "mp3": write(tmp_path / "a.mp3", sound(1)),
        "png": tmp_path / "a.png",
        "mkv": write_video(tmp_path / "a.mkv", grey_frames(5), 10),
    }
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(paths["png"])
    unexpected = type("Unexpected", (Exception,), {})

    def fail(*_args, **_options):
        raise unexpected("from a library")

    def read(kind):
        path = paths[kind]
        with path.open("rb") as file:
            if kind == "mp3":
                list(audio_decoders.open_decoder(path, file, AUDIO_LIMITS).blocks())
            elif kind == "png":
                with image_decoder.opened(path, file, VISION_LIMITS) as image:
                    image_decoder.pixels(path, image, None)
            else:
                track = video_decoder.scan(path, file, VISION_LIMITS)
                list(video_decoder.decode(path, file, track, 2, 1, VISION_LIMITS))

    for kind, place in (
        ("mp3", "av.open"),
        ("mp3", "av.AudioResampler"),
        ("png", "PIL.Image.open"),
        ("png", "PIL.ImageFile.ImageFile.load"),
        ("png", "PIL.Image.Image.convert"),
        ("mkv", "av.open"),
        ("mkv", "lluda.inputs.decoding.video_decoder._rgb"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, fail)
            if place.endswith("load"):
                patched.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
            with pytest.raises(CorruptFile, match="found Unexpected"):
                read(kind)


def seeds(folder):
    """A small valid file of each kind, with what reads it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    for extension in ("wav", "flac", "mp3", "ogg", "aiff"):
        yield "audio", write(folder / f"a.{extension}", sound(0.2))
    from tests.inputs.media.many_channels import write_channels

    for extension, codec in (("m4a", "aac"), ("webm", "libopus"), ("ts", "aac")):
        write_channels(folder / f"a.{extension}", codec, "stereo")
        yield "audio", folder / f"a.{extension}"
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"):
        noise.save(folder / f"a.{form}", form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
        yield "image", folder / f"a.{form}"
    for extension, codec, pixels in (
        ("mp4", "libx264", "yuv420p"),
        ("mkv", "ffv1", "bgr0"),
        ("avi", "mpeg4", "yuv420p"),
    ):
        yield "video", write_video(folder / f"a.{extension}", grey_frames(6), 10, codec=codec, pixels=pixels)


def mutated(draw, content):
    """Bytes changed, mostly near the beginning; a stretch cut out, doubled or set to extremes; an end cut off."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at = min(int(draw.expovariate(4 / len(content))), len(content) - 1)
        match draw.randrange(6):
            case 0:
                content[at] = draw.randrange(256)
            case 1:
                content[at] ^= 1 << draw.randrange(8)
            case 2:
                content[at : at + 4] = draw.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]
                )
            case 3:
                content[at:at] = content[at : at + draw.randint(1, 40)]
            case 4:
                del content[at : at + draw.randint(1, 40)]
            case 5 if draw.random() < 0.2:
                del content[max(at, 1) :]
            case _:
                content[at] = draw.choice((0, 1, 127, 128, 255))
        content = content or bytearray(1)
    return bytes(content)


def test_mutated_files_are_read_or_refused_with_an_error_of_ours(tmp_path, capfd):
    draw = random.Random(20261127)
    path = tmp_path / "mutated"
    for kind, seed in seeds(tmp_path):
        content = seed.read_bytes()
        for _ in range(25):
            path.write_bytes(mutated(draw, content))
            try:
                READERS[kind](path)
            except LludaError as error:
                text = str(error)
                assert str(path) in text
                assert "\n" not in text
                assert " at 0x" not in text
    assert capfd.readouterr() == ("", "")
