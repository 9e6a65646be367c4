"""Images: what each format and mode becomes, against pixels known beforehand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from ganlib.data import image
from ganlib.data._pixels import is_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def config(height: int, width: int, channels: int = 3, **more: object) -> image.Config:
    return image.Config.model_validate({"resolution": [height, width], "channels": channels, **more})


def stored(picture: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, suffix, **options)
    return buffer.getvalue()


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_same_size_keeps_every_bit(noise, suffix, channels):
    pixels = noise if channels == 3 else noise[:, :, :1]
    made = image.read(config(28, 28, channels), stored(Image.fromarray(pixels.squeeze()), suffix))
    np.testing.assert_array_equal(made, pixels.transpose(2, 0, 1))
    assert made.dtype == np.uint8


def test_lossy_formats_come_close(noise):
    smooth = Image.fromarray(noise).resize((4, 4)).resize((28, 28))
    wanted = image.read(config(28, 28), smooth).astype(int)
    for suffix in ("jpeg", "webp"):
        made = image.read(config(28, 28), stored(smooth, suffix, quality=95))
        assert np.abs(made - wanted).mean() < 4


def test_first_frame_of_a_gif():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = stored(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert image.read(config(4, 4), data)[:, 0, 0].tolist() == list(RED)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_cut(suffix):
    levels = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], np.uint16)
    made = image.read(config(2, 4, 1), stored(Image.fromarray(levels), suffix))
    np.testing.assert_array_equal(made[0], np.rint(levels / 257).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_of_32_bits_is_read_like_such_an_array(orientation):
    levels = np.arange(8, dtype=np.int32).reshape(2, 4) * 30
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(Image.fromarray(levels), "tiff", exif=exif)
    upright = levels if orientation == 1 else np.rot90(levels, -1)
    np.testing.assert_array_equal(image.read(config(*upright.shape, 1), data)[0], upright)
    for wrong in (300, -1):
        with pytest.raises(ValueError, match=r"expected integers of 0 to 255, .*; found int32 of -?\d+ to \d+$"):
            image.read(config(2, 4, 1), stored(Image.fromarray(levels + wrong), "tiff"))


def test_transparency_shows_the_background():
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    made = image.read(config(2, 2, background=[0, 0, 255]), stored(half, "png"))
    np.testing.assert_allclose(made[:, 0, 0], [128, 0, 127], atol=1)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    made = image.read(config(2, 2, background=[9, 9, 9]), stored(palette, "png", transparency=1))
    assert made[:, 0, 0].tolist() == [255, 0, 0]
    assert made[:, 0, 1].tolist() == [9, 9, 9]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_every_mode_of_white_is_white(mode):
    white = {"I": 65535, "I;16": 65535}.get(mode)
    picture = Image.new("RGB", (3, 3), "white").convert(mode) if white is None else Image.new(mode, (3, 3), white)
    assert (image.read(config(3, 3), picture) == 255).all()


def test_exif_turns_the_image():
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    made = image.read(config(2, 1), stored(picture, "png", exif=exif))
    assert made[:, 0, 0].tolist() == list(RED)
    assert made[:, 1, 0].tolist() == list(BLUE)


def test_crop_pad_and_stretch():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, :10], stripes[:, 10:20], stripes[:, 20:] = 50, 100, 150
    assert (image.read(config(10, 10), stripes) == 100).all()
    stretched = image.read(config(10, 3, fit="stretch"), stripes)
    assert stretched[0, 5, 0] < stretched[0, 5, 1] < stretched[0, 5, 2]
    padded = image.read(config(30, 30, fit="pad", background=[1, 2, 3]), stripes)
    assert padded[:, 0, 0].tolist() == padded[:, -1, -1].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(padded[:, 10:20], stripes.transpose(2, 0, 1))


def test_shrinking_does_not_alias():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    made = image.read(config(8, 8, 1), checks)
    assert np.abs(made.astype(int) - 127).max() < 12  # nearest neighbours would give 0 or 255


def test_arrays():
    grey = np.arange(15, dtype=np.uint8).reshape(3, 5)
    cfg = config(3, 5, 1)
    for same in (grey, grey[None], grey[..., None], grey.astype(np.int64), grey / 255, grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(image.read(cfg, same)[0], grey)
    assert image.read(cfg, grey > 5).max() == 255
    bad = (
        grey.astype(int) * 100,
        grey - 1.0,
        np.full((3, 4), np.nan),
        np.zeros((2, 4, 7)),
        np.zeros(5),
        np.zeros((0, 4)),
    )
    for array in bad:
        with pytest.raises(ValueError, match=r"expected|not an image"):
            image.read(cfg, array)


def test_a_model_is_given_arrays_as_they_are_read():
    """Floats of 0 to 1 were truncated to black."""
    grey = np.arange(15, dtype=np.uint8).reshape(3, 5, 1)
    cfg = config(3, 5, 1)
    for same in (grey, grey.tolist(), grey / 255, (grey / 255).astype(np.float32), grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(image.take(cfg, "sample", same), image.read(cfg, np.asarray(same)))
    for scale in (grey.astype(float), grey / 127.5 - 1, grey * np.nan):
        with pytest.raises(ValueError, match="expected integers of 0 to 255, or floats of 0 to 1; found float64 of"):
            image.take(cfg, "sample", scale)


def test_unreadable_files_say_why_in_one_line(tmp_path, noise):
    good = stored(Image.fromarray(noise), "png")
    (tmp_path / "text.png").write_text("no image")
    for broken in (b"", b"GIF89a", good[: len(good) // 2], tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            image.read(config(28, 28), broken)


def test_a_limit_of_pixels_that_a_key_lifts(noise, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # whatever Pillow's own says
    cfg = config(28, 28, max_megapixels=0.0008)
    for large in (stored(Image.fromarray(noise), "png"), noise, noise.transpose(2, 0, 1), noise[:, :, 0]):
        assert image.read(cfg, large).shape == (3, 28, 28)
        with pytest.raises(ValueError, match=r"^28x28 are 0.000784 megapixels; sample.max_megapixels allows 0.0007$"):
            image.read(config(28, 28, max_megapixels=0.0007), large)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_photographs_of_100_megapixels_are_read():
    data = stored(Image.new("L", (10_000, 10_000), 77), "png", compress_level=1)
    assert (image.read(config(4, 4, 1), data) == 77).all()


def texts(**named: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, text in named.items():
        info.add_text(name.replace("_", " "), text.decode("latin-1"), zip=True)
    return info


@pytest.mark.parametrize(
    "metadata",
    [
        {"pnginfo": texts(workflow=b"a" * 2_000_000)},
        {"pnginfo": texts(**{f"text_{i}": b"a" * 1_000_000 for i in range(70)})},
        {"pnginfo": texts(Raw_profile_type_exif=b"\nexif\n   zz\nnot hexadecimal")},
        {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"},
        {"exif": b"Exif\0\0not a TIFF file"},
        {"icc_profile": b"a" * 3_000_000},
    ],
)
def test_pixels_are_read_whatever_the_metadata(noise, metadata):
    data = stored(Image.fromarray(noise), "png", **metadata)
    np.testing.assert_array_equal(image.read(config(28, 28), data), noise.transpose(2, 0, 1))


def test_a_damaged_chunk_that_no_pixel_needs(noise, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = stored(Image.fromarray(noise), "png", pnginfo=texts(title=b"of another"), exif=exif)
    at = data.index(b"zTXt") + 8
    (tmp_path / "a.png").write_bytes(data[:at] + b"?" + data[at + 1 :])
    made = image.read(config(28, 28), tmp_path / "a.png")
    np.testing.assert_array_equal(made, noise[::-1, ::-1].transpose(2, 0, 1))
    at = data.index(b"IDAT") + 30
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        image.read(config(28, 28), data[:at] + b"????" + data[at + 4 :])


def test_damaged_metadata_of_other_formats(noise):
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    for suffix in ("jpeg", "webp"):
        plain, damaged = (stored(Image.fromarray(noise), suffix, **more) for more in ({}, {"exif": broken}))
        np.testing.assert_array_equal(image.read(config(28, 28), damaged), image.read(config(28, 28), plain))
    data = stored(Image.fromarray(noise), "jpeg", icc_profile=b"a" * 100)
    data = data.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\0\0")
    np.testing.assert_array_equal(
        image.read(config(28, 28), data), image.read(config(28, 28), stored(Image.fromarray(noise), "jpeg"))
    )


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp", "gif", "bmp", "tiff", "avif", "jpeg2000", "ppm"])
def test_every_format_is_known_by_its_content(noise, suffix):
    data = stored(Image.fromarray(noise), suffix)
    assert is_image(io.BytesIO(data))
    assert image.read(config(28, 28), data).shape == (3, 28, 28)


def test_what_would_start_other_programs_is_no_image(tmp_path, monkeypatch):
    called = tmp_path / "gs"
    called.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    called.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    (tmp_path / "e.png").write_bytes(eps)
    assert not is_image(io.BytesIO(eps))
    for stranger in (eps, tmp_path / "e.png"):
        with pytest.raises(ValueError, match="not an image, or of an unknown format"):
            image.read(config(8, 8), stranger)
    assert not (tmp_path / "called").exists()


def test_decode_and_quantise_are_inverse():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    decoded = image.decode(None, "sample", levels)
    assert decoded.dtype == torch.float32
    assert decoded.min() == -1
    assert decoded.max() == 1
    assert torch.equal(image.quantise(None, decoded), levels)
    assert image.quantise(None, torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_preview_is_a_grid_in_order():
    samples = torch.linspace(-1, 1, 7)[:, None, None, None].expand(7, 1, 60, 80)
    grid = np.asarray(image.preview(None, {"sample": samples}, columns=3))
    assert grid.shape == (3 * 62, 3 * 82, 3)
    assert [int(grid[31 + 62 * (i // 3), 41 + 82 * (i % 3), 0]) for i in range(7)] == image.quantise(
        None, samples[:, 0, 0, 0]
    ).tolist()
    assert image.preview(None, {"sample": torch.zeros(2, 3, 8, 8)}, columns=10).size == (2 * 58, 58)


def test_config_refuses():
    for wrong in (
        {"resolution": [0, 4]},
        {"resolution": [4]},
        {"resolution": [4, 4], "channels": 2},
        {"resolution": [4, 4], "fit": "zoom"},
    ):
        with pytest.raises(ValidationError):
            image.Config.model_validate(wrong)
