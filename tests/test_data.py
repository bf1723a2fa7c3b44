"""Images from folders and from ImageNet's archives."""

import collections
import itertools
import logging

import numpy as np
import pytest
from helpers import prepare_imagenet
from PIL import Image

from coltran_jax.data import folder as folder_source
from coltran_jax.data import imagenet as imagenet_source
from coltran_jax.data import loader, sources
from coltran_jax.data.config import DataConfig
from coltran_jax.errors import ConfigError, DataError
from coltran_jax.images import arrays
from coltran_jax.images.decoding import read_image

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty images, each of one colour of its own, of many sizes and kinds."""
    root = tmp_path_factory.mktemp("images")
    for number in range(40):
        size = tuple(RNG.integers(20, 60, 2))
        image = Image.new("RGB", size, (number, 2 * number, 255 - number))
        if number % 5 == 0:
            image = image.convert("RGBA")
        path = root / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return root


def config(folder, **changes):
    return DataConfig(**{"dataset": "folder", "path": str(folder), "num_threads": 2, **changes})


def batches(config, count, **kwargs):
    source = sources.open_source(config, "train")
    return list(itertools.islice(loader.training_batches(config, source, size=16, seed=7, **kwargs), count))


def numbers(batch):
    return batch["images"][:, 0, 0, 0].tolist()


def test_holdout_and_training_images_are_all_of_the_folder(folder):
    train, holdout = (
        sources.open_source(config(folder, holdout_fraction=0.3), split) for split in ("train", "holdout")
    )
    names = [[source.name(i) for i in range(len(source))] for source in (train, holdout)]
    assert not set(names[0]) & set(names[1])
    assert len(names[0]) + len(names[1]) == 40
    assert 4 <= len(names[1]) <= 20
    assert folder_source.is_held_out("a/b.jpg", 0.5) == folder_source.is_held_out("a/b.jpg", 0.5)


def test_every_epoch_has_each_image_once_in_another_order(folder):
    count = len(sources.open_source(config(folder), "train"))
    found = [number for batch in batches(config(folder), count, batch_size=2) for number in numbers(batch)]
    first, second = found[:count], found[count : 2 * count]
    assert len(set(first)) == count
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_of_hosts_together_are_the_batch_of_one(folder, parts):
    wide = config(folder, min_scale=0.5, flip=True)
    whole = batches(wide, 7, batch_size=8)
    shares = [batches(wide, 7, batch_size=8, part=part, num_parts=parts) for part in range(parts)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([share[step]["images"] for share in shares])
        np.testing.assert_array_equal(joined, batch["images"])


def test_a_run_that_is_resumed_sees_the_same_batches(folder):
    whole = batches(config(folder), 12, batch_size=4)
    resumed = batches(config(folder), 5, batch_size=4, first_step=7)
    for one, other in zip(whole[7:], resumed, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])


def test_worker_processes_give_the_same_batches(folder):
    one, other = (batches(config(folder, num_workers=workers), 4, batch_size=4) for workers in (0, 2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a["images"], b["images"])


def test_evaluation_sees_each_centre_square_once(folder):
    options = config(folder, holdout_fraction=0.4)
    source = sources.open_source(options, "holdout")
    found = list(loader.evaluation_batches(options, source, size=16, batch_size=8))
    shares = [
        list(loader.evaluation_batches(options, source, size=16, batch_size=8, part=p, num_parts=4)) for p in range(4)
    ]
    assert [len(share) for share in shares] == [len(found)] * 4
    for number, batch in enumerate(found):
        joined = {key: np.concatenate([share[number][key] for share in shares]) for key in batch}
        np.testing.assert_array_equal(joined["images"], batch["images"])
        np.testing.assert_array_equal(joined["mask"], batch["mask"])
    images = np.concatenate([batch["images"][batch["mask"] == 1] for batch in found])
    assert len(images) == len(source)
    for index, image in enumerate(images):
        expected = arrays.area_resize(arrays.center_square(source[index]), 16, 16)
        np.testing.assert_array_equal(image, expected)
    few = list(loader.evaluation_batches(options, source, size=16, batch_size=8, num_examples=3))
    assert sum(batch["mask"].sum() for batch in few) == 3


def test_random_squares_lie_in_the_image_and_cover_it():
    image = np.stack(np.meshgrid(np.arange(40), np.arange(60), indexing="ij"), -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    squares = [loader.random_square(image, rng, DataConfig(min_scale=0.5, flip=True)) for _ in range(300)]
    sides = {square.shape[0] for square in squares}
    assert all(square.shape[0] == square.shape[1] for square in squares)
    assert min(sides) == 20
    assert max(sides) == 40
    assert {int(square[0, 0, 0]) for square in squares} >= {0, 5, 10}
    assert {bool(square[0, 0, 1] > square[0, -1, 1]) for square in squares} == {False, True}
    largest = [loader.random_square(image, rng, DataConfig()) for _ in range(50)]
    assert {square.shape for square in largest} == {(40, 40, 2)}


def test_jitter_changes_brightness_and_contrast_of_training_images_alone(folder):
    image = np.array([[[60, 80, 100]], [[100, 120, 140]]], np.uint8)
    rng = np.random.default_rng(0)
    changed = np.stack([loader.jittered(image, rng, 0.2) for _ in range(300)]).astype(int)
    assert 80 <= changed.mean((1, 2, 3)).min() < 83 < 117 < changed.mean((1, 2, 3)).max() <= 120
    contrast = (changed[:, 1] - changed[:, 0]) / 40  # of every channel
    assert 0.78 < contrast.min() < 0.83 < 1.17 < contrast.max() < 1.22
    assert np.ptp(contrast, axis=-1).max() < 0.06
    plain, options = config(folder), config(folder, jitter=0.2)
    assert numbers(batches(options, 1, batch_size=8)[0]) != numbers(batches(plain, 1, batch_size=8)[0])
    holdout = sources.open_source(options, "holdout")
    seen = [list(loader.evaluation_batches(c, holdout, size=16, batch_size=8)) for c in (plain, options)]
    assert [numbers(batch) for batch in seen[0]] == [numbers(batch) for batch in seen[1]]


@pytest.fixture
def damaged(tmp_path):
    for number in range(6):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_a_damaged_image_is_an_error_that_names_it(damaged):
    with pytest.raises(Exception, match=r"broken.png: .*; remove it, or set data.on_error"):
        batches(config(damaged, holdout_fraction=1e-9), 4, batch_size=4)


def test_a_damaged_image_may_be_skipped_and_is_named_once(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        found = batches(config(damaged, holdout_fraction=1e-9, on_error="skip"), 7, batch_size=4)
    masks = np.concatenate([batch["mask"] for batch in found])
    assert (masks == 0).sum() == 4
    assert sum("broken.png" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "data.path is '': no such folder"),
        ({"path": __file__}, "a file, not a folder; give the folder of images"),
        ({"path": "/nonexistent"}, "no such folder"),
    ],
)
def test_missing_folders_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        sources.open_source(DataConfig(dataset="folder", **options), "train")


def test_empty_folders_and_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images in this folder"):
        sources.open_source(config(tmp_path), "train")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="none of its 1 images is in the holdout split"):
        sources.open_source(config(tmp_path, holdout_fraction=1e-9), "holdout")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Archives of the official layout, prepared by the real builder."""
    return prepare_imagenet(tmp_path_factory.mktemp("imagenet"), "array_record")


def test_imagenet_as_the_real_builder_prepares_it(imagenet, tmp_path):
    path, images = imagenet
    found = {split: imagenet_source.ImageNetSource(path, split, holdout=4) for split in sources.SPLITS}
    assert {split: len(source) for split, source in found.items()} == {"train": 8, "holdout": 4, "test": 3}
    seen = []
    for source in found.values():
        for index in range(len(source)):
            name = source.name(index)
            (tmp_path / name).write_bytes(images[name])
            np.testing.assert_array_equal(source[index], read_image(tmp_path / name))
            seen.append(name)
    assert sorted(seen) == sorted(images)
    first = next(loader.training_batches(DataConfig(), found["train"], size=16, batch_size=8, seed=0))
    assert first["images"].shape == (8, 16, 16, 3)
    assert first["mask"].sum() == 8


def test_imagenet_that_is_not_prepared_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="is not prepared as array_record in"):
        imagenet_source.ImageNetSource(str(tmp_path), "train")


def test_small_groups_come_more_often_but_are_held_out_as_before(folder):
    def names(split, **changes):
        source = sources.open_source(config(folder, holdout_fraction=0.3, **changes), split)
        return [source.name(i) for i in range(len(source))]

    once = names("train")
    assert names("holdout", group_pattern="^1/", balance=1.0) == names("holdout")
    sizes = collections.Counter(name.startswith("1/") for name in once)
    found = collections.Counter(names("train", group_pattern="^1/", balance=1.0))
    assert set(found) == set(once)
    for name, count in found.items():
        assert count == (round(sizes[False] / sizes[True]) if name.startswith("1/") else 1)
    assert max(found.values()) > 1


def test_patterns_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="group_pattern is '\\('"):
        DataConfig(group_pattern="(")
