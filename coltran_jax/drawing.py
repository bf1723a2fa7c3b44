"""Batches of images through the networks: which images, draws and particles pass through them together."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax import host_check
from coltran_jax.images import arrays
from coltran_jax.inference import Inference
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.sampling.ranking import ranked


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image and what the networks see of it.

    Attributes:
        image: (H, W, C) uint8 or uint16, the image, or its centre square in uint8.
        gray_final: (h', w', 1) uint8, at the final resolution.
        gray_coarse: (h, w, 1) uint8, at the coarse resolution.
        square: whether the result is the square itself, at the final resolution.
        known: coarse colours that are known, without an axis of images; None for none.
        redraw: (H', W') uint8, the region whose colours are redrawn; None for all. See `KnownColors`.
    """

    image: np.ndarray
    gray_final: np.ndarray
    gray_coarse: np.ndarray
    square: bool
    known: KnownCoarse | None = None
    redraw: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images that pass through the networks together, and how; see `Pipeline.colorize`.

    Attributes:
        indices: of the images among all.
        images: the images.
        noise: (B, draws, h, w, 512) float32, or None.
        options: how colours are drawn.
        draws_at_once: of each image.
        num_particles: of each draw.
    """

    indices: list[int]
    images: list[Prepared]
    noise: np.ndarray | None
    options: SamplingOptions
    draws_at_once: int
    num_particles: int

    @property
    def parts(self) -> list[np.ndarray]:
        """Returns the numbers of the draws that are made together, (S,) each; past the last, it is repeated."""
        last = self.options.num_draws - 1
        firsts = range(0, self.options.num_draws, self.draws_at_once)
        return [np.minimum(first + np.arange(self.draws_at_once), last) for first in firsts]

    @property
    def known(self) -> KnownCoarse | None:
        """Returns the known colours of the images, or None."""
        known = [image.known for image in self.images if image.known is not None]
        return KnownCoarse.stacked(known) if known else None

    @functools.cached_property
    def gray_coarse(self) -> np.ndarray:
        """Returns the grayscale images at the coarse resolution, (B, h, w, 1) uint8."""
        return np.stack([image.gray_coarse for image in self.images])

    @functools.cached_property
    def gray_final(self) -> np.ndarray:
        """Returns the grayscale images at the final resolution, (B, h', w', 1) uint8."""
        return np.stack([image.gray_final for image in self.images])

    def noise_of(self, rows: np.ndarray, numbers: np.ndarray) -> noises.Noise:
        """Returns the noise of images `rows` (B',) of the batch, draws `numbers` (B', S)."""
        if self.options.greedy:
            return noises.NoNoise(jnp.asarray(numbers))
        if self.noise is not None:
            return noises.ExplicitNoise(self.noise[rows[:, None], numbers])
        keys = noises.image_keys(self.options.seed, self.gray_coarse[rows], shared=self.options.shared_noise)
        return noises.SeededNoise(keys, numbers)


def draw(
    networks: Inference,
    prepared: Sequence[Prepared],
    options: SamplingOptions,
    batch_size: int | None,
    *,
    noise: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Runs the networks; see `coltran_jax.pipeline.Pipeline.colorize`.

    Returns:
        For each image, arrays by the names of `coltran_jax.pipeline.Colorization`'s fields, all but `images`.
    """
    results: list[dict[str, np.ndarray]] = [{}] * len(prepared)
    batches = _batches(networks, prepared, options, batch_size, noise)
    height = networks.coarse_resolution[0]
    total = sum(len(batch.parts) for batch in batches) * height
    before = 0
    # Counts from the rows before those of the draws at hand.
    report = None if progress is None else lambda rows: progress(before + rows, total)
    for batch in batches:
        drawn = []
        with host_check.running(networks):
            z = networks.encode(batch.gray_coarse)
            content = networks.content(z, batch.gray_coarse, options.guidance)
            for numbers in batch.parts:
                drawn.append(_draw_some(networks, batch, numbers, z, content, report))
                before += height
            best, outputs = _best(drawn, options)
            outputs = _upsampled(networks, batch, outputs)
        if networks.unchecked is not None:
            host_check.check(networks, networks.unchecked, _first(batch, best, outputs), options)
        # Repeated images, which fill a batch up, come last.
        for number, index in reversed(list(enumerate(batch.indices))):
            results[index] = {key: x[number] for key, x in outputs.items()}
    return results


def _batches(
    networks: Inference,
    prepared: Sequence[Prepared],
    options: SamplingOptions,
    batch_size: int | None,
    noise: np.ndarray | None,
) -> list[_Batch]:
    """Sorts images into batches: those without known colours, which need no particles, and the others."""
    batches = []
    for has_known in (False, True):
        indices = [i for i, one in enumerate(prepared) if (one.known is not None) == has_known]
        if not indices:
            continue
        particles = options.particles if has_known and not options.greedy and noise is None else 1
        size = batch_size or min(networks.default_batch_size, len(indices) * options.num_draws * particles)
        at_once = max(1, size // (options.num_draws * particles))
        draws_at_once = max(1, min(options.num_draws, size // particles))
        for first in range(0, len(indices), at_once):
            chosen = indices[first : first + at_once]
            filled = chosen + [chosen[-1]] * (at_once - len(chosen))
            its_noise = None if noise is None else noise[filled]
            images = [prepared[i] for i in filled]
            batches.append(_Batch(filled, images, its_noise, options, draws_at_once, particles))
    return batches


def _draw_some(
    networks: Inference,
    batch: _Batch,
    numbers: np.ndarray,
    z: jax.Array,
    content: jax.Array | None,
    progress: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """Some draws of every image of a batch: arrays (B, S, ...) by the names of `Colorization`'s fields."""
    num_images, num_samples = len(batch.images), len(numbers)
    # With fewer images than devices, an image's samples go to several devices, as if it were several images.
    copies = min(num_samples, max(1, len(networks.devices) // num_images))
    each = -(-num_samples // copies)
    rows = np.repeat(np.arange(num_images), copies)
    numbers = numbers[np.minimum(np.arange(copies * each), num_samples - 1)]
    numbers = np.tile(numbers.reshape(copies, each), (num_images, 1))
    if copies > 1:
        z, content = jax.tree.map(lambda x: np.asarray(x)[rows], (z, content))
    drawn = networks.sample(
        z,
        batch.noise_of(rows, numbers),
        batch.options,
        jax.tree.map(lambda x: x[rows], batch.known),
        content,
        num_particles=batch.num_particles,
        progress=progress,
    )
    arrays_of = {
        "coarse": arrays.rgb_from_coarse(drawn.coarse),
        "log_likelihood_bits": drawn.log_likelihood_bits,
        "max_probability": drawn.max_probability,
        "entropy_bits": drawn.entropy_bits,
        "log_evidence_bits": drawn.log_evidence_bits,
        "effective_particles": drawn.effective_particles,
    }
    return {
        key: value.reshape(num_images, copies * each, *value.shape[2:])[:, :num_samples]
        for key, value in arrays_of.items()
    }


def _first(batch: _Batch, best: np.ndarray, outputs: dict[str, np.ndarray]) -> host_check.Drawn:
    """The first sample of the first image of a batch."""
    its = {key: x[0, 0] for key, x in outputs.items() if key != "gray"}
    decided = batch.known is None and batch.num_particles == 1
    return host_check.Drawn(
        batch.gray_coarse[0],
        batch.gray_final[0],
        its["coarse"],
        float(its["log_likelihood_bits"]),
        [its[name] for name in ("fine", "final") if name in its],
        batch.noise_of(np.zeros(1, int), best[:1, :1]) if decided else None,
    )


def _best(drawn: list[dict[str, np.ndarray]], options: SamplingOptions) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Joins the draws of a batch and keeps the samples: all, or the best of them, the best first.

    Returns:
        The samples' numbers among the draws, (B, S), and the samples.
    """
    joined = {key: np.concatenate([part[key] for part in drawn], axis=1)[:, : options.num_draws] for key in drawn[0]}
    if options.best_of == 1:
        return np.tile(np.arange(options.num_draws), (len(joined["coarse"]), 1)), joined
    scored = zip(joined["coarse"], joined["log_likelihood_bits"], strict=True)
    best = np.stack([ranked(options.rank, *one)[: options.samples] for one in scored])
    rows = np.arange(len(best))[:, None]
    return best, {key: value[rows, best] for key, value in joined.items()}


def _upsampled(networks: Inference, batch: _Batch, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Upsamples the samples of a batch: arrays (B, S, ...), the gray (B, ...), by `Colorization`'s fields."""
    num_samples = batch.options.samples
    at_once = min(batch.draws_at_once, num_samples)
    # The upsamplers know no samples: a list of images.
    rows = np.repeat(np.arange(len(batch.images)), at_once)
    parts = []
    for first in range(0, num_samples, at_once):
        coarse = drawn["coarse"][:, np.minimum(first + np.arange(at_once), num_samples - 1)]
        flat = coarse.reshape(-1, *coarse.shape[2:])
        fine, final = networks.upsampled(flat, batch.gray_coarse[rows], batch.gray_final[rows])
        found = {"final": final, **({} if fine is None else {"fine": fine})}
        parts.append({key: value.reshape(*coarse.shape[:2], *value.shape[1:]) for key, value in found.items()})
    finished = {key: np.concatenate([part[key] for part in parts], axis=1)[:, :num_samples] for key in parts[0]}
    return {"gray": batch.gray_final, **drawn, **finished}
