"""Which images a protocol takes."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from coltran_jax.errors import ImageError, UsageError
from coltran_jax.evaluation.protocols import PROTOCOLS, check_readable, pair_of_folders, select


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """Names of the first 10,002 validation images; choosing reads none."""
    folder = tmp_path_factory.mktemp("validation")
    for number in range(1, 10003):
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").touch()
    return folder


def test_coltran_compares_with_as_many_others(validation):
    found = select(PROTOCOLS["coltran-5k"], [validation])
    assert list(found.images)[::4999] == ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00005000"]
    assert list(found.reference)[::4999] == ["ILSVRC2012_val_00005001", "ILSVRC2012_val_00010000"]


def test_val5k_takes_the_first_against_themselves(validation):
    for name, crop in [("val5k", "centre square"), ("val5k-stretch", "squeezed to a square")]:
        found = select(PROTOCOLS[name], [validation])
        assert (len(found.images), found.reference, found.protocol.crop) == (5000, None, crop)


def test_published_lists_are_used_exactly(validation, tmp_path):
    names = [f"ILSVRC2012_val_{number:08}" for number in np.random.default_rng(0).permutation(10002)[:10000] + 1]
    chosen = tmp_path / "ctest10k.txt"
    # With and without suffix, an empty line at the end.
    chosen.write_text("\n".join([names[0] + ".JPEG", *names[1:]]) + "\n")
    found = select(PROTOCOLS["ctest10k"], [validation], chosen)
    assert list(found.images) == names
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, part in zip(lists, (names[:5000], names[5000:]), strict=True):
        path.write_text("\n".join(part))
    found = select(PROTOCOLS["coltran-5k"], [validation], *lists)
    assert [*found.images, *found.reference] == names
    # A list of the others alone: colorized are the first that are not on it.
    found = select(PROTOCOLS["coltran-5k"], [validation], None, lists[1])
    assert not found.images.keys() & found.reference.keys()
    with pytest.raises(UsageError, match="ILSVRC2012_val_00000002 is in both lists"):
        select(PROTOCOLS["coltran-5k"], [validation], lists[0], lists[0])


def small(protocol, **changes):
    return dataclasses.replace(PROTOCOLS[protocol], **changes)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.c.png", "sub/d.png"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / name)
    return folder


def test_names_in_lists(images, tmp_path):
    chosen = tmp_path / "list.txt"
    chosen.write_text("d.png\r\nb.c\nsub/e\n")
    with pytest.raises(UsageError, match=r"list.txt: line 3: no image 'sub/e' among the 3 given"):
        select(PROTOCOLS["own"], [images], chosen)
    chosen.write_text("d.png\nb.c\na.png")
    assert list(select(PROTOCOLS["own"], [images], chosen).images) == ["sub/d", "b.c", "a"]
    chosen.write_text("sub/d\nd\n")
    with pytest.raises(UsageError, match="lines 1 and 2 name the same image"):
        select(PROTOCOLS["own"], [images], chosen)


@pytest.mark.parametrize(
    ("protocol", "lists", "message"),
    [
        (PROTOCOLS["val5k"], [], "3 images, the protocol val5k takes 5,000; --protocol=own takes any"),
        (PROTOCOLS["coltran-5k"], [], "3 images, the protocol coltran-5k takes 10,000"),
        (PROTOCOLS["ctest10k"], [], "the protocol ctest10k is a list of 10,000 names; give it with --list"),
        (small("val5k", count=2), ["a"], "list-0.txt: 1 names, expected 2"),
        (PROTOCOLS["own"], [""], "list-0.txt: 0 names, expected at least one"),
        (PROTOCOLS["own"], ["a", "b.c"], "--reference_list: the protocol own compares images with their own"),
        (small("coltran-5k", count=2), ["a\nb.c"], "3 images, the protocol coltran-5k takes 4"),
    ],
)
def test_what_no_protocol_takes_is_refused(images, tmp_path, protocol, lists, message):
    paths = [tmp_path / f"list-{number}.txt" for number in range(len(lists))]
    for path, text in zip(paths, lists, strict=True):
        path.write_text(text)
    with pytest.raises(UsageError) as error:
        select(protocol, [images], *paths)
    assert message in str(error.value)


def test_a_list_that_is_not_there(images, tmp_path):
    with pytest.raises(UsageError, match=r"none.txt: a list that cannot be read"):
        select(PROTOCOLS["own"], [images], tmp_path / "none.txt")


def test_headers_are_looked_into(images):
    gray, broken = images / "gray.png", images / "broken.png"
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(gray)
    broken.write_bytes(b"no image")
    check_readable([images / "a.png", gray], colors=False)
    with pytest.raises(ImageError, match=r"gray.png: a gray image"):
        check_readable([images / "a.png", gray], colors=True)
    with pytest.raises(ImageError, match=r"broken.png: not an image"):
        check_readable([broken], colors=False)


def test_folders_must_match(images, tmp_path):
    assert [len(side) for side in pair_of_folders(images, images)] == [3, 3]
    with pytest.raises(UsageError, match=r"images has 3 images, .*sub 1; the distance depends on the number"):
        pair_of_folders(images, images / "sub")
    other = tmp_path / "other"
    other.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((6, 8 + number // 2, 3), np.uint8)).save(other / f"{number}.png")
    with pytest.raises(UsageError, match=r"2.png is 9x6, .*a.png 8x6; expected one size"):
        pair_of_folders(images, other)
