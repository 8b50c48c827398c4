"""Pictures of every kind that people have, as upright RGB bytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from lluda.inputs.media.image_file import read_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(tmp_path, image, name="picture.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.ppm", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
        ("a.jp2", {}),
        ("a.JPG", {"format": "PNG"}),
    ],
)
def test_lossless_formats_give_the_pixels(name, options, tmp_path):
    found = read_image(saved(tmp_path, Image.fromarray(PIXELS), name, **options))
    assert found.dtype == np.uint8
    assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.jpg", {"progressive": True}),
        ("a.webp", {"quality": 95}),
        ("a.avif", {"quality": 95}),
        ("a.gif", {}),
        ("a.jpg", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (30, 20))]}),
    ],
)
def test_lossy_formats_give_what_transformers_reads(name, options, tmp_path):
    from transformers.image_utils import load_image

    smooth = np.add.outer(np.arange(20) * 5, np.arange(30) * 4)[..., None] + np.array([0, 10, 20])
    path = saved(tmp_path, Image.fromarray(smooth.astype(np.uint8)), name, **options)
    found = read_image(path)
    assert np.abs(found.astype(int) - smooth).max() < 24
    assert np.array_equal(found, np.asarray(load_image(str(path))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_says_which_way_is_up(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(PIXELS), "a.png", exif=exif)
    turned = [
        PIXELS, PIXELS[:, ::-1], PIXELS[::-1, ::-1], PIXELS[::-1], PIXELS.swapaxes(0, 1), np.rot90(PIXELS, -1),
        PIXELS[::-1, ::-1].swapaxes(0, 1), np.rot90(PIXELS),
    ]  # fmt: skip
    assert np.array_equal(read_image(path), turned[orientation - 1])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_in_transformers(mode, tmp_path):
    """What is transparent lies on white."""
    from transformers.image_transforms import convert_to_rgb

    image = Image.fromarray(PIXELS).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(PIXELS[..., 0]))
    path = saved(tmp_path, image, "a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    with Image.open(path) as opened:
        assert opened.mode == mode
        expected = convert_to_rgb(opened, return_numpy=True)
    assert np.array_equal(read_image(path), expected)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert read_image(saved(tmp_path, image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_of_grey_keep_their_upper_half(name, tmp_path):
    """Pillow's own conversion cuts all above 255 to white."""
    grey = RNG.integers(0, 1 << 16, (20, 30), dtype=np.uint16)
    found = read_image(saved(tmp_path, Image.fromarray(grey), name))
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_several_pictures_the_first_counts(name, tmp_path):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as opened:
        assert opened.n_frames == 3
    assert np.array_equal(read_image(path), np.asarray(frames[0]))


def test_a_colour_profile_is_no_obstacle(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(PIXELS), icc_profile=profile)), PIXELS)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (20_000, 100), (100, 20_000)])
def test_small_and_long_pictures_up_to_the_limits(size, tmp_path):
    path = saved(tmp_path, Image.new("RGB", size[::-1], "red"))
    assert read_image(path).shape == (*size, 3)


def test_arrays_are_taken_as_they_are():
    import torch

    assert read_image(PIXELS) is PIXELS
    assert np.array_equal(read_image(torch.from_numpy(PIXELS)), PIXELS)
    assert np.array_equal(read_image(Image.fromarray(PIXELS)), PIXELS)
