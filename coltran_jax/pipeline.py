"""The networks, one `colorize`: gray images of any size to colour images."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from coltran_jax.checkpoints.bundles import Bundle, load_bundle, why_no_guidance
from coltran_jax.drawing import Prepared, draw
from coltran_jax.images import arrays, hints
from coltran_jax.images.hints import KnownColors
from coltran_jax.inference import Inference
from coltran_jax.nn.compute import Compute, compute_for
from coltran_jax.sampling.known import KnownCoarse
from coltran_jax.sampling.options import SamplingOptions
from coltran_jax.sampling.sampler import Scores


@dataclasses.dataclass(frozen=True)
class Colorization:
    """Colorizations of one image; S samples, H x W its size, h x w the colorizer's and h' x w' the final resolution.

    Attributes:
        images: (S, H, W, 3) uint8, or (S, H, W, 4) where the image had alpha. With `square` H x W is h' x w'.
        coarse: (S, h, w, 3) uint8, after the colorizer.
        final: (S, h', w', 3) uint8, after the last upsampler.
        gray: (h', w', 1) uint8, what the networks saw.
        log_likelihood_bits: (S,) float32; see `coltran_jax.sampling.sampler.CoarseSamples`, for this and the
            next four.
        max_probability: (S, h, w) float32.
        entropy_bits: (S, h, w) float32.
        log_evidence_bits: (S,) float32, an estimate of the log-probability of the known colours; 0 without any.
        effective_particles: (S,) float32, the smallest effective number of particles after any row.
        fine: (S, h, w, 3) uint8, after the color upsampler; None where one upsampler does both steps.
    """

    images: np.ndarray
    coarse: np.ndarray
    final: np.ndarray
    gray: np.ndarray
    log_likelihood_bits: np.ndarray
    max_probability: np.ndarray
    entropy_bits: np.ndarray
    log_evidence_bits: np.ndarray
    effective_particles: np.ndarray
    fine: np.ndarray | None = None


# Small networks that come with the package; docs/mini.md tells of them.
MINI = pathlib.Path(__file__).parent / "pretrained" / "mini.safetensors"


@dataclasses.dataclass(frozen=True)
class UpsampledTruth:
    """The upsamplers' results for the smaller versions of B true images.

    Attributes:
        coarse: of the true coarse colours, through all upsamplers: (B, h', w', 3) uint8.
        fine: of the true (h, w) image, through the last of two upsamplers: (B, h', w', 3) uint8; None where there is
            only one.
        bits: of the true images' intensities, each upsampler given the true image of the stage before: (B,) float32,
            the sum over upsamplers, pixels and channels. With the bits of the coarse image, an upper bound of the bits
            of the true image given its gray, as the smaller images follow from it.
    """

    coarse: np.ndarray
    fine: np.ndarray | None
    bits: np.ndarray


def load_pipeline(
    path: str | pathlib.Path = MINI,
    *,
    compute: Compute | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> "Pipeline":
    """The pipeline of a bundle of the three networks, or of a colorizer and a joint upsampler.

    Args:
        path: the bundle; by default the one that comes with the package.
        compute: how the networks compute, such as `Compute("float32")`. By default in bfloat16 on accelerators, with
            Pallas kernels on TPUs; see `coltran_jax.nn.compute.compute_for`.
        devices: over which images are shared out; all local devices by default.

    Raises:
        ValueError: networks that cannot be used, or a backend for other devices.
        WeightsError: a bundle that cannot be used.
    """
    devices = list(devices or jax.local_devices())
    compute = compute or compute_for(devices[0].platform)
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
        compute: Compute | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """See `load_pipeline`.

        Raises:
            ValueError: networks are missing, their resolutions do not fit, or the backend is for other devices.
        """
        devices = list(devices or jax.local_devices())
        self.compute = compute = compute or compute_for(devices[0].platform)
        compute.check_platform(devices[0].platform)
        self.recommended = bundle.recommended
        recommended: dict[str, Any] = dict(bundle.recommended)
        self.options = SamplingOptions(**recommended)
        self._why_no_guidance = why_no_guidance(bundle)
        self._networks = Inference(bundle, compute, devices)

    @property
    def coarse_resolution(self) -> tuple[int, ...]:
        """Returns the colorizer's resolution (h, w)."""
        return self._networks.coarse_resolution

    @property
    def final_resolution(self) -> tuple[int, ...]:
        """Returns the last upsampler's resolution (h', w')."""
        return self._networks.final_resolution

    def check(self, options: SamplingOptions) -> None:
        """Raises ValueError for options that these networks cannot follow."""
        if options.guidance and self._why_no_guidance:
            raise ValueError(f"guidance is {options.guidance:g}, but these weights have {self._why_no_guidance}")

    @property
    def has_guidance(self) -> bool:
        """Returns whether the content can guide the sampler; see `coltran_jax.sampling.content`."""
        return not self._why_no_guidance

    @property
    def devices(self) -> list[jax.Device]:
        """Returns the devices that images are shared out over."""
        return self._networks.devices

    def colorize(
        self,
        images: Sequence[np.ndarray],
        *,
        options: SamplingOptions | None = None,
        square: bool = False,
        batch_size: int | None = None,
        noise: np.ndarray | None = None,
        known: Sequence[KnownColors | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
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
            noise: (len(images), draws, h, w, 512) float32 to draw with, in place of the seed's. As many draws as
                samples, or `best_of`.
            known: for each image, colours that are known beforehand; None for none. The samples of such an image are
                drawn by `options.particles` particles each; with `greedy` or `noise`, by one.
            progress: called with the number of rows that have been decoded and of all, every few rows. What it raises
                ends this.
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
        expected = (len(images), options.num_draws, *self.coarse_resolution, arrays.NUM_COARSE_COLORS)
        if noise is not None and noise.shape != expected:
            raise ValueError(f"noise is {noise.shape}, expected {expected}")
        known = known or [None] * len(images)
        if len(known) != len(images):
            raise ValueError(f"known is of {len(known)} images, expected {len(images)}")
        prepared = [self.prepare(image, square=square, known=its) for image, its in zip(images, known, strict=True)]
        drawn = self.draw(prepared, options, batch_size=batch_size, noise=noise, progress=progress)
        return [self.finish(*pair) for pair in zip(prepared, drawn, strict=True)]

    # The three stages of `colorize`, which run at once where there are many files; see `coltran_jax.colorize_files`.
    # `prepare` and `finish` may run in several threads.

    def prepare(self, image: np.ndarray, *, square: bool = False, known: KnownColors | None = None) -> Prepared:
        """Resizes an image (H, W, C) uint8 or uint16 to what the networks see; see `colorize`.

        Raises:
            ImageError: colours that cannot be known of this image.
        """
        if known is not None:
            known.check(image, square=square)
        if square:
            image = arrays.center_square(arrays.eight_bits(image))
            known = known and known.cropped()
        colors = arrays.without_alpha(arrays.eight_bits(image))
        final = arrays.area_resize(colors, *self.final_resolution)
        coarse = arrays.area_resize(final, *self.coarse_resolution)
        gray_final, gray_coarse = (arrays.gray_from_rgb(x) if x.shape[-1] == 3 else x for x in (final, coarse))
        prepared = Prepared(image, gray_final, gray_coarse, square)
        if known is None:
            return prepared
        known_coarse = known.coarse(coarse, gray_coarse)
        # The region to redraw may leave no whole coarse pixel.
        coarse_known = KnownCoarse.guided(known_coarse, gray_coarse) if (known_coarse >= 0).any() else None
        return dataclasses.replace(prepared, known=coarse_known, redraw=known.redraw)

    def draw(
        self,
        prepared: Sequence[Prepared],
        options: SamplingOptions,
        *,
        batch_size: int | None = None,
        noise: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Runs the networks; see `colorize`.

        Returns:
            For each image, arrays by the names of `Colorization`'s fields, all but `images`.
        """
        self.check(options)
        return draw(self._networks, prepared, options, batch_size, noise=noise, progress=progress)

    def finish(self, prepared: Prepared, drawn: dict[str, np.ndarray]) -> Colorization:
        """Puts the chroma that was drawn on the image's own luminance, with its alpha; a square stays as drawn."""
        image, results = prepared.image, []
        colors = arrays.without_alpha(image)
        for final in drawn["final"]:
            result = final if prepared.square else arrays.transfer_chroma(colors, final)
            if prepared.redraw is not None:
                own = arrays.area_resize(colors, *final.shape[:2]) if prepared.square else colors
                result = hints.restored(own, result, prepared.redraw)
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
        return np.asarray(self._networks.score(gray, bins).log_probability_bits).sum(axis=(1, 2))

    def score_truth(self, truths: np.ndarray) -> tuple[Scores, np.ndarray]:
        """Scores true images' own coarse images, pixel by pixel.

        Args:
            truths: (B, h', w', 3) uint8, of `truth`.

        Returns:
            The scores, NumPy arrays, and the coarse colours (B, h, w) in 0..511.
        """
        gray, _, small = self._reduced(truths)
        coarse = arrays.coarse_from_rgb(small)
        return self._networks.score(gray, coarse), coarse

    def upsample_truth(self, truths: np.ndarray) -> UpsampledTruth:
        """Runs the upsamplers on the smaller versions of true images (B, h', w', 3) uint8, of `truth`."""
        gray, gray_final, small = self._reduced(truths)
        made, bits = self._networks.upsample_truth(small, truths, gray, gray_final)
        if len(made) == 1:
            return UpsampledTruth(made[0], None, bits)
        of_coarse = self._networks.through(self._networks.upsamplers[-1], made[0], gray, gray_final)
        return UpsampledTruth(of_coarse, made[1], bits)

    @property
    def has_fine(self) -> bool:
        """Returns whether there is an image between the coarse and the final one: not with a joint upsampler."""
        return len(self._networks.upsamplers) > 1

    def _reduced(self, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True images -> gray at coarse and at final resolution, and the image at coarse resolution."""
        small = np.stack([arrays.area_resize(image, *self.coarse_resolution) for image in truths])
        return arrays.gray_from_rgb(small), arrays.gray_from_rgb(truths), small

    @property
    def default_batch_size(self) -> int:
        """Colorizations at once over all devices where the caller does not say."""
        return self._networks.default_batch_size


def _check_image(number: int, image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        expected = "uint8 or uint16 (H, W) or (H, W, 1 to 4)"
        raise ValueError(f"image {number} is {image.dtype} {image.shape}, expected {expected}")
    return image
