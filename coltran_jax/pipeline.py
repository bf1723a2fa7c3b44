"""The networks, one `colorize`: gray images of any size to colour images."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle, load_bundle
from coltran_jax.images import arrays
from coltran_jax.networks.chain import COLORIZER, chain_of, enlargement_of
from coltran_jax.networks.registry import NETWORKS, build
from coltran_jax.networks.upsampler import upsample
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.partitioning import data_parallel, image_options, replicate
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import sampler
from coltran_jax.sampling.options import DECODERS, SamplingOptions

# Colorizations at once and, for each upsampler, channels at once, on a CPU and on an accelerator, a device.
# On a CPU more at once is no faster (colours of 64x64) or takes gigabytes each (256x256).
_DEFAULT_BATCH = {"cpu": 4, "accelerator": 32}
COLOR_CHUNK = {"cpu": 3, "accelerator": 96}
SPATIAL_CHUNK = {"cpu": 1, "accelerator": 6}
# Pixels that the decoder "fixed_point" iterates over at a time: as many as cost little more than one.
WINDOW = {"cpu": 8, "accelerator": 16}


def chunk_of(name: str, kind: str) -> int:
    """Channels that an upsampler computes at once on a device of a kind."""
    return (SPATIAL_CHUNK if NETWORKS[name].enlarges else COLOR_CHUNK)[kind]


def device_kind(device: jax.Device) -> str:
    """The kind that the defaults above go by: "cpu" or "accelerator"."""
    return "cpu" if device.platform == "cpu" else "accelerator"


@dataclasses.dataclass(frozen=True)
class Colorization:
    """Colorizations of one image; S samples, H x W its size, h x w the colorizer's and h' x w' the final resolution.

    Attributes:
        images: (S, H, W, 3) uint8, or (S, H, W, 4) where the image had alpha. With `square` H x W is h' x w'.
        coarse: (S, h, w, 3) uint8, after the colorizer.
        final: (S, h', w', 3) uint8, after the last upsampler.
        gray: (h', w', 1) uint8, what the networks saw.
        log_likelihood_bits: (S,) float32; see `coltran_jax.sampling.CoarseSamples`, for this and the next two.
        max_probability: (S, h, w) float32.
        entropy_bits: (S, h, w) float32.
        fine: (S, h, w, 3) uint8, after the color upsampler; None where one upsampler does both steps.
    """

    images: np.ndarray
    coarse: np.ndarray
    final: np.ndarray
    gray: np.ndarray
    log_likelihood_bits: np.ndarray
    max_probability: np.ndarray
    entropy_bits: np.ndarray
    fine: np.ndarray | None = None


# Small networks that come with the package; docs/mini.md tells of them.
MINI = pathlib.Path(__file__).parent / "pretrained" / "mini.safetensors"


def load_pipeline(
    path: str | pathlib.Path = MINI,
    *,
    compute: Compute = DEFAULT,
    devices: Sequence[jax.Device] | None = None,
) -> "Pipeline":
    """The pipeline of a bundle of the three networks, or of a colorizer and a joint upsampler.

    Args:
        path: the bundle; by default the one that comes with the package.
        compute: how the networks compute, such as `Compute("bfloat16")`.
        devices: over which images are shared out; all local devices by default.

    Raises:
        ValueError: networks that cannot be used, or a backend for other devices.
        WeightsError: a bundle that cannot be used.
    """
    devices = list(devices or jax.local_devices())
    compute.check_platform(devices[0].platform)
    bundle = load_bundle(path)
    try:
        return Pipeline(bundle, compute=compute, devices=devices)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class Pipeline:
    """The networks with their weights on the devices.

    Attributes:
        compute: how they compute.
        recommended: sampling options that the bundle recommends, by name.
        options: how colours are drawn unless the caller says otherwise: as recommended.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        compute: Compute = DEFAULT,
        devices: Sequence[jax.Device] | None = None,
    ):
        """See `load_pipeline`.

        Raises:
            ValueError: networks are missing, their resolutions do not fit, or the backend is for other devices.
        """
        self.compute = compute
        self.devices = list(devices or jax.local_devices())
        compute.check_platform(self.devices[0].platform)
        self.recommended = bundle.recommended
        recommended: dict[str, Any] = dict(bundle.recommended)
        self.options = SamplingOptions(**recommended)
        self._kind = device_kind(self.devices[0])
        names = chain_of(bundle.configs)
        self.coarse_resolution = bundle.configs[COLORIZER].resolution
        self.final_resolution = bundle.configs[names[-1]].resolution
        self._enlargement = enlargement_of(bundle.configs, names)
        models = {name: build(bundle.configs[name], compute) for name in names}
        self._params = {name: replicate(bundle.params[name], self.devices) for name in names}
        options = image_options(self.devices[0].platform)
        self._encode = data_parallel(
            functools.partial(sampler.encode, models[COLORIZER]), self.devices, options=options
        )
        self._sample = {
            (as_released, decoder): data_parallel(
                functools.partial(
                    sampler.sample,
                    models[COLORIZER],
                    as_released=as_released,
                    decoder=decoder,
                    window=WINDOW[self._kind],
                ),
                self.devices,
                whole=(0, 3, 4),
            )
            for as_released in (False, True)
            for decoder in DECODERS
        }
        score = functools.partial(sampler.log_likelihood_bits, models[COLORIZER])
        self._log_likelihood = data_parallel(score, self.devices, options=options)
        self._upsamplers = names[1:]
        self._upsample = {
            name: data_parallel(
                functools.partial(upsample, models[name], chunk=chunk_of(name, self._kind)),
                self.devices,
                options=options,
            )
            for name in self._upsamplers
        }

    def colorize(
        self,
        images: Sequence[np.ndarray],
        *,
        options: SamplingOptions | None = None,
        square: bool = False,
        batch_size: int | None = None,
        noise: np.ndarray | None = None,
        **fields: Any,
    ) -> list[Colorization]:
        """Colorizes images.

        The same image, seed and number of a sample give the same colours alone or among others, in any batch size
        and on any number of devices, but for draws so nearly tied that the rounding of a sum in another order
        decides.

        Args:
            images: arrays of any sizes, uint8, or uint16, which gives results of 16 bits: (H, W) or (H, W, 1) gray,
                (H, W, 2) gray and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha. Of colour images only the gray is
                used; alpha is kept.
            options: how colours are drawn; by default `self.options`, what the bundle recommends.
            square: the centre square at the final resolution, as the release does. Otherwise the networks see the
                whole image squeezed to a square, and its chroma goes onto the image's own luminance.
            batch_size: colorizations at once over all devices. Fewer are filled up to it, so that one size is compiled.
            noise: (len(images), samples, h, w, 512) float32 to draw with, in place of the seed's.
            fields: of `SamplingOptions`, in place of those of `options`: `samples=3`, `seed=1`, `min_p=0.05`.

        Returns:
            One `Colorization` an image, in order.

        Raises:
            ValueError: an argument that cannot be used.
        """
        images = [_check_image(number, image) for number, image in enumerate(images)]
        options = dataclasses.replace(options or self.options, **fields)
        if batch_size is not None and not batch_size > 0:
            raise ValueError(f"batch_size must be above 0, got {batch_size}")
        expected = (len(images), options.samples, *self.coarse_resolution, arrays.NUM_COARSE_COLORS)
        if noise is not None and noise.shape != expected:
            raise ValueError(f"noise is {noise.shape}, expected {expected}")
        prepared = [self.prepare(image, square=square) for image in images]
        drawn = self.draw(prepared, options, batch_size=batch_size, noise=noise)
        return [self.finish(*pair) for pair in zip(prepared, drawn, strict=True)]

    # The three stages of `colorize`, which run at once where there are many files; see `coltran_jax.colorize_files`.
    # `prepare` and `finish` may run in several threads.

    def prepare(self, image: np.ndarray, *, square: bool = False) -> "Prepared":
        """Resizes an image (H, W, C) uint8 or uint16 to what the networks see; see `colorize` for `square`."""
        if square:
            image = arrays.center_square(arrays.eight_bits(image))
        return Prepared(image, *self._what_networks_see(arrays.eight_bits(image)), square)

    def draw(
        self,
        prepared: Sequence["Prepared"],
        options: SamplingOptions,
        *,
        batch_size: int | None = None,
        noise: np.ndarray | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Runs the networks; see `colorize`.

        Returns:
            For each image, arrays by the names of `Colorization`'s fields, all but `images`.
        """
        if not prepared:
            return []
        samples = options.samples
        batch_size = batch_size or min(self.default_batch_size, len(prepared) * samples)
        at_once = max(1, batch_size // samples)
        results = []
        for start in range(0, len(prepared), at_once):
            chosen = list(range(start, min(start + at_once, len(prepared))))
            filled = chosen + [chosen[-1]] * (at_once - len(chosen))
            batch = _Batch(
                images=[prepared[i] for i in filled],
                noise=None if noise is None else noise[filled],
                options=options,
                samples_at_once=min(samples, batch_size),
            )
            outputs = self._colorize_batch(batch)
            results += [{key: x[n] for key, x in outputs.items()} for n in range(len(chosen))]
        return results

    def finish(self, prepared: "Prepared", drawn: dict[str, np.ndarray]) -> Colorization:
        """Puts the chroma that was drawn on the image's own luminance, with its alpha; a square stays as drawn."""
        image, results = prepared.image, []
        for final in drawn["final"]:
            colors = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
            result = final if prepared.square else arrays.transfer_chroma(colors, final)
            if image.shape[-1] % 2 == 0:
                alpha = image[..., -1:]
                alpha = arrays.area_resize(alpha, *final.shape[:2]) if prepared.square else alpha
                result = np.concatenate([result, alpha], axis=-1)
            results.append(result)
        return Colorization(images=np.stack(results), **drawn)

    def truth(self, image: np.ndarray, *, stretch: bool = False) -> np.ndarray:
        """Returns the true image that a colorization is compared with: (h', w', 3) uint8.

        Args:
            image: (H, W, 3 or 4) uint8.
            stretch: squeeze the whole image to a square instead of taking its centre square.

        Raises:
            ValueError: a gray image.
        """
        if image.shape[-1] < 3:
            raise ValueError("a gray image, which has no colours to compare with")
        image = image[..., :3]
        return arrays.area_resize(image if stretch else arrays.center_square(image), *self.final_resolution)

    def log_likelihood_bits(self, truths: np.ndarray, coarse: np.ndarray | None = None) -> np.ndarray:
        """Base-2 logarithm of the colorizer's probability of coarse images, given the gray of true ones.

        Args:
            truths: (B, h', w', 3) uint8, of `truth`.
            coarse: (B, h, w, 3) uint8, as in `Colorization`; the true images' own by default.

        Returns:
            (B,) float32, of the whole coarse image.
        """
        gray, _, own = self._reduced(truths)
        bins = arrays.coarse_from_rgb(own if coarse is None else coarse)
        return np.asarray(self._log_likelihood(self._params[COLORIZER], gray, np.asarray(bins, np.int32)))

    def upsample_truth(self, truths: np.ndarray, given: str) -> np.ndarray:
        """Runs the upsamplers on true images' own smaller versions.

        Args:
            truths: (B, h', w', 3) uint8, of `truth`.
            given: "coarse", the true coarse colours go through all upsamplers; "fine", the true (h, w) image goes
                through the last, where there are two.

        Returns:
            (B, h', w', 3) uint8.
        """
        gray, gray_final, small = self._reduced(truths)
        if given == "fine":
            return self._through(self._upsamplers[-1], small, gray, gray_final)
        return self._upsampled(small // arrays.BIN_WIDTH, gray, gray_final)[1]

    @property
    def has_fine(self) -> bool:
        """Returns whether there is an image between the coarse and the final one: not with a joint upsampler."""
        return len(self._upsamplers) > 1

    def _reduced(self, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True images -> gray at coarse and at final resolution, and the image at coarse resolution."""
        small = np.stack([arrays.area_resize(image, *self.coarse_resolution) for image in truths])
        return arrays.gray_from_rgb(small), arrays.gray_from_rgb(truths), small

    @property
    def default_batch_size(self) -> int:
        """Colorizations at once over all devices where the caller does not say."""
        return _DEFAULT_BATCH[self._kind] * len(self.devices)

    def _colorize_batch(self, batch: "_Batch") -> dict[str, np.ndarray]:
        """Arrays (P, ...) by the names of `Colorization`'s fields, all but `images`."""
        gray_final = np.stack([prepared.gray_final for prepared in batch.images])
        gray_coarse = np.stack([prepared.gray_coarse for prepared in batch.images])
        z = self._encode(self._params[COLORIZER], gray_coarse)
        parts = []
        for first in range(0, batch.options.samples, batch.samples_at_once):
            # Numbers past the last, which keep the shape of a batch, are cut off again.
            numbers = np.minimum(np.arange(first, first + batch.samples_at_once), batch.options.samples - 1)
            part = self._colorize_samples(batch, numbers, z, gray_coarse, gray_final)
            parts.append({key: value[:, : batch.options.samples - first] for key, value in part.items()})
        merged = {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
        return {"gray": gray_final, **merged}

    def _colorize_samples(
        self,
        batch: "_Batch",
        numbers: np.ndarray,
        z: jax.Array,
        gray_coarse: np.ndarray,
        gray_final: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Some samples of every image of a batch: arrays (P, S, ...) by the names of `Colorization`'s fields."""
        num_images, num_samples = len(batch.images), len(numbers)
        # With fewer images than devices, an image's samples go to several devices, as if it were several images.
        copies = min(num_samples, max(1, len(self.devices) // num_images))
        each = -(-num_samples // copies)
        rows = np.repeat(np.arange(num_images), copies)
        numbers = numbers[np.minimum(np.arange(copies * each), num_samples - 1)]
        numbers = np.tile(numbers.reshape(copies, each), (num_images, 1))

        drawn = self._sample[batch.options.as_released, batch.options.decoder](
            self._params[COLORIZER],
            z if copies == 1 else np.asarray(z)[rows],
            batch.noise_of(gray_coarse, rows, numbers),
            np.float32(batch.options.temperature),
            np.float32(batch.options.min_p),
        )
        drawn = jax.tree.map(np.asarray, drawn)
        coarse = arrays.rgb_from_coarse(drawn.coarse)
        # The upsamplers know no samples: a list of images.
        rows = np.repeat(rows, each)
        fine, final = self._upsampled(
            coarse.reshape(-1, *coarse.shape[2:]) // arrays.BIN_WIDTH, gray_coarse[rows], gray_final[rows]
        )

        def by_image(x: np.ndarray, num_axes: int) -> np.ndarray:
            return x.reshape(num_images, copies * each, *x.shape[num_axes:])[:, :num_samples]

        return {
            "coarse": by_image(coarse, 2),
            "final": by_image(final, 1),
            "log_likelihood_bits": by_image(drawn.log_likelihood_bits, 2),
            "max_probability": by_image(drawn.max_probability, 2),
            "entropy_bits": by_image(drawn.entropy_bits, 2),
            **({} if fine is None else {"fine": by_image(fine, 1)}),
        }

    def _upsampled(
        self, three_bits: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Three-bit colours (B, h, w, 3) -> the fine image, None where there is none, and the final one."""
        fine, final = None, three_bits
        for name in self._upsamplers:
            fine, final = (None if final is three_bits else final), self._through(name, final, gray_coarse, gray_final)
        return fine, final

    def _through(self, name: str, values: np.ndarray, gray_coarse: np.ndarray, gray_final: np.ndarray) -> np.ndarray:
        """Runs an upsampler on its input, (B, h, w, 3) uint8."""
        gray = gray_coarse
        if NETWORKS[name].enlarges:
            gray, values = gray_final, arrays.enlarge(values, self._enlargement)
        return np.asarray(self._upsample[name](self._params[name], gray, values))

    def _what_networks_see(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) uint8 -> gray at final and at coarse resolution, (h', w', 1) and (h, w, 1) uint8."""
        colors = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
        final = arrays.area_resize(colors, *self.final_resolution)
        coarse = arrays.area_resize(final, *self.coarse_resolution)
        if colors.shape[-1] == 3:
            return arrays.gray_from_rgb(final), arrays.gray_from_rgb(coarse)
        return final, coarse


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image and what the networks see of it.

    Attributes:
        image: (H, W, C) uint8 or uint16, the image, or its centre square in uint8.
        gray_final: (h', w', 1) uint8, at the final resolution.
        gray_coarse: (h, w, 1) uint8, at the coarse resolution.
        square: whether the result is the square itself, at the final resolution.
    """

    image: np.ndarray
    gray_final: np.ndarray
    gray_coarse: np.ndarray
    square: bool


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images that pass through the networks together, and how; see `Pipeline.colorize`."""

    images: list[Prepared]
    noise: np.ndarray | None
    options: SamplingOptions
    samples_at_once: int

    def noise_of(self, grays: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> noises.Noise:
        """Returns the noise of images `rows` (B,) of those that the colorizer sees, samples `numbers` (B, S)."""
        if self.options.greedy:
            return noises.NoNoise(jnp.asarray(numbers))
        if self.noise is not None:
            return noises.ExplicitNoise(self.noise[rows[:, None], numbers])
        return noises.SeededNoise(noises.image_keys(self.options.seed, grays)[rows], jnp.asarray(numbers))


def _check_image(number: int, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        expected = "uint8 or uint16 (H, W) or (H, W, 1 to 4)"
        raise ValueError(f"image {number} is {image.dtype} {image.shape}, expected {expected}")
    return image
