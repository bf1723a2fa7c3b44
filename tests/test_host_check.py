"""What Pallas kernels draw first is compared with XLA's operations before `colorize` relies on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coltran_jax import host_check
from coltran_jax.checkpoints.bundles import load_bundle
from coltran_jax.errors import KernelError
from coltran_jax.images.hints import KnownColors
from coltran_jax.inference import Inference
from coltran_jax.networks import upsampler
from coltran_jax.nn import attention_kernels, block_kernel
from coltran_jax.nn.compute import Compute, compute_for
from coltran_jax.pipeline import Pipeline, load_pipeline
from coltran_jax.sampling import row_kernel

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
HINTS = np.zeros((32, 32, 4), np.uint8)
HINTS[8:12, 8:12] = 200, 20, 20, 255
# Each decides what is drawn.
OPTIONS = {"temperature": 1.5, "min_p": 0.1, "top_p": 0.9, "best_of": 3}


def pipeline_of(path):
    return load_pipeline(path, compute=Compute(jnp.bfloat16, backend="pallas_interpreted"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("cpu",), ("float32", "xla")),
        (("gpu",), ("bfloat16", "xla")),
        (("tpu",), ("bfloat16", "pallas")),
        (("tpu", "float32"), ("float32", "xla")),
        (("tpu", "auto", "xla"), ("bfloat16", "xla")),
        (("cpu", "bfloat16"), ("bfloat16", "xla")),
    ],
)
def test_auto_goes_by_the_devices(asked, expected):
    found = compute_for(*asked)
    assert (found.dtype.name, found.backend) == expected


def test_kernels_are_checked_once(tiny_bundle_path, monkeypatch):
    pipeline, found = pipeline_of(tiny_bundle_path), []
    right = host_check.losses
    monkeypatch.setattr(host_check, "losses", lambda *args: found.append(right(*args)) or found[-1])
    for seed in (5, 6):
        pipeline.colorize([IMAGE], **OPTIONS, seed=seed)
    (losses,) = found
    expected = ["likelihoods", "draws", "intensities of the color upsampler", "intensities of the spatial upsampler"]
    assert list(losses) == expected
    assert 1e-6 < max(losses.values()) < host_check.TOLERANCE / 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"known": [KnownColors(HINTS)], "particles": 2}, {"as_released": True}, {"guidance": 2.0}]
)
def test_kernels_pass(tiny_bundle_path, options):
    table = np.random.default_rng(1).normal(size=(256, 512)).astype(np.float32)
    bundle = dataclasses.replace(load_bundle(tiny_bundle_path), gray_table=table)
    pipeline = Pipeline(bundle, compute=Compute(jnp.bfloat16, backend="pallas_interpreted"))
    pipeline.colorize([IMAGE], **options)
    assert pipeline._networks.unchecked is None


def _no_noise(monkeypatch):
    right = row_kernel.perturbed
    monkeypatch.setattr(row_kernel, "perturbed", lambda logits, noise, *rest: right(logits, 0 * noise, *rest))


def _no_bias(monkeypatch):
    right = attention_kernels.softmax_weights
    monkeypatch.setattr(block_kernel, "softmax_weights", lambda q, k, bias: right(q, k, 0 * bias))


def _no_embedding(monkeypatch):
    right = row_kernel.prepare

    def prepare(*args):
        prepared = right(*args)
        weights = prepared["weights"]
        return {**prepared, "weights": {**weights, "embedding": 0 * weights["embedding"]}}

    monkeypatch.setattr(row_kernel, "prepare", prepare)


def _another_intensity(monkeypatch):
    right = upsampler._most_probable
    monkeypatch.setattr(upsampler, "_most_probable", lambda logits: right(logits) ^ 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_no_noise, "draws are off by 0.77"),
        (_no_bias, "likelihoods are off by 0.78"),
        (_no_embedding, "likelihoods are off by 0.099"),
        (_another_intensity, "intensities of the color upsampler are off by"),
    ],
)
def test_what_is_off_is_named(tiny_bundle_path, monkeypatch, fault, message):
    bundle = load_bundle(tiny_bundle_path)
    # Small weights hardly look at other pixels.
    bundle = dataclasses.replace(bundle, params=jax.tree.map(lambda x: 2 * x, bundle.params))
    pipeline = Pipeline(bundle, compute=Compute(backend="pallas_interpreted"))
    jax.clear_caches()
    fault(monkeypatch)
    with pytest.raises(KernelError, match=f"on cpu give another image .*: {message}"):
        pipeline.colorize([IMAGE], **OPTIONS, seed=5)
    # Not with kernels that passed before.
    jax.clear_caches()


def test_kernels_that_do_not_run_are_told_of_in_one_line(tiny_bundle_path, monkeypatch):
    def encode(self, gray):
        raise jax.errors.JaxRuntimeError(message + "\nat ...")

    monkeypatch.setattr(Inference, "encode", encode)
    pipeline = pipeline_of(tiny_bundle_path)
    for message in ("INTERNAL: Mosaic", "RESOURCE_EXHAUSTED: memory space vmem"):
        with pytest.raises(KernelError, match=rf"do not run on cpu \({message}\): take the backend 'xla'"):
            pipeline.colorize([IMAGE])
    # Of a batch, which may be smaller.
    message = "RESOURCE_EXHAUSTED: memory space hbm"
    with pytest.raises(jax.errors.JaxRuntimeError):
        pipeline.colorize([IMAGE])
    # Once kernels have passed, or without any, it is an error of something else.
    message, pipeline._networks.unchecked = "INTERNAL: Mosaic", None
    with pytest.raises(jax.errors.JaxRuntimeError):
        pipeline.colorize([IMAGE])
