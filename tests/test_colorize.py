"""`python -m coltran_jax colorize`, as a user runs it."""

import dataclasses
import errno
import io
import os
import shutil
import subprocess
import sys

import helpers
import numpy as np
import pytest
from helpers import GOLDEN, ROOT, cluster_flags, golden, run, start
from PIL import Image

from coltran_jax.checkpoints.bundles import load_bundle, save_bundle
from coltran_jax.cli import colorize
from coltran_jax.images import arrays

PHOTO = GOLDEN / "pipeline" / "gray.png"


def colorized(*args, **env):
    return run("coltran_jax", "colorize", *args, **env)


def failed(done, *messages, status=2):
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(messages), done.stderr
    for line, message in zip(lines, messages, strict=True):
        assert message in line
    assert "Traceback" not in done.stderr


@pytest.fixture
def photo(tmp_path):
    """A small image, quickly read and written."""
    Image.open(PHOTO).resize((60, 40)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_greedy_squares_as_released_equal_the_release(bundle_path, tmp_path, cache):
    output = tmp_path / "out"
    images = [GOLDEN / "pipeline" / f"{tag}.png" for tag in ("rgb", "gray")]
    options = ["--square", "--greedy", "--as_released", "--stages", "--grid"]
    done = colorized(*images, "--output", output, "--weights", bundle_path, *options, JAX_COMPILATION_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    for tag in ("rgb", "gray"):
        coarse = np.asarray(Image.open(output / f"{tag}-coarse.png"))
        np.testing.assert_array_equal(coarse, golden("pipeline/expected")[f"{tag}/argmax_coarse"])
        assert Image.open(output / f"{tag}.png").size == (256, 256)
        assert Image.open(output / f"{tag}-fine.png").size == (64, 64)
    expected = {f"{tag}{end}.png" for tag in ("rgb", "gray") for end in ("", "-coarse", "-fine")} | {
        "grid.png",
        "colorize.jsonl",
    }
    assert {path.name for path in output.iterdir()} == expected
    sheet = np.asarray(Image.open(output / "grid.png"))
    assert sheet.shape == (8 + 2 * (256 + 8), 8 + 3 * (256 + 8), 3), "gray, result and, of the colour image, itself"
    truth = arrays.area_resize(arrays.center_square(np.asarray(Image.open(images[0]))), 256, 256)
    np.testing.assert_array_equal(sheet[8:264, -264:-8], truth)
    lines = done.stdout.splitlines()
    assert [line.split(" -> ")[0] for line in lines[:2]] == [str(image) for image in images]
    assert lines[2].startswith("2 images colorized in ")
    assert any(os.scandir(cache)), "the compiled programs are kept"


def test_folders_samples_failures_and_skipped_files(tiny_bundle_path, photo, tmp_path, cache):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(photo, folder / "a.png")
    shutil.copy(photo, folder / "sub" / "a.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("text")
    output = tmp_path / "out"
    options = ["--samples", 2, "--stages", "--weights", tiny_bundle_path, "--seed", 3]
    done = colorized(folder, photo, "--output", output, *options, JAX_COMPILATION_CACHE_DIR=cache)
    failed(done, "broken.jpg: ", status=1)
    names = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    bases = ("a", "sub/a", "photo")
    assert names == {f"{b}-{n}{end}.png" for b in bases for n in (1, 2) for end in ("", "-coarse", "-fine")}
    assert "3 images colorized, 2 samples each," in done.stdout
    assert done.stdout.splitlines()[-1].endswith("; 1 failed; 1 other file skipped")
    # The same content and seed: the same colours, wherever the file lies and whatever it is called.
    files = [[(output / f"{base}-{number}.png").read_bytes() for base in bases] for number in (1, 2)]
    assert [len(set(same)) for same in files] == [1, 1]
    assert files[0][0] != files[1][0]
    assert Image.open(output / "a-1.png").size == (60, 40)


def arguments(tiny_bundle_path, photo, **changes):
    values = {"paths": [photo], "output": photo.parent / "out", "weights": tiny_bundle_path, **changes}
    return [*values["paths"], "--output", values["output"], "--weights", values["weights"]]


def in_process(capsys, args):
    """Runs the command line in this process, which is quicker; returns exit status and stderr."""
    status = colorize.main([str(arg) for arg in args])
    return status, capsys.readouterr().err


def refused(capsys, args, message):
    assert message in helpers.refused(capsys, "colorize", *args)


def test_impossible_paths_are_refused_before_anything_starts(tiny_bundle_path, photo, capsys, tmp_path):
    def with_(**changes):
        return arguments(tiny_bundle_path, photo, **changes)

    (tmp_path / "empty").mkdir()
    refused(capsys, with_(paths=[tmp_path / "none.jpg"]), "none.jpg: no such file or folder")
    refused(capsys, with_(paths=[tmp_path / "empty"]), "empty: no images in this folder")
    other = tmp_path / "other" / "photo.jpg"
    other.parent.mkdir()
    shutil.copy(photo, other)
    refused(capsys, with_(paths=[photo, other]), "would both write")
    refused(capsys, with_(output=photo), "photo.png: cannot be written to")
    refused(capsys, with_(weights=tmp_path / "none.safetensors"), "no such file; expected a bundle")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(tiny_bundle_path.read_bytes()[:-9])
    refused(capsys, with_(weights=damaged), "damaged")
    # Before the bundle is read.
    refused(
        capsys,
        [*with_(weights=damaged), "--backend", "pallas"],
        "expected 'xla': Pallas is for TPUs, and the devices are cpu",
    )
    assert not (tmp_path / "out").exists()


def test_names_of_samples_and_stages_may_not_collide(tiny_bundle_path, photo, capsys):
    shutil.copy(photo, photo.parent / "photo-coarse.png")
    args = arguments(tiny_bundle_path, photo, paths=[photo, photo.parent / "photo-coarse.png"])
    refused(capsys, [*args, "--stages"], "would both write")


def test_outputs_are_replaced_only_when_asked(tiny_bundle_path, photo, capsys):
    output = photo.parent / "out"
    output.mkdir()
    (output / "photo.png").write_bytes(b"precious")
    refused(
        capsys,
        arguments(tiny_bundle_path, photo),
        "photo.png exists; give --skip_existing to keep it, --overwrite to replace it",
    )
    assert (output / "photo.png").read_bytes() == b"precious"
    status, _ = in_process(capsys, [*arguments(tiny_bundle_path, photo), "--overwrite", "--batch_size", 1])
    assert status == 0
    assert Image.open(output / "photo.png").size == (60, 40)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folders_without_permission_are_refused(tiny_bundle_path, photo, capsys):
    (photo.parent / "out").mkdir(mode=0o500)
    refused(capsys, arguments(tiny_bundle_path, photo), "cannot be written to")


def test_a_single_image_that_fails_is_an_error(tiny_bundle_path, photo, capsys):
    photo.write_bytes(photo.read_bytes()[:200])
    status, error = in_process(capsys, arguments(tiny_bundle_path, photo))
    assert status == 2
    assert "error: " in error
    assert [path.name for path in (photo.parent / "out").iterdir()] == ["colorize.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples must be above 0, got 0"),
        (["--temperature", "-1"], "--temperature must be above 0, got -1.0"),
        (["--temperature", "nan"], "--temperature must be above 0, got nan"),
        (["--min_p", "1.5"], "--min_p must be from 0 to 1, got 1.5"),
        (["--seed", "9" * 30], "--seed must be a whole number from -2**31 to 2**32 - 1"),
        (["--greedy", "--samples", "2"], "--greedy gives one colorization"),
        (["--dtype", "float16"], "invalid choice"),
    ],
)
def test_impossible_options_are_refused(tiny_bundle_path, photo, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        colorize.main([*map(str, arguments(tiny_bundle_path, photo)), *options])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_too_little_memory_is_told_in_one_line(tiny_bundle_path, photo, capsys, monkeypatch):
    def exhausted(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr("coltran_jax.pipeline.Pipeline.draw", exhausted)
    status, error = in_process(capsys, arguments(tiny_bundle_path, photo))
    assert status == 2
    assert error.endswith("give a smaller --batch_size\n")


def test_bfloat16_and_temperature(tiny_bundle_path, photo, capsys):
    args = [*arguments(tiny_bundle_path, photo), "--dtype", "bfloat16", "--temperature", "0.5"]
    assert in_process(capsys, args)[0] == 0
    assert (photo.parent / "out" / "photo.png").exists()


def test_the_way_to_a_row_changes_no_image(tiny_bundle_path, photo, capsys):
    images = []
    for decoder in ("sequential", "fixed_point"):
        args = [*arguments(tiny_bundle_path, photo), "--decoder", decoder, "--overwrite"]
        assert in_process(capsys, args)[0] == 0
        images.append(np.asarray(Image.open(photo.parent / "out" / "photo.png")))
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_two_processes_share_the_images(tiny_bundle_path, tmp_path, cache):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    command = ["coltran_jax", "colorize", folder, "--weights", tiny_bundle_path, "--output"]
    cluster = ["--distributed", *cluster_flags(2)]
    processes = [
        start(*command, tmp_path / "two", *cluster, f"--process_id={i}", JAX_COMPILATION_CACHE_DIR=cache)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 images colorized" in outputs[0][0]
    assert "1 image colorized" in outputs[1][0]
    assert run(*command, tmp_path / "one", JAX_COMPILATION_CACHE_DIR=cache).returncode == 0
    for number in range(3):
        files = [tmp_path / name / f"{number}.png" for name in ("one", "two")]
        np.testing.assert_array_equal(*(np.asarray(Image.open(file)) for file in files))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distributed", "--grid"], "--grid is one sheet"),
        (["--num_processes=2"], "--num_processes goes with --distributed"),
    ],
)
def test_clusters_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit):
        colorize.parse_args(["a.png", "--output=b", *options])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux")
def test_programs_start_again_once_on_huge_pages(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from coltran_jax.cli.shared import use_huge_pages\n"
        "print('started', flush=True)\n"
        "use_huge_pages()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    for own, printed in [
        ({}, "started\nstarted\nglibc.malloc.hugetlb=1 ['a b', '--c']\n"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "started\nglibc.malloc.check=0 ['a b', '--c']\n"),
    ]:
        command = [sys.executable, str(program), "a b", "--c"]
        environment_of_run = {**environment, "PYTHONPATH": str(ROOT), **own}
        done = subprocess.run(command, env=environment_of_run, capture_output=True, text=True)
        assert done.stdout == printed, done.stderr


def test_a_file_that_ends_early_is_colorized_where_that_is_allowed(tiny_bundle_path, tmp_path, capsys):
    photo = tmp_path / "early.jpg"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint32).astype(np.uint8).reshape(64, 64)).save(photo)
    photo.write_bytes(photo.read_bytes()[:-2])
    status, error = in_process(capsys, arguments(tiny_bundle_path, photo))
    assert status == 2
    assert "early.jpg: the file ends early" in error
    assert "--allow_truncated colours what is there" in error
    assert in_process(capsys, [*arguments(tiny_bundle_path, photo), "--allow_truncated"])[0] == 0
    assert (tmp_path / "out" / "early.png").exists()


def test_a_result_that_cannot_be_written_is_told_with_its_image(tiny_bundle_path, photo, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("coltran_jax.colorize_files.write_image", full)
    status, error = in_process(capsys, arguments(tiny_bundle_path, photo))
    assert status == 2
    output = photo.parent / "out" / "photo.png"
    assert f"error: {photo}: {output} could not be written (No space left on device)\n" in error


def test_one_image_may_come_from_the_standard_input(tiny_bundle_path, photo, tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-m", "coltran_jax", "colorize", "-", "--output", tmp_path / "out"]
    command += ["--weights", tiny_bundle_path]
    done = subprocess.run(command, input=photo.read_bytes(), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    with photo.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert colorize.main([*map(str, command[4:]), "--name=scan"]) == 0
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"stdin", "scan"}
    refused(capsys, [str(photo), f"--output={tmp_path}", "--name=scan"], "it goes with PATH -")


def test_options_that_the_bundle_recommends_are_used_and_told(tiny_bundle_path, photo, capsys, tmp_path):
    recommending = tmp_path / "recommending.safetensors"
    save_bundle(recommending, dataclasses.replace(load_bundle(tiny_bundle_path), recommended={"min_p": 0.9}))
    images = {}
    for name, bundle, options in (
        ("as recommended", recommending, []),
        ("asked for", tiny_bundle_path, ["--min_p", "0.9"]),
        ("refused", recommending, ["--min_p", "0"]),
        ("plain", tiny_bundle_path, []),
    ):
        assert colorize.main([*map(str, arguments(bundle, photo)), *options, "--overwrite"]) == 0
        told = "recommended for these weights: --min_p 0.9" in capsys.readouterr().out
        assert told == (name == "as recommended")
        images[name] = (photo.parent / "out" / "photo.png").read_bytes()
    assert images["as recommended"] == images["asked for"] != images["plain"] == images["refused"]


def test_guidance_takes_a_table_of_colours(tiny_bundle_path, photo, capsys, tmp_path):
    refused(capsys, [*map(str, arguments(tiny_bundle_path, photo)), "--guidance=0.5"], "no table of colours")
    assert not (photo.parent / "out").exists()
    guided, bundle = tmp_path / "guided.safetensors", load_bundle(tiny_bundle_path)
    # Of each gray value one colour is likely: the others are favoured.
    table = np.full((256, 512), -9.0, np.float32)
    table[:, 0] = -0.1
    save_bundle(guided, dataclasses.replace(bundle, recommended={"guidance": 2.0}, gray_table=table))
    images = []
    for options in (["--greedy"], ["--greedy", "--guidance=0"]):
        assert colorize.main([*map(str, arguments(guided, photo)), *options, "--overwrite"]) == 0
        assert ("--guidance 2.0" in capsys.readouterr().out) == (len(options) == 1)
        images.append((photo.parent / "out" / "photo.png").read_bytes())
    assert images[0] != images[1]
