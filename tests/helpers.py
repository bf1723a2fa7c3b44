"""What several tests share: reference values, and networks made from them."""

import functools
import importlib
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from coltran_jax import config as configs
from coltran_jax.checkpoints import release
from coltran_jax.images import arrays
from coltran_jax.networks.registry import NETWORKS, build, parameter_shapes

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden"

# Colorizers of core_*.npz.
GOLDEN_COLORIZERS = (
    "default",
    "baseline_addition",
    "catt_only_v",
    "cln_mean_pool",
    "decoder_only_no_skip_cs",
    "no_catt",
    "no_cln",
    "no_cmlp",
    "shift_only",
)


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def variables(values: dict[str, np.ndarray], prefix: str = "var") -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{prefix}/"): v for key, v in values.items() if key.startswith(f"{prefix}/")}


def golden_config(text: str):
    model = json.loads(str(text))
    model = model.get("model", model)
    name = {"coltran_core": "colorizer"}.get(model["name"], model["name"])
    fields = {key: value for key, value in model.items() if key != "name"}
    optional = configs.ADDED_FIELDS | {"cond_att_shift", "dropout"}
    return configs.from_dict(NETWORKS[name].config_class, fields, optional=optional)


def golden_network(name: str):
    """Configuration, parameters and reference values of a file of golden/."""
    values = golden(name)
    config = golden_config(values["config"])
    params = release.parameters_from_variables(config, variables(values), ema=False)
    return config, jax.tree.map(jnp.asarray, params), values


def tiny_colorizer(resolution=(8, 6), **switches) -> configs.ColorizerConfig:
    shape = {"hidden_size": 12, "ff_size": 10, "num_heads": 3}
    return configs.ColorizerConfig(
        hidden_size=12,
        resolution=resolution,
        encoder=configs.EncoderConfig(**shape, num_encoder_layers=1),
        decoder=configs.DecoderConfig(
            **shape, resolution=resolution, num_outer_layers=2, num_inner_layers=2, **switches
        ),
    )


# Switches that the reference values do not cover.
_MORE_VARIANTS = {
    "scale_only": {"cond_att_shift": False, "cond_mlp": "scale"},
    "catt_q_only": {"cond_att_k": False, "cond_att_v": False},
    "cln_sigmoid_cs_mean": {"cond_ln_act": "sigmoid", "cond_ln_seq": "cs", "cond_ln_sp_ave": "mean"},
    "no_skip": {"skip": False},
}
VARIANTS = (*GOLDEN_COLORIZERS, *_MORE_VARIANTS)
# Those whose norms differ in kind, for what differs between norms of a whole image and of a row.
PER_ROW = ("default", "cln_mean_pool", "cln_sigmoid_cs_mean")


def teacher_forced(config, params, gray, coarse, **kwargs):
    """Logits and the parallel head's logits, compiled."""
    model = build(config)
    apply = jax.jit(lambda params, gray, coarse: model.apply({"params": params}, gray, coarse, **kwargs))
    return apply(params, gray, coarse)


def variant(name: str):
    """Configuration, parameters, gray and colours of a colorizer, from golden/ or fresh with every weight moved."""
    if name in GOLDEN_COLORIZERS:
        config, params, values = golden_network(f"core_{name}")
        return config, params, values["gray"], np.asarray(arrays.coarse_from_rgb(values["rgb"]))
    config = tiny_colorizer(**_MORE_VARIANTS[name])
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (2, *config.resolution, 1), np.uint8)
    colors = rng.integers(0, 512, (2, *config.resolution), np.int32)
    return config, moved_parameters(config), gray, colors


def moved_parameters(config: configs.NetworkConfig):
    """Parameters about as large as fresh ones, but none of them zero or one.

    To compile a network's own initialization takes longer than most tests do.
    """
    rng = np.random.default_rng(1)

    def value(path, leaf):
        name, spread = path[-1].key, 0.1
        if name not in ("bias", "relative_bias", "scale", "spatial_average"):
            spread += 0.2 if path[-2].key == "position" else np.sqrt(2 / (leaf.shape[0] + leaf.size / leaf.shape[0]))
        middle = 1 if name in ("scale", "spatial_average") else 0
        return jnp.asarray(middle + spread * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, parameter_shapes(config))


def tiny_upsampler(cls, resolution) -> configs.ColorUpsamplerConfig:
    return cls(hidden_size=8, ff_size=8, num_heads=2, num_encoder_layers=1, resolution=resolution)


def start(*args, stderr=subprocess.PIPE, before=(), **env) -> subprocess.Popen:
    """Starts `python -m ARGS` in the project, as a user would."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["FLAGS_OF_ONE_DEVICE"], **env},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def run(*args, **env) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    with start(*args, **env) as process:
        stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def refused(capsys, command: str, *args) -> str:
    """Calls a command's `main` with what it must refuse, before anything slow; returns the one line on stderr."""
    module = importlib.import_module(f"coltran_jax.cli.{command}")
    try:
        status = module.main([str(arg) for arg in args])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2, captured.out + captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    return captured.err


def cluster_flags(num_processes: int) -> list[str]:
    """For all processes of a cluster on this machine, but for their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [f"--coordinator_address={address}", f"--num_processes={num_processes}"]


def import_torchvision():
    """Imports torchvision, where libraries of metrics are, or skips the test.

    Its package may be built for another PyTorch than the one that is installed, and then lacks two operators, of
    which no network here has any.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _OPERATORS.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _OPERATORS[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


# They last as long as what defined them.
_OPERATORS = []


def prepare_imagenet(root, file_format, num_validation=3):
    """Archives of the official layout, prepared by the real builder: the folder, and name -> bytes of every image."""
    tfds = pytest.importorskip("tensorflow_datasets")
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    images = {}
    synsets = {}
    for synset in ("n01440764", "n01443537"):
        files = {f"{synset}_{i}.JPEG": jpeg((40 * i, 100, 200)) for i in range(6)}
        images.update(files)
        synsets[f"{synset}.tar"] = archive_of(files)
    (manual / "ILSVRC2012_img_train.tar").write_bytes(archive_of(synsets))
    validation = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg((10 * i, 5, 5)) for i in range(1, num_validation + 1)}
    (manual / "ILSVRC2012_img_val.tar").write_bytes(archive_of(validation))
    builder = tfds.builder("imagenet2012", data_dir=root / "data", file_format=file_format)
    builder.download_and_prepare(download_dir=root / "downloads")
    return str(root / "data"), {**images, **validation}


def archive_of(files):
    """A tar archive of files: name -> bytes."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def jpeg(color, size=(50, 37)):
    """The bytes of a JPEG of one colour."""
    memory = io.BytesIO()
    Image.new("RGB", size, color).save(memory, "JPEG", quality=95)
    return memory.getvalue()
