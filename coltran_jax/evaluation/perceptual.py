"""LPIPS, a distance between two images by the features of AlexNet (Zhang et al., 2018); torchmetrics has it."""

import contextlib
import importlib.util
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from coltran_jax.errors import FeaturesError, one_line

# (B, H, W, 3) uint8 twice -> (B,) float64.
Perceptual = Callable[[np.ndarray, np.ndarray], np.ndarray]


def check(weights: pathlib.Path | None) -> None:
    """Finds out whether `load` will work, but for the download of weights, without the time that it takes.

    Raises:
        FeaturesError: packages that are not installed, weights that are not there.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision", "torchmetrics")):
        raise FeaturesError("LPIPS is not installed: pip install torch torchvision torchmetrics")
    if weights and not weights.is_file():
        raise FeaturesError(f"{weights}: no such file; expected the weights of torchvision's AlexNet")


def load(weights: pathlib.Path | None = None) -> Perceptual:
    """LPIPS version 0.1 with AlexNet, on the CPU; its linear heads come with torchmetrics.

    Args:
        weights: file of torchvision's AlexNet, `alexnet-owt-7be5be79.pth`, which it downloads where none is given.

    Raises:
        FeaturesError: as `check`; weights that cannot be downloaded or read.
    """
    check(weights)
    try:
        with _trunk(weights), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    # A damaged file of weights and a failed download raise all kinds.
    except Exception as error:
        reason = one_line(error)[:300]
        hint = "" if weights else "; give AlexNet's weights with --lpips_weights"
        raise FeaturesError(f"LPIPS cannot be loaded ({reason}){hint}") from None
    import torch

    def distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
        batches = [
            torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).float() / 255 for x in (images, others)
        ]
        with torch.inference_mode():
            # It gives the mean of a batch, so each pair is one.
            return np.array([float(metric(*(x[None] for x in pair))) for pair in zip(*batches, strict=True)])

    return distances


@contextlib.contextmanager
def _trunk(weights: pathlib.Path | None) -> Iterator[None]:
    """Lets torchvision find a file of weights where it would download it to."""
    if weights is None:
        yield
        return
    import torch
    from torchvision.models import AlexNet_Weights

    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "checkpoints" / pathlib.PurePosixPath(AlexNet_Weights.IMAGENET1K_V1.url).name
        place.parent.mkdir()
        place.symlink_to(weights.absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
