"""A row of the inner decoder as one Pallas kernel for TPUs.

XLA makes some sixty operations of a pixel, each of which takes a microsecond to start, whatever it computes. Here the
pixels of a row are the steps of one kernel: weights, keys and values stay in the memory next to the TPU's arithmetic
(VMEM) while a row is drawn, and what a pixel needs beside them is fetched while the pixel before is computed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from coltran_jax.nn import attention_kernels
from coltran_jax.nn.attention_kernels import OnlineSoftmax, pad, scaled_queries
from coltran_jax.nn.axial import NormCondition, SublayerCondition
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.nn.kernel_layers import always, dense, dense_of, finish, norm, weights_of
from coltran_jax.nn.parameters import Parameters
from coltran_jax.sampling.noise import perturbed

# Bytes for what the compiler keeps beside arrays.
_SPARE = 2**20


def prepare(model: Colorizer, params: Parameters) -> dict[str, Any]:
    """Shapes the parameters, cast by `in_compute_dtype`, for `decode_row`; once for all rows."""
    config = model.config.decoder
    biases = model.apply({"params": params}, method=lambda m: [b.attention.bias() for b in m.inner_decoder.blocks])
    weights = {
        "blocks": [
            weights_of(params["inner_decoder"][f"blocks_{i}"], model.compute.dtype)
            for i in range(config.num_inner_layers)
        ],
        "final_norm": always(params["final_norm"]),
        "head": dense_of(params["head"], model.compute.dtype),
        "embedding": params["pixel_embedding"]["kernel"],
    }
    # Biases are (W, L, N), of each pixel's query.
    return {"biases": [jnp.moveaxis(bias, 0, 2) for bias in biases], "weights": weights}


def decode_row(
    model: Colorizer,
    prepared: dict[str, Any],
    base: jax.Array,
    conditions: tuple[SublayerCondition, ...],
    norms: tuple[NormCondition, ...],
    noise: jax.Array,
    known: jax.Array,
    tilt: jax.Array | None,
    temperature: jax.Array | float,
    log_min_p: jax.Array | float,
    top_p: jax.Array | float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws a row.

    Args:
        model: the colorizer, its backend "pallas" or "pallas_interpreted".
        prepared: of `prepare`.
        base: (B, 1, W, D), what is added to the embedded pixels to the left.
        conditions: of the inner decoder's blocks, for the row.
        norms: conditions of their norms, (B, 1, 1, D) each.
        noise: (B, W, 512) float32, added to the logits, whose largest is drawn.
        known: (B, W) int32, colours that are set and not drawn, -1 elsewhere.
        tilt: (B, W, 512) float32, added to the logits at temperature one; None for none.
        temperature: divides the logits.
        log_min_p: see `coltran_jax.sampling.noise.perturbed`.
        top_p: see there, too.

    Returns:
        Colours (B, W) int32 and logits (B, W, 512) float32.
    """
    batch, _, width, features = base.shape
    padded = attention_kernels.whole_tiles(batch)
    interpret = model.compute.interpret
    once = None if interpret else pl.Buffered(1)

    def by_pixel(x: jax.Array) -> jax.Array:
        # (B, 1, W, ...) -> (W, B, D).
        return pad(jnp.moveaxis(x.reshape(batch, width, -1), 1, 0), padded, axis=1)

    def by_image(x: jax.Array) -> jax.Array:
        return pad(x.reshape(batch, features), padded, axis=0)

    of_pixels = {"base": base, "conditions": conditions, "noise": noise, "known": known, "tilt": tilt}
    pixels = jax.tree.map(by_pixel, of_pixels)

    images = jax.tree.map(by_image, norms)
    biases, weights = prepared["biases"], prepared["weights"]
    options = jnp.stack([temperature, log_min_p, *([] if top_p is None else [top_p])])
    args = (options.astype(jnp.float32)[None], pixels, images, biases, weights)
    symbols = noise.shape[2]
    keys_and_values = 2 * len(conditions) * width * features * jnp.dtype(model.compute.dtype).itemsize
    # What pixels take is there twice, for the pixel at hand and the next; logits are as large as noise.
    each = (2 * _num_bytes((pixels, noise)) // width + _num_bytes(images)) // padded + keys_and_values
    tile, memory = _tile(padded, _num_bytes((biases, weights)), each, interpret)

    def pixel_spec(x):
        return pl.BlockSpec((1, tile, x.shape[2]), lambda t, w: (w, t, 0))

    def image_spec(x):
        return pl.BlockSpec((tile, x.shape[1]), lambda t, w: (t, 0), pipeline_mode=once)

    def bias_spec(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda t, w: (w, 0, 0))

    def weight_spec(x):
        return pl.BlockSpec(x.shape, lambda t, w: (0,) * x.ndim, pipeline_mode=once)

    in_specs = (
        pl.BlockSpec(memory_space=pltpu.SMEM),
        jax.tree.map(pixel_spec, pixels),
        jax.tree.map(image_spec, images),
        jax.tree.map(bias_spec, biases),
        jax.tree.map(weight_spec, weights),
    )
    cache = pltpu.VMEM((len(conditions), width, tile, features), model.compute.dtype)
    colors, logits = pl.pallas_call(
        functools.partial(_kernel, model),
        grid=(padded // tile, width),
        in_specs=in_specs,
        out_specs=(
            pl.BlockSpec((1, tile, 1), lambda t, w: (w, t, 0)),
            pl.BlockSpec((1, tile, symbols), lambda t, w: (w, t, 0)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct((width, padded, 1), jnp.int32),
            jax.ShapeDtypeStruct((width, padded, symbols), jnp.float32),
        ),
        scratch_shapes=(pltpu.VMEM((tile, features), model.compute.dtype), cache, cache),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=memory),
        # On average half the pixels of a row are known.
        cost_estimate=attention_kernels.cost(
            padded * width * (sum(x.size for x in jax.tree.leaves(weights)) + len(conditions) * width * features),
            _num_bytes((pixels, noise, weights)),
            padded * width * len(conditions) * width * features / 2,
        ),
        interpret=interpret,
        name="inner_decoder_row",
    )(*args)
    return colors[:, :batch, 0].T, logits[:, :batch].swapaxes(0, 1)


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _tile(batch: int, always: int, each: int, interpret: bool) -> tuple[int, int | None]:
    """Images of a step, and bytes of VMEM for them: as many as these TPUs have room for.

    Args:
        batch: all images.
        always: bytes that a step takes.
        each: bytes that it takes for each image.
        interpret: there is no VMEM.

    Raises:
        ValueError: there is room for none.
    """
    sizes = attention_kernels.tiles(batch)
    if interpret:
        return sizes[0], None
    capacity = pltpu.get_tpu_info().vmem_capacity_bytes
    for size in sizes:
        if always + size * each + _SPARE <= capacity:
            return size, capacity
    raise ValueError(
        f"a row's kernel takes {(always + sizes[-1] * each + _SPARE) / 2**20:.0f} MiB of VMEM, found "
        f"{capacity / 2**20:.0f} MiB; take the backend 'xla'"
    )


def _kernel(model, options, pixel, norms, biases, weights, colors, logits, left, keys, values):
    """One pixel of a tile of images. Sums and what lies between products are float32."""
    column = pl.program_id(1)
    width = model.config.decoder.hidden_size // model.config.decoder.num_heads
    chunk = attention_kernels.chunk(keys.shape[1])

    @pl.when(column == 0)
    def _():
        left[...] = jnp.zeros_like(left)

    @pl.when(column % chunk == 0)
    def _():
        # What attention masks must still be a number.
        for cache in (keys, values):
            for i in range(cache.shape[0]):
                cache[i, pl.ds(column, chunk)] = jnp.zeros((chunk, *cache.shape[2:]), cache.dtype)

    def product(x, kernel):
        return attention_kernels.product(x, kernel[...], model.compute.dtype)

    def attend(i, queries):
        def over(number, softmax):
            part = pl.ds(number * chunk, chunk)
            return softmax.over(queries, keys[i, part], values[i, part], biases[i][0, part])

        return jax.lax.fori_loop(0, column // chunk + 1, over, OnlineSoftmax.empty(queries.shape)).result()

    x = left[...].astype(jnp.float32) + pixel["base"][0].astype(jnp.float32)
    for i, block in enumerate(weights["blocks"]):
        condition = jax.tree.map(lambda ref: ref[0], pixel["conditions"][i])
        parts = dict(zip("qkv", jnp.split(product(x, block["qkv"]), 3, axis=-1), strict=True))
        for letter, affine in condition.attention.items():
            parts[letter] = affine(parts[letter])
        keys[i, column] = parts["k"].astype(model.compute.dtype)
        values[i, column] = parts["v"].astype(model.compute.dtype)
        attended = attend(i, scaled_queries(parts["q"], width))
        of_image = (norms[i].attention, norms[i].mlp)
        affines = [of_image[j] or block["norms"][j] for j in range(2)]
        x = finish(x, attended, block, affines, condition.mlp, model.compute.dtype)
    found = dense(norm(x, weights["final_norm"]), weights["head"], model.compute.dtype)
    logits[0] = found
    temperature = options[0, 0]
    tilted = found if pixel["tilt"] is None else found + temperature * pixel["tilt"][0]
    noisy = perturbed(tilted, pixel["noise"][0], *(options[0, i] for i in range(options.shape[1])))
    drawn = jnp.argmax(noisy, axis=-1, keepdims=True).astype(jnp.int32)
    color = jnp.where(pixel["known"][0] >= 0, pixel["known"][0], drawn)
    colors[0] = color
    one_hot = jax.lax.broadcasted_iota(jnp.int32, noisy.shape, 1) == color
    left[...] = product(one_hot, weights["embedding"]).astype(model.compute.dtype)
