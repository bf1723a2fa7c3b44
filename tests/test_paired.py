"""Evaluations beside each other: the paired bootstrap, the power, the command and its page."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import refused
from PIL import Image

from coltran_jax.cli import evaluate as evaluate_command
from coltran_jax.evaluation import paired
from coltran_jax.evaluation.metrics import METRICS

BY_NAME = {metric.name: metric for metric in METRICS}


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        # Images differ by far more than the two colorizers, which a test that does not pair them cannot tell apart.
        images = rng.normal(20, 10, 80)
        other = images + rng.normal(0.5, 2, 80)
        found = paired.difference_of(BY_NAME["ab_error"], images, other, resamples=400)
        covered += found.low <= 0.5 <= found.high
    # The bootstrap's intervals are a little narrow with so few images; three standard errors are 0.033.
    assert 0.91 < covered / 400 < 0.98


def test_a_better_colorizer_is_one_with_less_error_more_decibels_or_colours_nearer_the_truths():
    rng = np.random.default_rng(0)
    base = rng.normal(20, 1, 200)

    def probability(name, other, truth=None):
        return paired.difference_of(BY_NAME[name], base, other, truth).probability_better

    assert probability("ab_error", base - 1) == 1
    assert probability("psnr", base - 1) == 0
    assert probability("ab_error", base.copy()) == 0, "equal is not better"
    # Chroma above the truth's is as far from it as below.
    truth = base + 2
    assert probability("chroma", base + 3, truth) == 1
    assert probability("chroma", base + 5, truth) == 0
    assert probability("diversity", base + 1) is None


def test_so_many_images_show_a_difference_with_the_stated_power():
    rng = np.random.default_rng(0)
    needed = paired.images_needed(spread=2.0, difference=0.5)
    # (1.960 + 0.842)^2 * (2 / 0.5)^2
    assert needed == 126
    drawn = rng.normal(0.5, 2, (4000, needed))
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(needed)
    seen = (np.abs(drawn.mean(axis=1)) > 1.96 * errors).mean()
    assert seen == pytest.approx(0.8, abs=0.025)
    assert paired.images_needed(2.0, 0.0) is None
    found = paired.difference_of(BY_NAME["ab_error"], np.zeros(126), drawn[0])
    assert found.detectable == pytest.approx(2.8016 * drawn[0].std(ddof=1) / np.sqrt(126), rel=1e-4)


@pytest.fixture(scope="module")
def reports(tiny_bundle_path, tmp_path_factory):
    """Two evaluations of the same images, that differ by the seed."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "truth").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)):
        Image.fromarray(image).save(folder / "truth" / f"{number}.png")
    paths = []
    for name, options in (("one", []), ("other", ["--seed=1"])):
        paths.append(folder / name)
        command = ["images", str(folder / "truth"), f"--weights={tiny_bundle_path}", "--samples=2", *options]
        assert evaluate_command.main([*command, f"--report={paths[-1]}"]) == 0
    return paths


def test_the_command_compares_reports_and_rows(reports, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "leaderboard.html"
    options = ["--row=as trained", "--row=gray", "--metric=ab_error", "--difference=0.5", f"--page={page}"]
    assert evaluate_command.main(["compare", *map(str, reports), *options]) == 0
    *text, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    names = [f"{name}, {row}" for name in ("one", "other") for row in ("as trained", "gray")]
    assert found["entries"] == names
    assert text[0] == f"protocol own: 5 images; differences from {names[0]}"
    tables = [json.loads((path / "evaluation.json").read_text())["rows"] for path in reports]
    other = {own["metric"]: own for own in found["differences"][1]}
    for name in ("ab_error", "best_ab_error", "bits", "diversity"):
        means = [table[0]["metrics"][name]["mean"] for table in tables]
        assert other[name]["baseline"] == pytest.approx(means[0])
        assert other[name]["mean"] == pytest.approx(means[1])
        assert other[name]["difference"] == pytest.approx(means[1] - means[0])
    # The likelihood of the truth is the same network's.
    assert other["truth_bits"]["difference"] == 0
    gray = {own["metric"]: own for own in found["differences"][0]}
    assert "bits" not in gray
    assert gray["colorfulness"]["mean"] == 0
    size = other["ab_error"]["detectable"]
    assert (
        f"{names[2]}: a difference of 0.5 in ab error is seen with {np.ceil(5 * (size / 0.5) ** 2):,.0f} images" in text
    )
    written = page.read_text()
    assert "<!--" not in written
    assert all(path.joinpath("index.html").as_uri() in written for path in reports)


def with_distances(report, folder, features, title):
    """A copy of a report whose rows have distances by some features."""
    shutil.copytree(report, folder)
    settings, evaluation = folder / "parts" / "settings.json", folder / "evaluation.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"features": features}))
    values = json.loads(evaluation.read_text()) | {"frame": {"titles": {"frechet": title}}}
    for row in values["rows"]:
        row["distances"] = {"frechet": [3.0, 5.0]}
    evaluation.write_text(json.dumps(values))
    return folder


def test_distances_keep_the_name_that_their_features_give_them(reports, tmp_path, capsys):
    one, same = (with_distances(reports[0], tmp_path / name, "Inception", "FID") for name in ("one", "same"))
    other = with_distances(reports[1], tmp_path / "other", "EfficientNet", "Fréchet")
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert evaluate_command.main(["compare", str(one), str(same), str(reports[1]), f"--page={page}"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["distances"] == {"FID": [[4.0, 1.0], [4.0, 1.0], None]}
    assert '<th scope="col">FID</th>' in page.read_text()
    message = refused(capsys, "evaluate", "compare", str(one), str(other))
    assert "other: distances by 'EfficientNet', others by 'Inception'; they cannot be compared" in message


def test_what_cannot_be_compared_is_refused(reports, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(reports[0], other)
    settings = json.loads((other / "parts" / "settings.json").read_text())
    (other / "parts" / "settings.json").write_text(json.dumps(settings | {"images": "0123"}))
    for args, message in [
        ([reports[0]], "one evaluation and one row; give a second evaluation, or another --row"),
        ([reports[0], tmp_path], "evaluation.json: no such file; expected the folder of a finished evaluation"),
        ([reports[0], other], f"{other}: evaluated on other images than {reports[0]} (images '0123'"),
        ([*reports, "--row=released"], "has no row 'released', expected one of as trained, as released, "),
        ([*reports, "--metric=ab_error"], "--metric and --difference go together"),
        ([*reports, "--metric=beauty", "--difference=1"], "--metric=beauty: expected one of colorfulness, "),
    ]:
        assert message in refused(capsys, "evaluate", "compare", *map(str, args))


def test_equal_images_have_no_finite_psnr_and_are_left_out():
    values = {"ab_error": np.ones(3), "psnr": np.array([30, np.inf, 20])}
    entry = paired.Entry("one", None, "row", values, {}, {}, 1)
    found = paired.compare("own", [entry, dataclasses.replace(entry, name="other")], {})
    assert [own.metric for own in found.differences[0]] == ["ab_error"]
