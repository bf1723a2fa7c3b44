"""The networks with their weights on the devices: arrays of a batch in, arrays of a batch out."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle
from coltran_jax.images import arrays
from coltran_jax.networks.chain import COLORIZER, chain_of, enlargement_of
from coltran_jax.networks.registry import NETWORKS, build
from coltran_jax.networks.upsampler import upsample, upsample_and_score
from coltran_jax.nn.compute import Compute
from coltran_jax.partitioning import data_parallel, filled, image_options, replicate
from coltran_jax.sampling import sampler
from coltran_jax.sampling.content import tilt
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.noise import Noise
from coltran_jax.sampling.options import SamplingOptions

# Colorizations at once and, for each upsampler, channels at once, on a CPU and on an accelerator, a device.
# On a CPU more at once is no faster (colours of 64x64) or takes gigabytes each (256x256).
_DEFAULT_BATCH = {"cpu": 4, "accelerator": 32}
COLOR_CHUNK = {"cpu": 3, "accelerator": 96}
SPATIAL_CHUNK = {"cpu": 1, "accelerator": 6}
# Pixels that the decoder "fixed_point" iterates over at a time: as many as cost little more than one.
WINDOW = {"cpu": 8, "accelerator": 16}
# Rows that are decoded between two reports of progress.
ROWS_AT_ONCE = 8


def chunk_of(name: str, kind: str) -> int:
    """Channels that an upsampler computes at once on a device of a kind."""
    return (SPATIAL_CHUNK if NETWORKS[name].enlarges else COLOR_CHUNK)[kind]


def device_kind(device: jax.Device) -> str:
    """The kind that the defaults above go by: "cpu" or "accelerator"."""
    return "cpu" if device.platform == "cpu" else "accelerator"


class Inference:
    """A bundle's networks on the devices. Batches are sharded over them; see `data_parallel`.

    Attributes:
        devices: the devices.
        kind: of them; see `device_kind`.
        coarse_resolution: (h, w) of the colorizer.
        final_resolution: (h', w') of the last upsampler.
        upsamplers: their names, in order.
        unchecked: the bundle, if Pallas kernels compute, until they have been checked; see `coltran_jax.host_check`.
    """

    def __init__(self, bundle: Bundle, compute: Compute, devices: Sequence[jax.Device]):
        """Puts the parameters on the devices; nothing is compiled yet.

        Raises:
            ValueError: networks are missing, or their resolutions do not fit.
        """
        self.devices = list(devices)
        self.kind = device_kind(self.devices[0])
        names = chain_of(bundle.configs)
        self.coarse_resolution = bundle.configs[COLORIZER].resolution
        self.final_resolution = bundle.configs[names[-1]].resolution
        self.upsamplers = names[1:]
        self.unchecked = bundle if compute.uses_pallas else None
        self._enlargement = enlargement_of(bundle.configs, names)
        models = {name: build(bundle.configs[name], compute) for name in names}
        self._colorizer = models[COLORIZER]
        self._params = {name: replicate(bundle.params[name], self.devices) for name in names}
        options = image_options(self.devices[0].platform)
        self._gray_table = None if bundle.gray_table is None else replicate(bundle.gray_table, self.devices)
        self._content = data_parallel(functools.partial(tilt, self._colorizer), self.devices, whole=(0, 3, 4))
        self._encode = data_parallel(functools.partial(sampler.encode, self._colorizer), self.devices, options=options)
        self._score = data_parallel(functools.partial(sampler.score, self._colorizer), self.devices, options=options)
        self._upsample, self._upsample_and_score = (
            {
                name: data_parallel(
                    functools.partial(function, models[name], chunk=chunk_of(name, self.kind)),
                    self.devices,
                    options=options,
                )
                for name in self.upsamplers
            }
            for function in (upsample, upsample_and_score)
        )
        self._sample = functools.cache(self._sample_with)
        self._rows = functools.cache(self._rows_with)

    @property
    def default_batch_size(self) -> int:
        """Returns how many colorizations are computed at once over all devices where the caller does not say."""
        return _DEFAULT_BATCH[self.kind] * len(self.devices)

    def encode(self, gray: np.ndarray) -> jax.Array:
        """Runs the gray encoder: (B, h, w, 1) uint8 -> z (B, h, w, D)."""
        return self._encode(self._params[COLORIZER], gray)

    def content(self, z: jax.Array, gray: np.ndarray, guidance: float) -> jax.Array | None:
        """Computes what the content adds to the logits, (B, h, w, 512) float32; None without guidance. See `tilt`."""
        if not guidance:
            return None
        return self._content(self._params[COLORIZER], z, gray, self._gray_table, np.float32(guidance))

    def score(self, gray: np.ndarray, coarse: np.ndarray) -> sampler.Scores:
        """Scores coarse images: (B, h, w, 1) uint8, (B, h, w) in 0..511 -> NumPy arrays."""
        found = self._score(self._params[COLORIZER], gray, np.asarray(coarse, np.int32))
        return jax.tree.map(np.asarray, found)

    def sample(
        self,
        z: jax.Array | np.ndarray,
        noise: Noise,
        options: SamplingOptions,
        known: KnownCoarse | None = None,
        content: jax.Array | np.ndarray | None = None,
        *,
        num_particles: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> sampler.CoarseSamples:
        """Samples coarse images; see `coltran_jax.sampling.sampler.sample`.

        Args:
            z: (B, h, w, D), of `encode`.
            noise: of B images.
            options: how colours are drawn.
            known: of B images; None for none.
            content: of B images; None for no guidance.
            num_particles: of each sample.
            progress: called with the number of rows that have been decoded, every few rows. What it raises ends this.

        Returns:
            NumPy arrays.
        """
        how = (num_particles, options.as_released, options.decoder)
        scalars = [None if limit is None else np.float32(limit) for limit in options.limits]
        params = self._params[COLORIZER]
        if progress is None:
            return jax.tree.map(np.asarray, self._sample(*how)(params, z, noise, *scalars, known, content))
        # The state between rows has the leading axis of samples and particles: no device may get a part of an image's.
        size = len(z)
        z, noise, known, content = filled((z, noise, known, content), len(self.devices))
        begin, decode, choose = self._rows(*how)
        carry, parts, height = begin(params, z, noise), [], self.coarse_resolution[0]
        for first in range(0, height, ROWS_AT_ONCE):
            num_rows = min(ROWS_AT_ONCE, height - first)
            carry, rows = decode(num_rows)(params, z, noise, *scalars, known, content, carry, first)
            parts.append(jax.tree.map(np.asarray, rows))
            progress(first + num_rows)
        rows = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
        return jax.tree.map(lambda x: np.asarray(x)[:size], choose(noise, known, carry, rows))

    def _sample_with(self, num_particles: int, as_released: bool, decoder: str) -> Callable[..., Any]:
        function = functools.partial(
            sampler.sample, self._colorizer, **self._static(num_particles, as_released, decoder)
        )
        return data_parallel(function, self.devices, whole=(0, 3, 4, 5))

    def _rows_with(self, num_particles: int, as_released: bool, decoder: str) -> tuple[Callable[..., Any], ...]:
        static = self._static(num_particles, as_released, decoder)
        begin = functools.partial(sampler.begin, self._colorizer, num_particles=num_particles)
        decode = functools.partial(sampler.decode_rows, self._colorizer, **static)
        return (
            data_parallel(begin, self.devices),
            functools.cache(
                lambda num_rows: data_parallel(
                    functools.partial(decode, num_rows=num_rows), self.devices, whole=(0, 3, 4, 5, 9), donated=(8,)
                )
            ),
            data_parallel(sampler.chosen_samples, self.devices, whole=()),
        )

    def _static(self, num_particles: int, as_released: bool, decoder: str) -> dict[str, Any]:
        names = {"num_particles": num_particles, "as_released": as_released, "decoder": decoder}
        return {**names, "window": WINDOW[self.kind]}

    def upsampled(
        self, coarse: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Runs all upsamplers.

        Args:
            coarse: (B, h, w, 3) uint8, multiples of 32.
            gray_coarse: (B, h, w, 1) uint8.
            gray_final: (B, h', w', 1) uint8.

        Returns:
            The fine image (B, h, w, 3) uint8, None where there is none, and the final one (B, h', w', 3) uint8.
        """
        three_bits = coarse // arrays.BIN_WIDTH
        fine, final = None, three_bits
        for name in self.upsamplers:
            fine, final = (None if final is three_bits else final), self.through(name, final, gray_coarse, gray_final)
        return fine, final

    def through(self, name: str, values: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray) -> np.ndarray:
        """Runs one upsampler on its input, (B, h, w, 3) uint8; see `upsampled`."""
        gray, values = self.inputs(name, values, gray_coarse, gray_final)
        return np.asarray(self._upsample[name](self._params[name], gray, values))

    def upsample_truth(
        self, fine: np.ndarray, final: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Runs each upsampler on the true smaller image.

        Args:
            fine: (B, h, w, 3) uint8.
            final: (B, h', w', 3) uint8.
            gray_coarse: (B, h, w, 1) uint8.
            gray_final: (B, h', w', 1) uint8.

        Returns:
            What each of them makes of it, (B, H, W, 3) uint8; and (B,) float32, the bits of the true images'
            intensities, the sum over upsamplers, pixels and channels.
        """
        made, total = [], np.zeros(len(final), np.float32)
        for name in self.upsamplers:
            network = NETWORKS[name]
            gray, values = self.inputs(name, network.reading_of(fine), gray_coarse, gray_final)
            truth = final if network.enlarges else fine
            found, bits = self._upsample_and_score[name](self._params[name], gray, values, truth)
            made.append(np.asarray(found))
            total += np.asarray(bits)
        return made, total

    def inputs(
        self, name: str, values: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the gray image that an upsampler takes, and what it reads, at its resolution; see `through`."""
        if NETWORKS[name].enlarges:
            return gray_final, arrays.enlarge(values, self._enlargement)
        return gray_coarse, values
