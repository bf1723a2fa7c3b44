"""A bundle on pictures against the truth."""

import json

import numpy as np
import pytest
from helpers import run
from PIL import Image

from coltran_jax.evaluation import color_metrics
from coltran_jax.evaluation.pictures import evaluate, interval
from coltran_jax.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_bundle_path):
    import jax

    return load_pipeline(tiny_bundle_path, devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def truths():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def evaluated(pipeline, truths):
    return evaluate(pipeline, truths, samples=2, seed=3)


def test_a_samples_likelihood_is_that_which_the_sampler_gave(pipeline, truths):
    for result, truth in zip(pipeline.colorize(list(truths), samples=2, square=True), truths, strict=True):
        found = pipeline.log_likelihood_bits(np.stack([truth] * 2), result.coarse)
        np.testing.assert_allclose(found, result.log_likelihood_bits, rtol=1e-5)


def test_every_picture_counts_once_in_uneven_batches(pipeline, truths, evaluated):
    # Two devices' batches of eight colorizations: four pictures, then one.
    own = pipeline.colorize(list(truths), samples=2, seed=3, square=True)
    row = evaluated.rows[0]
    assert row.name == "as trained"
    errors = [[color_metrics.ab_distance(x, truth) for x in r.images] for r, truth in zip(own, truths, strict=True)]
    assert row.ab_error.mean == pytest.approx(np.mean(errors))
    assert row.diversity.mean == pytest.approx(np.mean([color_metrics.diversity(r.images) for r in own]))
    likelihoods = np.stack([r.log_likelihood_bits for r in own])
    assert row.bits.mean == pytest.approx(-likelihoods.mean() / 256, rel=1e-5)
    best = np.take_along_axis(np.array(errors), likelihoods.argmax(1)[:, None], 1)
    assert row.best_ab_error.mean == pytest.approx(best.mean())
    np.testing.assert_allclose(evaluated.truth_bits.mean, -pipeline.log_likelihood_bits(truths).mean() / 256, rtol=1e-5)


def test_released_sampling_is_scored_as_trained(evaluated):
    trained, released = evaluated.rows[:2]
    assert released.name == "as released"
    assert released.bits.mean != trained.bits.mean


def test_stages_are_given_the_truth(pipeline, truths, evaluated):
    coarse, fine, gray = evaluated.rows[2:]
    assert [row.name for row in (coarse, fine, gray)] == ["true coarse colours", "true small picture", "gray"]
    assert coarse.bits is None
    made = pipeline.upsample_truth(truths, "fine")
    expected = np.mean([color_metrics.ab_distance(a, b) for a, b in zip(made, truths, strict=True)])
    assert fine.ab_error.mean == pytest.approx(expected)
    assert gray.colorfulness.mean == 0
    assert gray.colorfulness_difference.mean == pytest.approx(-evaluated.truth_colorfulness.mean)


def test_intervals_narrow_with_the_root_of_the_number():
    values = np.random.default_rng(0).standard_normal(400)
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_command_prints_a_table_and_json(pipeline, tiny_bundle_path, truths, tmp_path):
    for number, truth in enumerate(truths):
        Image.fromarray(truth).save(tmp_path / f"{number}.png")
    options = ["--samples=1", "--seed=3", "--temperature=0.5"]
    done = run("coltran_jax.evaluate", f"--pictures={tmp_path}", f"--weights={tiny_bundle_path}", *options)
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    assert table[0].startswith("5 pictures, 1 samples of each; the truth: ")
    assert [row["name"] for row in json.loads(line)["rows"]][:2] == ["as trained", "as released"]
    assert json.loads(line)["rows"][0]["diversity"] is None
    expected = evaluate(pipeline, truths, samples=1, seed=3, temperature=0.5).rows[0]
    assert json.loads(line)["rows"][0]["bits"]["mean"] == pytest.approx(expected.bits.mean, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pictures=DIR", "--workdir=x"], "--pictures and --workdir: evaluate either"),
        (["--workdir=x"], "--config is missing; or give --pictures"),
        (["--pictures=DIR/gray.png"], "gray.png: a gray picture, which has no colours"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path, flags, message):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "gray.png")
    done = run("coltran_jax.evaluate", *(flag.replace("DIR", str(tmp_path)) for flag in flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
