import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from coltran_jax.errors import ImageError
from coltran_jax.images.decoding import read_image
from coltran_jax.images.encoding import write_image
from coltran_jax.images.files import (
    contact_sheet,
    find_images,
    thumbnail,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GRAY = RGB[..., :1]


def saved(tmp_path, image, name="image.png", **kwargs):
    image.save(tmp_path / name, **kwargs)
    return tmp_path / name


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)],
)
def test_every_kind_of_png(tmp_path, mode, channels):
    written = Image.fromarray(RGB).convert(mode)
    image = read_image(saved(tmp_path, written))
    assert image.dtype == np.uint8
    expected = np.asarray(written.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]))
    np.testing.assert_array_equal(image, expected.reshape(5, 7, channels))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (6, 4), (0, 255, 255, 0))
    image = read_image(saved(tmp_path, image, "image.jpg", quality=95))
    assert image.shape == (4, 6, 3)
    assert image[..., 0].min() > 200
    assert image[..., 1:].max() < 60


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 1, 1, 128, 255])


def test_transparency_of_a_palette_and_of_one_gray_is_alpha(tmp_path):
    palette = Image.fromarray(RGB).convert("P")
    assert read_image(saved(tmp_path, palette, transparency=0)).shape == (5, 7, 4)
    gray = Image.fromarray(GRAY[..., 0])
    image = read_image(saved(tmp_path, gray, transparency=int(GRAY[2, 3, 0])))
    assert image.shape == (5, 7, 2)
    assert image[2, 3, 1] == 0


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_is_applied(tmp_path, name, channels):
    image = RNG.integers(0, 256, (5, 7, channels), np.uint8)
    exif = Image.Exif()
    rows, columns, both = image[::-1], image[:, ::-1], image[::-1, ::-1]
    turned = [image, columns, both, rows]
    # In orientations 5 to 8 rows become columns.
    turned += [x.swapaxes(0, 1) for x in (image, rows, both, columns)]
    for orientation, expected in enumerate(turned):
        exif[0x0112] = orientation + 1
        path = saved(tmp_path, Image.fromarray(image.squeeze()), name, exif=exif.tobytes())
        np.testing.assert_array_equal(read_image(path), expected, err_msg=f"orientation {orientation + 1}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.jpg", b"not an image", "not an image of a format that is read"), ("a.png", b"", "not an image")],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_truncated_images_are_refused(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"{name}: "):
        read_image(path)


def test_floating_point_images_are_refused(tmp_path):
    image = Image.fromarray(np.ones((3, 3), np.float32))
    with pytest.raises(ImageError, match="floating-point values"):
        read_image(saved(tmp_path, image, "a.tiff"))


def test_images_of_a_folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.txt", "out/old.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images([tmp_path], tmp_path / "out")
    names = [(path.relative_to(tmp_path).as_posix(), name.as_posix()) for path, name in found.images]
    assert names == [("a.PNG", "a"), ("b.jpg", "b"), ("sub/c.webp", "sub/c")]
    assert [path.name for path in found.skipped] == ["notes.txt"]


def test_a_file_named_by_itself_needs_no_suffix(tmp_path):
    (tmp_path / "scan").write_bytes(b"")
    assert find_images([tmp_path / "scan"], tmp_path / "out").images == [(tmp_path / "scan", pathlib.PurePath("scan"))]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_written_images_read_the_same(tmp_path, channels):
    image = RNG.integers(0, 256, (4, 3, channels), np.uint8)
    write_image(tmp_path / "deep" / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "deep" / "a.png"), image)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_nothing_is_left_of_a_image_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(self, path, **kwargs):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_image(tmp_path / "a.png", RGB)
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_holds_every_image_whole():
    rows = [[np.full((4, 6, 3), 10, np.uint8), np.full((2, 3, 3), 20, np.uint8)], [np.full((4, 2, 3), 30, np.uint8)]]
    sheet = contact_sheet(rows, gap=1)
    assert sheet.shape == (1 + 2 * 5, 1 + 2 * 7, 3)
    assert [int((sheet[..., 0] == value).sum()) for value in (10, 20, 30)] == [24, 6, 8]


def test_thumbnails_keep_their_aspect():
    assert thumbnail(np.zeros((10, 1000, 3), np.uint8), 256, 512).shape == (5, 512, 3)
    transparent = thumbnail(np.zeros((100, 50, 4), np.uint8), 50, 512)
    assert transparent.shape == (50, 25, 3)
    assert (transparent == 255).all()


def test_links_to_folders_are_followed_once_and_hidden_files_are_none(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (photos / "own", elsewhere, photos / ".ipynb_checkpoints"):
        folder.mkdir(parents=True)
        saved(folder, Image.fromarray(RGB), f"{folder.name.strip('.')}.png")
    saved(photos, Image.fromarray(RGB), "._hidden.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "also_own").symlink_to(photos / "own")
    (elsewhere / "back").symlink_to(photos)
    found = find_images([photos])
    assert [name.as_posix() for _, name in found.images] == ["own/own", "linked/elsewhere"]
    assert sorted(path.name for path in found.skipped) == ["._hidden.png", "pipe.png"]
    with pytest.raises(ImageError, match=r"pipe.png: neither a regular file nor a folder"):
        find_images([photos / "pipe.png"])


def test_results_are_marked_as_srgb(tmp_path):
    write_image(tmp_path / "a.png", RGB)
    assert Image.open(tmp_path / "a.png").info["srgb"] == 1
