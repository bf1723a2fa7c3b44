"""Whole archives: stages that overlap, runs that are stopped and go on, formats, and what files carry."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from helpers import refused, start
from PIL import ExifTags, Image, PngImagePlugin

from coltran_jax import colorize_files
from coltran_jax.cli import colorize, merge
from coltran_jax.errors import ImageError
from coltran_jax.images import decoding, encoding
from coltran_jax.images.decoding import read_image, read_scan
from coltran_jax.pipeline import Pipeline, load_pipeline
from coltran_jax.planning import Job, Options
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.stages import Stages

RNG = np.random.default_rng(0)


class Recorder:
    """Stages of nothing but their order: jobs are numbers, and their costs."""

    def __init__(self, costs, limit=10**9, at_once=3, fails=()):
        self.costs, self.fails = costs, fails
        self.lock, self.held, self.most = threading.Lock(), {}, []
        self.batches = []
        self.stages = Stages(self.read, self.draw, self.finish, costs.__getitem__, at_once, limit, num_threads=4)

    def read(self, job):
        with self.lock:
            self.held[job] = self.costs[job]
            self.most.append((sum(self.held.values()), len(self.held)))
        time.sleep(0.002 * (job % 3))
        if job in self.fails:
            self.release(job)
            raise ValueError(job)
        return job

    def draw(self, batch):
        self.batches.append(batch)
        return [-job for job in batch]

    def finish(self, job, read, drawn):
        assert job == read == -drawn
        time.sleep(0.002 * (job % 2))
        self.release(job)
        return drawn

    def release(self, job):
        with self.lock:
            del self.held[job]

    def run(self, stopping=lambda: False):
        return list(self.stages.run(range(len(self.costs)), stopping))


def test_results_come_in_order_in_whole_batches():
    recorder = Recorder([1] * 20, fails=(4, 5, 19))
    results = recorder.run()
    assert [job for job, _ in results] == list(range(20))
    assert [job for job, result in results if isinstance(result, ValueError)] == [4, 5, 19]
    assert [len(batch) for batch in recorder.batches] == [3, 3, 3, 3, 3, 2]


def test_what_is_held_stays_below_the_limit_and_a_giant_passes_alone():
    costs = [1] * 7 + [100] + [4] * 9 + [3, 100, 100]
    recorder = Recorder(costs, limit=10)
    assert [job for job, _ in recorder.run()] == list(range(20))
    assert all(cost <= 10 or count == 1 for cost, count in recorder.most)
    assert max(count for _, count in recorder.most) > 1


def test_a_small_image_counts_as_what_the_networks_make_of_it(tiny_bundle_path, tmp_path):
    pipeline, options = load_pipeline(tiny_bundle_path), Options(tmp_path, sampling=SamplingOptions(samples=3))
    Image.new("L", (5, 4)).save(tmp_path / "a.png")
    stages = colorize_files._stages(pipeline, options, total=10_000)
    assert stages.cost(Job(tmp_path / "a.png", None, [])) == (5 * 4 + 32 * 32) * (1 + 3)


def test_stopped_stages_finish_what_was_drawn_and_begin_nothing():
    recorder = Recorder([1] * 20)
    results = recorder.run(stopping=lambda: len(recorder.batches) == 2)
    assert [job for job, _ in results] == list(range(6))
    assert not recorder.held.keys() & set(range(6))


def test_an_error_of_the_networks_ends_the_run():
    recorder = Recorder([1] * 20)
    recorder.stages.draw = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        recorder.run()


def test_the_next_batch_is_sent_before_the_last_one_is_there():
    recorder = Recorder([1] * 12)
    recorder.stages.in_flight = 2
    draw, second_begun, at_once = recorder.draw, threading.Event(), []

    def one_waits_for_the_next(batch):
        if batch == [3, 4, 5]:
            # The first batch of all, which compiles, was alone.
            assert at_once == ["first"]
            assert second_begun.wait(60)
        at_once.append("first")
        if batch == [6, 7, 8]:
            second_begun.set()
        return draw(batch)

    recorder.stages.draw = one_waits_for_the_next
    results = recorder.run()
    assert [job for job, _ in results] == list(range(12))
    assert [result for _, result in results] == [-job for job in range(12)]


@pytest.fixture
def folder(tmp_path):
    """Seven grayscale images of different sizes."""
    (tmp_path / "in").mkdir()
    for i in range(7):
        Image.fromarray(RNG.integers(0, 256, (20 + i, 30), np.uint8)).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


@pytest.fixture
def arguments(folder, tiny_bundle_path):
    return [str(folder), "--weights", str(tiny_bundle_path), "--batch_size", "2", "--output"]


def contents(output):
    return {path.name: path.read_bytes() for path in output.glob("*.png")}


def manifest(output):
    return [json.loads(line) for line in (output / "colorize.jsonl").read_text().splitlines()]


def test_a_stopped_run_says_how_to_go_on_and_then_gives_the_same_files(arguments, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert colorize.main([*arguments, str(whole)]) == 0
    draw, calls = Pipeline.draw, []

    def stop_in_the_second(*args, **kwargs):
        calls.append(len(calls))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args, **kwargs)

    monkeypatch.setattr(Pipeline, "draw", stop_in_the_second)
    assert colorize.main([*arguments, str(stopped)]) == 130
    assert capsys.readouterr().err.endswith("interrupted; 3 of 7 images are left: go on with --skip_existing\n")
    assert sorted(contents(stopped)) == ["0.png", "1.png", "2.png", "3.png"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert colorize.main([*arguments, str(stopped), "--skip_existing"]) == 0
    assert "; 4 kept that exist" in capsys.readouterr().out
    assert contents(stopped) == contents(whole)
    lines = manifest(stopped)
    assert [line.get("input", "run")[-5:] for line in lines] == ["run", *[f"{i}.png" for i in range(4)], "run"] + [
        f"{i}.png" for i in range(4, 7)
    ]
    assert (lines[1]["outputs"], lines[1]["seed"]) == (["0.png"], 0)
    assert lines[1]["bits_per_pixel"][0] > 0


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_files(arguments, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert colorize.main([*arguments, str(whole)]) == 0
    for number in (1, 4):
        with start("coltran_jax", "colorize", *arguments, killed, "--skip_existing") as process:
            while process.poll() is None and len(list(killed.glob("*.png"))) < number:
                time.sleep(0.001)
            process.kill()
    with open(killed / "colorize.jsonl", "a") as file:
        file.write('{"input": "cut')
    assert colorize.main([*arguments, str(killed), "--skip_existing"]) == 0
    assert contents(killed) == contents(whole)


def test_results_of_other_options_or_unknown_ones_are_not_kept(arguments, tmp_path, capsys):
    output = tmp_path / "out"
    assert colorize.main([*arguments, str(output)]) == 0
    capsys.readouterr()
    message = refused(capsys, "colorize", *arguments, output, "--skip_existing", "--seed", 1, "--square")
    assert "0.png was made with seed 0, now 1; square False, now True; give the same options" in message
    (output / "colorize.jsonl").unlink()
    message = refused(capsys, "colorize", *arguments, output, "--skip_existing")
    assert "colorize.jsonl does not tell how it was made" in message


def test_lists_of_paths(folder, tiny_bundle_path, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder / '3.png'}\n\n{folder / '1.png'}\n")
    options = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out")]
    assert colorize.main(["--list", str(listed), *options]) == 0
    assert sorted(contents(tmp_path / "out")) == ["1.png", "3.png"]
    listed.write_text("\n")
    assert "lists no images" in refused(capsys, "colorize", "--list", listed, *options)
    assert "one of the two" in refused(capsys, "colorize", folder, "--list", listed, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quality", 90), "--quality applies to jpg and webp, not to png"),
        (("--format", "jpg", "--compression", 1), "--compression applies to png, not to jpg"),
        (("--format", "webp", "--quality", 0), "--quality must be 1 to 100, got 0"),
        (("--skip_existing", "--overwrite"), "not allowed with"),
        (("--skip_existing", "--grid"), "--grid shows all images"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, tmp_path, capsys, options, message):
    assert message in refused(capsys, "colorize", *arguments, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


EXIF = Image.Exif()
EXIF[ExifTags.Base.Artist] = "Prokudin-Gorskii"
EXIF[ExifTags.Base.Orientation] = 6
EXIF[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "1911:05:01 12:00:00"}
EXIF[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:title="Trinity"/></x:xmpmeta>'


@pytest.mark.parametrize("target", encoding.FORMATS)
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_what_a_file_carries_goes_along(tmp_path, source, target):
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8))
    extra = {} if source in ("png", "tif") else {"xmp": XMP}
    image.save(tmp_path / f"in.{source}", exif=EXIF.tobytes(), dpi=(300, 300), **extra)
    scan = read_scan(tmp_path / f"in.{source}")
    assert scan.pixels.shape == (30, 20, 3), "rotated"
    encoding.write_image(tmp_path / f"out.{target}", scan.pixels, encoding.Encoding(target), scan.metadata)
    result = Image.open(tmp_path / f"out.{target}")
    assert result.size == (20, 30)
    exif = result.getexif()
    assert exif[ExifTags.Base.Artist] == "Prokudin-Gorskii"
    assert exif.get(ExifTags.Base.Orientation, 1) == 1, "a viewer must not rotate it again"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "1911:05:01 12:00:00"
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert "srgb" in result.info or result.info["icc_profile"]
    if "webp" not in (source, target):
        np.testing.assert_allclose([float(x) for x in result.info["dpi"]], 300, atol=0.01)
    if extra:
        xmp = str(result.info.get("xmp") or result.tag_v2[700])
        assert "Trinity" in xmp
        assert "Orientation" not in xmp


def test_metadata_can_be_left_out_and_text_stays_in_a_png(tiny_bundle_path, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "Trinity")
    Image.fromarray(RNG.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "a.png", pnginfo=text, exif=EXIF)
    options = [str(tmp_path / "a.png"), "--weights", str(tiny_bundle_path), "--output"]
    assert colorize.main([*options, str(tmp_path / "with")]) == 0
    assert colorize.main([*options, str(tmp_path / "without"), "--strip_metadata"]) == 0
    kept, stripped = (Image.open(tmp_path / name / "a.png") for name in ("with", "without"))
    assert (kept.text, kept.getexif()[ExifTags.Base.Artist]) == ({"Title": "Trinity"}, "Prokudin-Gorskii")
    assert (stripped.text, dict(stripped.getexif())) == ({}, {})
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(stripped))


@pytest.mark.parametrize("name", ["jpg", "webp", "tif"])
def test_other_formats_show_the_same_colours(tmp_path, name):
    # Colours of its own, as what is lost depends on them.
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 3))
    image = np.kron(colors, np.ones((16, 16, 1))).astype(np.uint8)
    encoding.write_image(tmp_path / f"a.{name}", image, encoding.Encoding(name))
    # Chroma at full resolution: the columns beside an edge keep their colours.
    assert np.abs(read_image(tmp_path / f"a.{name}").astype(int) - image).mean() < 4
    smaller = encoding.Encoding(name, quality=50) if name != "tif" else None
    if smaller:
        encoding.write_image(tmp_path / f"b.{name}", image, smaller)
        assert (tmp_path / f"b.{name}").stat().st_size < (tmp_path / f"a.{name}").stat().st_size


def test_compression_changes_the_size_of_a_png_alone(folder, tiny_bundle_path, tmp_path):
    Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))).save(folder / "0.png")
    options = [str(folder / "0.png"), "--weights", str(tiny_bundle_path), "--output"]
    for level in ("0", "9"):
        assert colorize.main([*options, str(tmp_path / level), "--compression", level]) == 0
    plain, small = (tmp_path / level / "0.png" for level in ("0", "9"))
    assert small.stat().st_size < plain.stat().st_size
    np.testing.assert_array_equal(read_image(small), read_image(plain))


def test_quality_is_that_of_the_files(folder, tiny_bundle_path, tmp_path):
    options = [str(folder / "0.png"), "--weights", str(tiny_bundle_path), "--format", "jpg", "--output"]
    for quality in ("20", "95"):
        assert colorize.main([*options, str(tmp_path / quality), "--quality", quality]) == 0
    small, large = ((tmp_path / quality / "0.jpg").stat().st_size for quality in ("20", "95"))
    assert small < large


def test_transparency_is_never_dropped_without_a_word(folder, tiny_bundle_path, tmp_path, capsys):
    Image.fromarray(RNG.integers(0, 256, (20, 30, 4), np.uint8)).save(folder / "2.png")
    options = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out"), "--format", "jpg"]
    assert colorize.main([str(folder), *options]) == 1
    captured = capsys.readouterr()
    assert "2.png: has transparency, which jpg does not hold; give --format png, webp, tif" in captured.err
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 6
    assert any("transparency" in line.get("error", "") for line in manifest(tmp_path / "out"))


@pytest.mark.parametrize("name", ["png", "tif"])
def test_sixteen_bits_keep_their_luminance(name, tiny_bundle_path, tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    ramp = np.tile(np.linspace(1000, 60000, 600).astype(np.uint16), (40, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.tif", dpi=(300, 300), exif=EXIF.tobytes())
    options = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out"), "--format", name]
    assert colorize.main([str(tmp_path / "ramp.tif"), *options]) == 0
    file = tmp_path / "out" / f"ramp.{name}"
    decode = {"png": imagecodecs.png_decode, "tif": imagecodecs.tiff_decode}[name]
    # Width and height change places, as EXIF says.
    result = decode(file.read_bytes()).astype(np.float64).swapaxes(0, 1)
    assert result.shape == (40, 600, 3)
    assert len(np.unique(result)) > 256
    # Each channel is rounded, to a 65,535th.
    np.testing.assert_allclose(result @ np.array([2989, 5870, 1140]) / 9999, ramp, atol=1)
    carried = Image.open(file)
    assert abs(carried.info["dpi"][0] - 300) < 0.01
    assert carried.info.get("srgb") == 1 or carried.info["icc_profile"]
    assert carried.getexif()[ExifTags.Base.Artist] == "Prokudin-Gorskii"


def test_it_is_told_where_sixteen_bits_are_not_kept(tiny_bundle_path, tmp_path, caplog):
    Image.fromarray(np.full((8, 9), 5000, np.uint16)).save(tmp_path / "a.png")
    options = [str(tmp_path / "a.png"), "--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out")]
    assert colorize.main([*options, "--format", "jpg"]) == 0
    assert "a.png: its 16 bits become 8; --format png or tif keeps them" in caplog.text


@pytest.mark.parametrize(("name", "plugin"), [("a.heic", "pillow_heif"), ("a.jxl", "pillow_jxl")])
def test_formats_of_plug_ins_are_read_or_the_package_is_named(tmp_path, name, plugin):
    pytest.importorskip(plugin)
    decoding._register_plugins()
    image = np.kron(RNG.integers(0, 256, (3, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / name, quality=95)
    assert np.abs(read_image(tmp_path / name).astype(int) - image).mean() < 8
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"pip install 'coltran_jax\[archive\]' reads it"):
        read_image(tmp_path / name)


def test_shares_are_disjoint_and_together_everything(arguments, tmp_path, capsys):
    for number in range(3):
        assert colorize.main([*arguments, str(tmp_path / "out"), "--shard", f"{number}/3"]) in (0, 2)
    assert len(contents(tmp_path / "out")) == 7
    inputs = [
        json.loads(line)["input"]
        for number in range(3)
        for line in (tmp_path / "out" / f"colorize-{number}.jsonl").read_text().splitlines()[1:]
    ]
    assert len(inputs) == len(set(inputs)) == 7
    assert colorize.main([*arguments, str(tmp_path / "out"), "--skip_existing"]) == 0
    assert "7 kept" in capsys.readouterr().out
    # One manifest in place of theirs says the same, also to a run that goes on.
    assert merge.main([str(tmp_path / "out")]) == 0
    assert "colorize.jsonl: 7 colorized, 0 failed, by 4 manifests" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.jsonl")] == ["colorize.jsonl"]
    assert sorted(line["input"] for line in manifest(tmp_path / "out") if "input" in line) == sorted(inputs)
    assert colorize.main([*arguments, str(tmp_path / "out"), "--skip_existing"]) == 0
    assert "7 kept" in capsys.readouterr().out
    message = refused(capsys, "colorize", *arguments, tmp_path / "out", "--skip_existing", "--seed", "5")
    assert "was made with seed 0, now 5" in message
    assert "no manifest (colorize*.jsonl), expected the --output" in refused(capsys, "merge", tmp_path)
    assert "'3/3', expected I/N" in refused(capsys, "colorize", *arguments, tmp_path / "out", "--shard", "3/3")


def test_a_merged_manifest_lists_what_failed_and_was_not_made_good(tmp_path, capsys):
    run = {"run": {"seed": 0}, "digest": "d"}
    first = [
        run,
        {"input": "a", "error": "a is damaged", "run": "d"},
        {"input": "b", "error": "b is damaged", "run": "d"},
    ]
    # One page of a file does not make another good.
    first += [{"input": "p", "page": 2, "error": "page 2 is damaged", "run": "d"}]
    second = [run, {"input": "b", "outputs": ["b.png"], "run": "d"}]
    second += [{"input": "p", "page": 1, "outputs": ["p-p1.png"], "run": "d"}]
    for number, lines in enumerate((first, second)):
        text = "\n".join(map(json.dumps, lines)) + '\n{"input": "c", "outp'
        (tmp_path / f"colorize-{number}.jsonl").write_text(text)
    assert merge.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "2 colorized, 2 failed, by 2 manifests" in printed.out
    assert printed.err == "error: a is damaged\nerror: page 2 is damaged\n"
    assert manifest(tmp_path) == [run, *second[1:], first[1], first[3]]


def test_every_page_is_colorized_where_that_is_asked_for(tiny_bundle_path, tmp_path):
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (0, 128, 255)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    options = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out"), "--pages", "all"]
    assert colorize.main([str(tmp_path / "a.tif"), *options]) == 0
    assert sorted(contents(tmp_path / "out")) == ["a-p1.png", "a-p2.png", "a-p3.png"]
    assert [line["page"] for line in manifest(tmp_path / "out")[1:]] == [1, 2, 3]
    # Black and white have no chroma.
    assert (read_image(tmp_path / "out" / "a-p1.png") == 0).all()
    assert (read_image(tmp_path / "out" / "a-p3.png") == 255).all()


def test_of_several_pages_the_first_is_read_with_a_notice(tmp_path, caplog):
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (read_image(tmp_path / "a.tif") == 10).all()
    assert "a.tif: of 3 pages or frames, the first is read" in caplog.text
