"""Which images a protocol takes."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np
import pytest
from helpers import prepare_imagenet
from PIL import Image

from coltran_jax.errors import ImageError, UsageError
from coltran_jax.evaluation import prepared, protocols
from coltran_jax.evaluation.protocols import PROTOCOLS, check_readable, pair_of_folders, select
from coltran_jax.evaluation.published import PUBLISHED, as_text


def name_of(number):
    return f"ILSVRC2012_val_{number:08}"


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """All of ImageNet's validation images in one folder, by name; choosing reads none."""
    folder = tmp_path_factory.mktemp("validation")
    for number in range(1, 50001):
        (folder / f"{name_of(number)}.JPEG").touch()
    return folder


@pytest.fixture(scope="module", params=["flat", "by class", "links by class"])
def laid_out(request, validation, tmp_path_factory):
    """The same images in another layout, whose order by path is another one."""
    if request.param == "flat":
        return validation
    folder = tmp_path_factory.mktemp("laid_out")
    classes = [f"n{number:08}" for number in np.random.default_rng(0).permutation(100)]
    for each in classes:
        (folder / each).mkdir()
    for number in range(1, 50001):
        synset, file = classes[number % 100], validation / f"{name_of(number)}.JPEG"
        if request.param == "by class":
            # Some copies have the class in the name, too.
            os.link(file, folder / synset / f"{name_of(number)}_{synset}.JPEG")
        else:
            (folder / synset / file.name).symlink_to(file)
    return folder


def numbers_of(images):
    return [int(path.name[15:23]) for path in images.values()]


def test_coltran_compares_the_images_that_the_release_read(laid_out):
    found = select(PROTOCOLS["coltran-5k"], [laid_out])
    colorized, reference = numbers_of(found.images), numbers_of(found.reference)
    assert (colorized[:3], reference[:3]) == ([9670, 36705, 3545], [13328, 4694, 3310])
    assert len({*colorized, *reference}) == 10000
    text = "\n".join(f"{one} {other}" for one, other in zip(colorized, reference, strict=True))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "eee123896fafa9e5"


def test_val50k_takes_all_by_number_against_themselves(laid_out):
    found = select(PROTOCOLS["val50k"], [laid_out])
    assert (numbers_of(found.images), found.reference) == (list(range(1, 50001)), None)


def test_protocols_that_share_images_differ_in_their_squares():
    one, other = PROTOCOLS["val5k"], PROTOCOLS["val5k-stretch"]
    assert (one.crop, other.crop) == ("centre square", "squeezed to a square")
    for name in ("palette-5k", "uvim"):
        assert small(name, name="coltran-5k", reduced_from=0) == PROTOCOLS["coltran-5k"]


def test_an_image_that_is_missing_or_there_twice_is_named(validation, tmp_path):
    for number in range(1, 5001):
        if number != 17:
            os.link(validation / f"{name_of(number)}.JPEG", tmp_path / f"{name_of(number)}.JPEG")
    with pytest.raises(
        UsageError, match=r"ILSVRC2012_val_00000017, which the protocol val5k takes, is not among the 4"
    ):
        select(PROTOCOLS["val5k"], [tmp_path])
    with pytest.raises(UsageError, match=r"val_00009670, .*, nor are 8,979 others of 10,000; --protocol=own"):
        select(PROTOCOLS["coltran-5k"], [tmp_path])
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / f"{name_of(3)}.png").touch()
    with pytest.raises(
        UsageError, match=r"val_00000003.JPEG and .*00000003.png: the same image of ImageNet's validation set"
    ):
        select(PROTOCOLS["val5k"], [tmp_path])


def test_published_distances_are_those_of_the_document_and_of_known_protocols():
    table = (pathlib.Path(__file__).parents[1] / "docs" / "evaluation.md").read_text().split("### Published numbers")[1]
    for row in PUBLISHED:
        assert set(row.protocols) <= PROTOCOLS.keys()
        deviation = "" if row.deviation is None else f" ± {row.deviation:.2f}"
        assert f"| {row.what} | {row.fid:.2f}{deviation} |" in table
    assert as_text("uvim").splitlines()[3].split()[:4] == ["ColTran", "19.37", "±", "0.09"]
    assert len(as_text("val50k").splitlines()) == 2


def test_coco_takes_files_in_the_order_of_their_names(tmp_path):
    for number in range(4):
        folder = tmp_path / str(3 - number)
        folder.mkdir()
        (folder / f"{number:012}.jpg").touch()
    found = select(small("coco-val5k", count=3), [tmp_path])
    assert [path.name for path in found.images.values()] == [f"{number:012}.jpg" for number in range(3)]


def test_published_lists_are_used_exactly(validation, tmp_path):
    names = [name_of(number) for number in np.random.default_rng(0).permutation(10002)[:10000] + 1]
    chosen = tmp_path / "ctest10k.txt"
    # With and without suffix, an empty line at the end.
    chosen.write_text("\n".join([names[0] + ".JPEG", *names[1:]]) + "\n")
    found = select(PROTOCOLS["ctest10k"], [validation], chosen)
    assert list(found.images) == names
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, part in zip(lists, (names[:5000], names[5000:]), strict=True):
        path.write_text("\n".join(part))
    found = select(PROTOCOLS["others"], [validation], *lists)
    assert [*found.images, *found.reference] == names
    with pytest.raises(UsageError, match=r"is in both lists"):
        select(PROTOCOLS["others"], [validation], lists[0], lists[0])


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
        (PROTOCOLS["coco-val5k"], [], "3 images, the protocol coco-val5k takes 5,000; --protocol=own takes any"),
        (PROTOCOLS["val5k"], ["a"], "--list: the protocol val5k fixes its images; --protocol=own or others takes"),
        (
            PROTOCOLS["coltran-5k"],
            [],
            "09670, which the protocol coltran-5k takes, is not among the 3 images given, nor are 9,999",
        ),
        (PROTOCOLS["ctest10k"], [], "the protocol ctest10k is made of lists: give 10,000 names with --list"),
        (small("ctest10k", count=2), ["a"], "list-0.txt: 1 names, expected 2"),
        (PROTOCOLS["own"], [""], "list-0.txt: 0 names, expected at least one"),
        (PROTOCOLS["own"], ["a", "b.c"], "--reference_list: the protocol own compares images with their own"),
        (PROTOCOLS["others"], ["a"], "the protocol others is made of lists: give names with --reference_list"),
        (PROTOCOLS["others"], ["a", "b.c\nd"], "1 images to colorize, 2 to compare with; the distance depends"),
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


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_validation_images_inside_the_files_of_tensorflow_datasets(tmp_path, file_format, monkeypatch):
    data, images = prepare_imagenet(tmp_path, file_format, num_validation=12)
    (tmp_path / "numbers.tsv").write_text("colorize\tcompare\n7\t2\n3\t11\n")
    monkeypatch.setattr(protocols, "_LISTS", tmp_path)
    protocol = protocols.Protocol("two", 2, imagenet=True, numbers="numbers.tsv", others=True)
    (version,) = pathlib.Path(data).glob("imagenet2012/*")
    for path in (pathlib.Path(data), version):
        with prepared.as_files([path], protocol) as paths:
            found = select(protocol, paths)
            assert (numbers_of(found.images), numbers_of(found.reference)) == ([7, 3], [2, 11])
            assert all(file.read_bytes() == images[file.name] for file in found.images.values())
            assert len(list(paths[0].iterdir())) == 4, "no others are written"
        assert not paths[0].exists()
    with prepared.as_files([version], PROTOCOLS["own"]) as paths:
        assert len(select(PROTOCOLS["own"], paths).images) == 12
    with prepared.as_files([tmp_path], protocol) as paths:
        assert paths == [tmp_path], "a folder that is none of theirs stays"
    (version / "dataset_info.json").write_text("{}")
    refused = pytest.raises(UsageError, match=r"cannot be read by TensorFlow Datasets|no split validation")
    with refused, prepared.as_files([version], protocol):
        pass
