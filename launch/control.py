"""The cost of control: particles for known colours, and decoding in parts to report progress."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle
from coltran_jax.inference import Inference
from coltran_jax.nn.compute import Compute
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.options import SamplingOptions

# Hints are dots of so many pixels, side by side, one in each square of so many.
_DOT, _SQUARE = 5, 16


def costs(
    bundle: Bundle, compute: Compute, gray: np.ndarray, decoder: str, num_particles: int, repeats: int
) -> dict[str, Any]:
    """Times the colorizer's decoders on one device, in turns, and keeps the fastest run of each kind.

    Args:
        bundle: the three networks.
        compute: how they compute.
        gray: (B, h, w, 1) uint8.
        decoder: of rows.
        num_particles: P of an image, and the number of samples that they are compared with.
        repeats: runs of each kind.

    Returns:
        Milliseconds an image, by kind, and the ratios that matter.
    """
    networks = Inference(bundle, compute, jax.devices()[:1])
    options = SamplingOptions(decoder=decoder)
    z = networks.encode(gray)
    keys = noises.image_keys(0, gray)
    one, many = (noises.SeededNoise(keys, jnp.tile(jnp.arange(count), (len(gray), 1))) for count in (1, num_particles))
    rows, columns = (np.arange(size) % _SQUARE < _DOT for size in networks.coarse_resolution)
    colors = np.where(rows[:, None] & columns, 0, -1).astype(np.int32)
    known = KnownCoarse.stacked([KnownCoarse.guided(colors, image) for image in gray])

    def ignore(rows: int) -> None:
        pass

    kinds: dict[str, Callable[[], Any]] = {
        "samples": lambda: networks.sample(z, many, options),
        "samples_with_progress": lambda: networks.sample(z, many, options, progress=ignore),
        "particles": lambda: networks.sample(z, one, options, known, num_particles=num_particles),
    }
    fastest = dict.fromkeys(kinds, float("inf"))
    for repeat in range(repeats + 1):
        for name, run in kinds.items():
            started = time.perf_counter()
            run()
            # The first compiles.
            if repeat:
                fastest[name] = min(fastest[name], time.perf_counter() - started)
    return {
        "num_particles": num_particles,
        **{f"{name}_ms_per_image": 1000 * secs / len(gray) for name, secs in fastest.items()},
        "particles_over_samples": fastest["particles"] / fastest["samples"],
        "progress_over_none": fastest["samples_with_progress"] / fastest["samples"],
    }
