"""Images and results in object stores: fsspec's in memory, and Amazon's and Google's by servers on this machine."""

import io
import json
import sys

import numpy as np
import pytest
from helpers import refused
from PIL import Image

from coltran_jax import manifest
from coltran_jax.cli import colorize, merge
from coltran_jax.files import path_of

pytest.importorskip("upath")
NAMES = ("a.png", "deep/er/b.jpg", "deep/c.png")


@pytest.fixture
def memory():
    import fsspec

    store = fsspec.filesystem("memory")
    yield path_of("memory://bucket")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def s3(monkeypatch):
    s3fs, server = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = path_of("s3://bucket").fs
    store.makedirs("bucket", exist_ok=True)
    yield path_of("s3://bucket")
    # All such servers of a process have the same buckets.
    store.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture
def gs(monkeypatch):
    gcsfs, server = pytest.importorskip("gcsfs"), pytest.importorskip("gcp_storage_emulator.server")
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    running.start()
    _, port = running._api._httpd.server_address
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield path_of("gs://bucket")
    gcsfs.GCSFileSystem.clear_instance_cache()
    running.stop()


@pytest.fixture(params=["memory", "s3", "gs"])
def bucket(request):
    return request.getfixturevalue(request.param)


def fill(folder):
    """Puts images there, and files that are none."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        encoded = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8)).save(encoded, "PNG")
        path = folder / name
        if not hasattr(path, "fs"):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())
    (folder / "notes.txt").write_bytes(b"no image")


def lines_of(folder):
    return [
        json.loads(line) for path in sorted(folder.glob("colorize*.jsonl")) for line in path.read_text().splitlines()
    ]


def test_results_in_a_store_are_those_on_a_disk(bucket, tiny_bundle_path, tmp_path, capsys):
    fill(bucket / "in")
    fill(tmp_path / "in")
    options = ["--weights", str(tiny_bundle_path), "--samples", "2"]
    assert colorize.main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), *options]) == 0
    assert colorize.main([str(bucket / "in"), "--output", str(bucket / "out"), *options]) == 0
    assert "3 images colorized" in capsys.readouterr().out
    for name in ("a-1.png", "a-2.png", "deep/er/b-1.png", "deep/c-2.png"):
        assert (bucket / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()

    # The run goes on where one of its results is missing, with the same options alone.
    (bucket / "out" / "deep/c-2.png").unlink()
    arguments = [str(bucket / "in"), "--output", str(bucket / "out"), "--skip_existing", *options]
    assert "was made with seed 0, now 1" in refused_later(capsys, [*arguments, "--seed", "1"])
    assert colorize.main(arguments) == 0
    assert "1 image colorized" in (out := capsys.readouterr().out)
    assert "2 kept that exist" in out
    assert (bucket / "out" / "deep/c-2.png").read_bytes() == (tmp_path / "out" / "deep/c-2.png").read_bytes()

    assert merge.main([str(bucket / "out")]) == 0
    assert (bucket / "out" / manifest.NAME).exists()
    run, *images = lines_of(bucket / "out")
    assert run["run"]["seed"] == 0
    assert {line["input"] for line in images} == {str(bucket / "in" / name) for name in NAMES}


def refused_later(capsys, arguments):
    """The one line of an error that is found after the weights are there."""
    assert colorize.main(arguments) == 2
    return capsys.readouterr().err


def test_a_list_may_name_images_of_stores(memory, tiny_bundle_path, tmp_path):
    fill(memory / "in")
    (tmp_path / "list.txt").write_text(f"{memory}/in/a.png\n{memory}/in/deep/c.png\n")
    options = ["--weights", str(tiny_bundle_path), "--output", str(tmp_path / "out")]
    assert colorize.main(["--list", str(tmp_path / "list.txt"), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]


def test_a_manifest_is_sent_in_parts_and_read_as_one(memory, monkeypatch):
    monkeypatch.setattr(manifest, "_SECS_A_PART", -1)
    record = manifest.Manifest(memory, {"seed": 3})
    record.begin()
    for number in range(3):
        record.add(memory / f"{number}.png", outputs=[memory / f"{number}.jpg"])
    record.close()
    assert len(list(memory.glob("colorize*.jsonl"))) == 4
    outputs = [memory / f"{number}.jpg" for number in range(3)]
    manifest.Manifest(memory, {"seed": 3}).check(outputs)
    with pytest.raises(ValueError, match="seed 3, now 4"):
        manifest.Manifest(memory, {"seed": 4}).check(outputs)
    assert manifest.merge(memory).done == 3
    assert [path.name for path in memory.glob("colorize*.jsonl")] == [manifest.NAME]


def test_stores_that_cannot_be_used_are_told_before_weights_are_read(s3, gs, tmp_path, monkeypatch, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--weights", tmp_path / "none.safetensors", "--output"]
    for store in ("s3", "gs"):
        message = refused(capsys, "colorize", *arguments, f"{store}://no-such-bucket/out")
        assert f"{store}://no-such-bucket/out: cannot be written to (no such bucket)" in message
        message = refused(capsys, "colorize", f"{store}://bucket/none", *arguments[1:], tmp_path / "out")
        assert f"{store}://bucket/none: no such file or folder" in message
    assert "nosuch://bucket/out: Unsupported filesystem" in refused(
        capsys, "colorize", *arguments, "nosuch://bucket/out"
    )
    monkeypatch.setitem(sys.modules, "adlfs", None)
    assert "az://bucket/out: Install adlfs" in refused(capsys, "colorize", *arguments, "az://bucket/out")
    monkeypatch.setitem(sys.modules, "upath", None)
    message = refused(capsys, "colorize", *arguments, "s3://bucket/out")
    assert "s3://bucket/out: object stores take pip install 'coltran_jax[remote]'" in message
    # Other options name files of this machine.
    message = refused(capsys, "colorize", *arguments[:1], "--output", tmp_path, "--weights", "gs://bucket/mini")
    assert "'gs://bucket/mini': expected a path" in message


def test_what_a_store_fails_at_does_not_stop_the_other_images(memory, tiny_bundle_path, monkeypatch, capsys):
    fill(memory / "in")
    store = memory.fs
    opened, put = store._open, store.put_file

    class ConnectionLost(Exception):
        """What is no error of the system, as those of stores are."""

    def open_file(path, *args, **kwargs):
        if path.endswith("in/a.png"):
            raise ConnectionLost("connection\nlost")
        return opened(path, *args, **kwargs)

    def put_file(source, target, **kwargs):
        if target.endswith("out/deep/c.png"):
            raise ConnectionLost("connection\nlost")
        return put(source, target, **kwargs)

    monkeypatch.setattr(store, "_open", open_file)
    monkeypatch.setattr(store, "put_file", put_file)
    assert colorize.main([str(memory / "in"), "--output", str(memory / "out"), "--weights", str(tiny_bundle_path)]) == 1
    captured = capsys.readouterr()
    assert "a.png: cannot be read from its store (connection lost)" in captured.err
    assert "out/deep/c.png could not be written (connection lost)" in captured.err
    assert (memory / "out" / "deep" / "er" / "b.png").exists()
