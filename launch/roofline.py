"""The roofline of a stage: its arithmetic and its memory traffic against what the device can do.

Two floors, each as if the other were free. Arithmetic is XLA's count of a plain forward pass, which sampling cannot do
without. Traffic is what must cross the device's memory even with perfect fusion: the weights once for each time that
they are needed, the caches that attention reads, and activations once in and once out of each block.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.config import ColorizerConfig, NetworkConfig
from coltran_jax.networks.registry import build, initialize
from coltran_jax.training.reporting import count_flops

_MATRIX = {"cpu": 4096, "accelerator": 8192}
_ARRAY_BYTES = {"cpu": 2**29, "accelerator": 2**32}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured rates of a device.

    Attributes:
        flops_per_sec: of a large square matrix product.
        bytes_per_sec: of memory, read and written; see `measure_bandwidth`.
    """

    flops_per_sec: float
    bytes_per_sec: float


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a stage, for a whole batch.

    Attributes:
        flops: floating-point operations.
        bytes: that cross the memory.
        working_set: bytes that are read again and again; 0 for more than any cache holds.
    """

    flops: float
    bytes: float
    working_set: int = 0

    def roofline_secs(self, rates: Rates) -> tuple[float, float]:
        """Returns the least seconds by arithmetic and by memory."""
        # What is used again at once may stay in a cache, which is faster than the memory.
        bandwidth = measure_bandwidth(self.working_set) if self.working_set else rates.bytes_per_sec
        return self.flops / rates.flops_per_sec, self.bytes / bandwidth


def measure_rates(dtype: jnp.dtype, kind: str, repeats: int = 5) -> Rates:
    """Measures the first device, for matrix products in this dtype; kind is "cpu" or "accelerator"."""
    side = _MATRIX[kind]
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest" if x.dtype == jnp.float32 else None))
    secs = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix))
        secs.append(time.perf_counter() - started)
    return Rates(2 * side**3 / min(secs[1:]), measure_bandwidth(_ARRAY_BYTES[kind]))


@functools.cache
def measure_bandwidth(size: int, repeats: int = 5) -> float:
    """Bytes a second, read and written, of adding one again and again to an array of so many bytes."""
    rounds = max(1, min(64, 2**31 // size))
    # In place: what is written is not first fetched to a new place.
    added = jax.jit(lambda x: jax.lax.fori_loop(0, rounds, lambda _, x: x + 1, x), donate_argnums=0)
    array = jnp.zeros(size // 4, jnp.float32)
    secs = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        array = jax.block_until_ready(added(array))
        secs.append(time.perf_counter() - started)
    return 2 * rounds * array.nbytes / min(secs[1:])


def _size(tree: Any, only: str | None = None, without: tuple[str, ...] = ()) -> int:
    """Numbers in a tree of arrays, in those whose path has `only` and nothing of `without`."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = {key.key for key in path}
        if (only is None or only in names) and not names.intersection(without):
            total += int(np.prod(leaf.shape))
    return total


def colorizer_work(config: ColorizerConfig, batch: int, itemsize: int, passes: int | None = None) -> dict[str, Work]:
    """Returns the work of the gray encoder and of the decoders.

    Args:
        config: shape and switches.
        batch: images.
        itemsize: bytes of a weight and of an activation.
        passes: over the weights of the inner decoder, for the whole batch; by default one for each pixel.
    """
    model = build(config)
    height, width = config.resolution
    params = jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
    gray = jax.ShapeDtypeStruct((batch, height, width, 1), jnp.uint8)
    coarse = jax.ShapeDtypeStruct((batch, height, width), jnp.int32)
    encoder = count_flops(lambda p, g: model.apply({"params": p}, g, method="encode"), params, gray)
    whole = count_flops(lambda p, g, c: model.apply({"params": p}, g, c)[0], params, gray, coarse)
    pixels, decoder = height * width, config.decoder
    inner, outer = params["inner_decoder"], params["outer_decoder"]
    # What turns z and outer context into conditions runs a row at a time, the norms' once for an image.
    conditions = ("context", "attention_norm", "mlp_norm")
    per_pixel = _size({name: params[name] for name in ("final_norm", "head")}) + _size(inner, without=conditions)
    per_row = _size(outer, without=conditions[1:]) + _size(inner, only="context")
    passes = passes or pixels
    # Keys and values of a row, read for each of its pixels; of the rows above, for each row.
    caches = decoder.num_inner_layers * passes * width + decoder.num_outer_layers * pixels * height
    caches *= 2 * batch * decoder.hidden_size
    return {
        "gray encoder": Work(
            encoder,
            itemsize
            * (
                _size(params["encoder"])
                + _activations(batch * pixels, config.encoder.hidden_size, config.encoder.num_encoder_layers)
            ),
        ),
        "decoders": Work(
            whole - encoder, itemsize * (passes * per_pixel + height * per_row + caches), itemsize * per_pixel
        ),
    }


def upsampler_work(config: NetworkConfig, batch: int, chunk: int, itemsize: int) -> Work:
    """Returns the work of an upsampler that computes `chunk` channels at a time."""
    model = build(config)
    height, width = config.resolution
    params = jax.eval_shape(functools.partial(initialize, config), jax.random.key(0))
    gray = jax.ShapeDtypeStruct((1, height, width, 1), jnp.uint8)
    values = jax.ShapeDtypeStruct((1, height, width), jnp.uint8)
    channel = jax.ShapeDtypeStruct((1,), jnp.int32)
    flops = count_flops(lambda p, g, v, c: model.apply({"params": p}, g, v, c), params, gray, values, channel)
    channels = 3 * batch
    activations = _activations(channels * height * width, config.hidden_size, config.num_encoder_layers)
    return Work(channels * flops, itemsize * (-(-channels // chunk) * _size(params) + activations))


def _activations(pixels: int, features: int, layers: int) -> int:
    """Numbers that pass in and out of the two blocks of each layer."""
    return 2 * 2 * layers * pixels * features
