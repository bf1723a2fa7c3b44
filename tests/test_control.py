"""Known colours, choices among draws, and progress, as a caller of the pipeline meets them."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused
from PIL import Image

import coltran_jax
from coltran_jax import KnownColors
from coltran_jax.cli import colorize
from coltran_jax.errors import ImageError
from coltran_jax.images import arrays, heat_map, hints, spreading
from coltran_jax.sampling.noise import perturbed
from coltran_jax.sampling.ranking import ranked


@pytest.fixture(scope="module")
def tiny(tiny_bundle_path):
    return coltran_jax.load_pipeline(tiny_bundle_path, devices=jax.devices()[:1])


IMAGE = np.random.default_rng(0).integers(60, 190, (90, 120, 3), np.uint8)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_set_that_has_the_probability(top_p):
    logits = np.random.default_rng(1).normal(0, 3, (20, 512)).astype(np.float32)
    found = np.isfinite(perturbed(jnp.asarray(logits), jnp.zeros_like(logits), 1.0, -jnp.inf, top_p))
    probabilities = np.asarray(jax.nn.softmax(logits)).astype(np.float64)
    order = np.argsort(-probabilities, axis=-1)
    before = np.cumsum(np.take_along_axis(probabilities, order, -1), -1) - np.take_along_axis(probabilities, order, -1)
    expected = np.take_along_axis(before, np.argsort(order, axis=-1), -1) < top_p
    np.testing.assert_array_equal(found, expected)


def test_the_best_draws_come_first(tiny):
    (drawn,) = tiny.colorize([IMAGE], samples=4)
    (best,) = tiny.colorize([IMAGE], samples=2, best_of=4)
    order = np.argsort(-drawn.log_likelihood_bits)[:2]
    np.testing.assert_array_equal(best.images, drawn.images[order])


@pytest.mark.parametrize(
    ("rank", "order"),
    # The third is the most colorful, and as far from the two alike as they are near each other.
    [("bits", [1, 2, 0]), ("colorfulness", [2, 1, 0]), ("consensus", [1, 0, 2])],
)
def test_draws_are_ranked(rank, order):
    colors = np.array([(100, 100, 100), (120, 90, 90), (220, 60, 60)], np.uint8)
    coarse = np.broadcast_to(colors[:, None, None], (3, 4, 5, 3))
    assert ranked(rank, coarse, np.array([-30.0, -10.0, -20.0])).tolist() == order


def test_the_command_takes_the_options_of_choice(tiny, tiny_bundle_path, tmp_path, capsys):
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    common = [str(tmp_path / "photo.png"), "--weights", str(tiny_bundle_path), "--output"]
    choice = ["--best_of", "3", "--rank", "colorfulness", "--top_p", "0.8", "--shared_noise"]
    assert colorize.main([*common, str(tmp_path / "out"), *choice]) == 0
    options = {"best_of": 3, "rank": "colorfulness", "top_p": 0.8, "shared_noise": True}
    (expected,) = tiny.colorize([IMAGE], **options)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "photo.png")), expected.images[0])
    # Runs from before these options, which have none of them in their manifests, go on.
    assert colorize.main([*common, str(tmp_path / "plain")]) == 0
    runs = [
        json.loads((tmp_path / name / "colorize.jsonl").read_text().splitlines()[0])["run"] for name in ("out", "plain")
    ]
    assert options.items() <= runs[0].items()
    assert not options.keys() & runs[1].keys()
    capsys.readouterr()
    refuse = ["colorize", *common, tmp_path / "none"]
    assert "--rank chooses the best of several: it goes with --best_of" in refused(capsys, *refuse, "--rank", "bits")
    assert "goes without --best_of" in refused(capsys, *refuse, "--best_of", "2", "--greedy")
    assert "--best_of must be at least" in refused(capsys, *refuse, "--best_of", "2", "--samples", "3")
    assert "--top_p must be above 0 and at most 1" in refused(capsys, *refuse, "--top_p", "0")


# Two devices get three images, one and a half each.
@pytest.mark.parametrize(("devices", "count"), [(1, 1), (2, 3)])
def test_progress_is_told_and_changes_nothing(tiny_bundle_path, devices, count):
    pipeline = coltran_jax.load_pipeline(tiny_bundle_path, devices=jax.devices()[:devices])
    images, known, rows = [IMAGE[i:] for i in range(count)], [None] * count, []
    if count > 1:
        known = [KnownColors(np.full((*image.shape[:2], 4), 255, np.uint8)) for image in images]
        for one in known:
            one.hints[:60] = 0
    options = {"samples": 2, "batch_size": 4 * count, "known": known, "particles": 2}
    whole = pipeline.colorize(images, **options)
    parts = pipeline.colorize(images, **options, progress=lambda *of: rows.append(of))
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_allclose(one.log_evidence_bits, other.log_evidence_bits, rtol=1e-4)
    assert rows[-1] == (pipeline.coarse_resolution[0],) * 2
    assert rows == sorted(rows)


def test_progress_counts_draws_that_are_made_one_after_another(tiny):
    rows = []
    tiny.colorize([IMAGE], samples=2, batch_size=1, progress=lambda *of: rows.append(of))
    height = tiny.coarse_resolution[0]
    assert rows[-1] == (2 * height, 2 * height)


def test_shared_noise_is_that_of_all_images(tiny):
    # By a pixel the colorizer sees another image, and would draw by other noise.
    other = IMAGE.copy()
    other[:3, :3] += 1
    one, two = tiny.colorize([IMAGE, other], shared_noise=True)
    apart, _ = tiny.colorize([IMAGE, other])
    assert (one.coarse == two.coarse).mean() > 0.9
    assert (one.coarse == apart.coarse).mean() < 0.9


def test_hints_are_set_and_what_is_kept_is_restored(tiny):
    painted = np.zeros((90, 120, 4), np.uint8)
    painted[40:50, 60:80] = (255, 0, 0, 255)
    redraw = np.zeros((90, 120), np.uint8)
    redraw[30:70, 40:100] = 255
    (result,) = tiny.colorize([IMAGE], known=[KnownColors(painted, redraw)], particles=2)
    np.testing.assert_array_equal(result.images[0][redraw == 0], IMAGE[redraw == 0])
    known = tiny.prepare(IMAGE, known=KnownColors(painted, redraw)).known.colors
    np.testing.assert_array_equal(arrays.coarse_from_rgb(result.coarse[0])[known >= 0], known[known >= 0])
    assert result.log_evidence_bits < 0


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (KnownColors(hints=np.full((90, 90, 4), 255, np.uint8)), "90x90 pixels, expected the image's size, 120x90"),
        (KnownColors(hints=np.zeros((45, 60, 4), np.uint8)), "no pixel is painted"),
        (KnownColors(redraw=np.zeros((90, 120), np.uint8)), "every pixel is black"),
        (KnownColors(redraw=np.full((90, 120), 255, np.uint8)), "no pixel is black"),
    ],
)
def test_what_cannot_be_known_is_refused(tiny, known, message):
    with pytest.raises(ImageError, match=message):
        tiny.prepare(IMAGE, known=known)


@pytest.fixture
def arguments(tiny_bundle_path, tmp_path):
    """Files of a photo, hints and a mask, and a command to colorize it."""
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    painted = np.zeros((45, 60, 4), np.uint8)
    painted[20:25, 30:40] = (255, 0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "hints.png")
    mask = np.zeros((90, 120), np.uint8)
    mask[30:70, 40:100] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    weights = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out")]
    return [str(tmp_path / "photo.png"), *weights]


def test_the_command_takes_known_colours(tiny, arguments, tmp_path, capsys):
    hinted, masked = (["--hints", str(tmp_path / "hints.png")], ["--keep", str(tmp_path / "mask.png")])
    assert colorize.main([*arguments, *hinted, *masked, "--particles", "2"]) == 0
    assert "bits for " in capsys.readouterr().out
    known = KnownColors(*(np.asarray(Image.open(tmp_path / name)) for name in ("hints.png", "mask.png")))
    (expected,) = tiny.colorize([IMAGE], known=[known], particles=2)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "photo.png")), expected.images[0])
    run = json.loads((tmp_path / "out" / "colorize.jsonl").read_text().splitlines()[0])["run"]
    assert run["particles"] == 2
    assert {"hints", "keep"} <= run.keys()


def test_hints_that_chance_would_suit_better_bring_a_warning(arguments, tmp_path, capsys, caplog):
    # Near to white and to black there is no chroma, but this network has learnt nothing: no colour is likely to it.
    assert colorize.main([*arguments, "--hints", str(tmp_path / "hints.png"), "--particles", "2"]) == 0
    told = capsys.readouterr().out
    bits, count = (float(x) for x in re.search(r"colours: (\d+) bits for (\d+) coarse", told).groups())
    assert ("less likely than colours by chance" in caplog.text) == (bits > 9 * count)


def test_the_entropy_is_drawn_with_its_scale(tiny, arguments, tmp_path):
    assert colorize.main([*arguments, "--entropy"]) == 0
    drawn = np.asarray(Image.open(tmp_path / "out" / "photo-entropy.png"))
    (expected,) = tiny.colorize([IMAGE])
    np.testing.assert_array_equal(drawn, heat_map.entropy_map(expected.entropy_bits[0], 90, 120))
    values = np.zeros((64, 64), np.float32)
    values[:, 32:] = 2
    drawn = heat_map.entropy_map(values, 60, 120)
    # Viridis from its darkest to its brightest, left and right of the middle.
    middle = drawn[drawn.shape[0] // 2]
    assert tuple(middle[100]) == (68, 1, 84)
    assert tuple(middle[500]) == (253, 231, 36)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], ["--hints", "photo.png"], "photo.png: has no transparency, expected an image that is transparent where"),
        ([], ["--keep", "black.png"], "black.png: every pixel is black, expected white where colours are redrawn"),
        ([], ["--hints", "none.csv"], "none.csv: cannot be read as a table of hints"),
        ([], ["--hints", "hints.png", "--shard", "0/2"], "--hints is of one image: it goes without --shard"),
        ([], ["--keep", "mask.png", "--pages", "all"], "--keep is of one image: it goes without --pages all"),
        (["-"], ["--keep", "mask.png"], "--keep goes with a file, not with the standard input"),
        (["black.png"], ["--hints", "hints.png"], "known colours are of one image, and 2 are named"),
        ([], ["--particles", "2"], "--particles goes with --hints or --keep"),
    ],
)
def test_the_command_refuses_what_it_cannot_know(arguments, paths, options, message, tmp_path, capsys):
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(tmp_path / "black.png")
    paths, options = (
        [str(tmp_path / text) if pathlib.Path(text).suffix else text for text in texts] for texts in (paths, options)
    )
    assert message in refused(capsys, "colorize", *paths, *arguments, *options)
    assert not list(tmp_path.glob("out/*"))


def test_a_gray_image_has_no_colours_to_keep(arguments, tmp_path, capsys):
    Image.fromarray(IMAGE[..., 0]).save(tmp_path / "photo.png")
    message = refused(capsys, "colorize", *arguments, "--keep", tmp_path / "mask.png")
    assert "mask.png: the image is gray, expected one in colour" in message


def test_chroma_spreads_over_like_gray_alone():
    gray = np.full((12, 20, 1), 40, np.uint8)
    gray[:, 10:] = 200
    known = np.full((12, 20), -1)
    known[6, 2], known[6, 17] = arrays.coarse_from_rgb(np.array([[200, 30, 30], [30, 30, 200]], np.uint8))
    chroma, confidence = spreading.spread_chroma(known, gray)
    red, blue = spreading.chroma_of(known[6, [2, 17]])
    np.testing.assert_allclose(chroma[:, :10], np.broadcast_to(red, (12, 10, 3)), atol=5)
    np.testing.assert_allclose(chroma[:, 10:], np.broadcast_to(blue, (12, 10, 3)), atol=5)
    assert confidence[6, 2] == 1
    # It falls with the distance from the hint.
    assert (np.diff(confidence[6, 2:10]) < 0).all()
    assert 0 < confidence.min() < confidence.max() == 1


def test_hints_of_a_table(tmp_path):
    path = tmp_path / "hints.csv"
    path.write_text("x,y,color\n10,20,#ff8000\n50,60,#0000ff,0\n")
    found = hints.read_hints(path, 90, 120)
    assert tuple(found[20, 10]) == (255, 128, 0, 255)
    assert (found[..., 2] == 255).sum() == 1
    path.write_text("10,20,red\n")
    with pytest.raises(ImageError, match="line 1: '10,20,red', expected x,y,#rrggbb"):
        hints.read_hints(path, 90, 120)
    path.write_text("10,95,#ff8000\n")
    with pytest.raises(ImageError, match="outside of the image, 120x90"):
        hints.read_hints(path, 90, 120)
