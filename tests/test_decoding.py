"""Images as a colour-managed viewer shows them."""

import logging
import warnings

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image, ImageCms, TiffImagePlugin

from coltran_jax.errors import ImageError, TruncatedError
from coltran_jax.images.decoding import read_image, read_scan

CASES = ROOT / "tests" / "cases"
RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(4, 16)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light in 0 to 1 -> sRGB in 0 to 255, by its definition."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def saved_tiff(path, values, **tags):
    """A 16-bit TIFF, its tags changed afterwards."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[{"photometric": 262}[tag]] = value
    Image.fromarray(values).save(path, tiffinfo=directory)
    return path


def test_a_linear_gray_profile_is_applied():
    path = CASES / "icc_gray_linear.png"
    values = np.asarray(Image.open(path)) / 255
    np.testing.assert_allclose(read_image(path)[..., 0], encoded(values), atol=1)


def test_profiles_of_sixteen_bits_are_applied_before_rounding(tmp_path):
    profile = Image.open(CASES / "icc_gray_linear.png").info["icc_profile"]
    Image.fromarray(RAMP // 64).save(tmp_path / "dark.png", icc_profile=profile)
    found = read_image(tmp_path / "dark.png")[..., 0]
    np.testing.assert_allclose(found, encoded(RAMP // 64 / 65535), atol=1)
    assert len(np.unique(found)) > 20, "only five levels of eight bits are left of this ramp"


def test_profiles_are_applied_to_sixteen_bits_that_are_kept(tmp_path):
    pytest.importorskip("imagecodecs")
    profile = Image.open(CASES / "icc_gray_linear.png").info["icc_profile"]
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "all.png", icc_profile=profile)
    found = read_scan(tmp_path / "all.png", sixteen_bits=True).pixels[..., 0]
    np.testing.assert_allclose(found, 257 * encoded(values / 65535), atol=1.5)


def test_a_wide_profile_is_converted_and_srgb_is_left_alone(tmp_path):
    path = CASES / "icc_prophoto.png"
    plain = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path).astype(int) - plain).mean() > 5
    # A neutral of ProPhoto (gamma 1.8) is the neutral of sRGB with the same luminance.
    profile = Image.open(path).info["icc_profile"]
    gray = np.repeat(np.arange(32, 256, 8, dtype=np.uint8)[None, :, None], 3, axis=2)
    Image.fromarray(gray).save(tmp_path / "gray.png", icc_profile=profile)
    expected = encoded((gray / 255) ** 1.8)
    np.testing.assert_allclose(read_image(tmp_path / "gray.png"), expected, atol=2)
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colors).save(tmp_path / "srgb.png", icc_profile=srgb)
    np.testing.assert_array_equal(read_image(tmp_path / "srgb.png"), colors)


def test_profiles_of_another_space_are_told_and_not_applied(tmp_path, caplog):
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for name, profile in (
        ("other.png", Image.open(CASES / "icc_gray_linear.png").info["icc_profile"]),
        ("damaged.png", b"no profile"),
    ):
        Image.fromarray(colors).save(tmp_path / name, icc_profile=profile)
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(read_image(tmp_path / name), colors)
        assert name in caplog.text
        assert "it is not applied" in caplog.text
        caplog.clear()


def test_alpha_goes_with_a_profile(tmp_path):
    profile = Image.open(CASES / "icc_prophoto.png").info["icc_profile"]
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png", icc_profile=profile)
    found = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found[..., 3], colors[..., 3])
    assert (found[..., :3] != colors[..., :3]).any()


def test_lab_has_no_alpha():
    expected = np.asarray(Image.open(CASES / "lab.tif").convert("RGB"))
    np.testing.assert_array_equal(read_image(CASES / "lab.tif"), expected)


def test_white_may_be_zero(tmp_path):
    path = saved_tiff(tmp_path / "white.tif", RAMP, photometric=0)
    np.testing.assert_array_equal(read_image(path)[..., 0], (65535 - RAMP.astype(int) + 128) // 257)
    black = saved_tiff(tmp_path / "black.tif", RAMP, photometric=1)
    np.testing.assert_array_equal(read_image(black)[..., 0], (RAMP.astype(int) + 128) // 257)


def test_twelve_bits_are_all_of_them():
    found = read_image(CASES / "gray12.tif")
    assert found.max() == 250
    np.testing.assert_allclose(found, read_image(CASES / "miniswhite16.tif"), atol=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.int32), "integers of 32 bits, expected unsigned ones of 8, 12 or 16 bits"),
        (RAMP.astype(np.float32), "floating-point values, expected integers of 8 or 16 bits"),
    ],
)
def test_other_numbers_are_refused_with_the_reason(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.tif")


def test_a_tiff_of_another_kind_is_named(tmp_path):
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in ((256, 1), (257, 1), (258, (16, 16)), (259, 1), (262, 1), (273, 8), (277, 2), (279, 4)):
        directory[tag] = value
    body = b"II*\0" + (12).to_bytes(4, "little") + b"\0\0\0\0"
    (tmp_path / "a.tif").write_bytes(body + directory.tobytes(len(body)))
    with pytest.raises(ImageError, match="a TIFF with 2 samples of 16/16 bits a pixel, which is not read"):
        read_image(tmp_path / "a.tif")


def test_one_gray_of_sixteen_bits_may_be_transparent(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png", transparency=int(RAMP[2, 3]))
    found = read_image(tmp_path / "a.png")
    assert found.shape == (4, 16, 2)
    assert found[2, 3, 1] == 0
    assert (found[..., 1] == 0).sum() == 1


def test_a_jpeg_that_ends_early_is_read_where_that_is_allowed(tmp_path, caplog):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.tile(RAMP // 257, (16, 4)).astype(np.uint8)).save(whole)
    path = tmp_path / "early.jpg"
    path.write_bytes(whole.read_bytes()[:-2])
    with pytest.raises(TruncatedError, match=r"early.jpg: the file ends early"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, allow_truncated=True), read_image(whole))
    assert "early.jpg: the file ends early" in caplog.text
    with pytest.raises(TruncatedError):
        read_image(path)


def test_warnings_of_the_decoder_name_the_file_once(tmp_path, caplog, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        read_image(path)
        read_image(path)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: Image size (81 pixels) exceeds limit of 80 pixels")
