"""The Fréchet distance between two sets of images, and the statistics that it is made of (Heusel et al., 2017)."""

import dataclasses
import functools
import json
import pathlib

import numpy as np

from coltran_jax.errors import StatisticsError
from coltran_jax.files import replacing

# With fewer images a covariance of Inception's 2,048 features has not even full rank.
MIN_IMAGES_FOR_FID = 2048
# Each half of them has a covariance.
_MIN_IMAGES = 4
# Images whose own features are kept, for distances that compare each with each.
_MAX_KEPT = 10_000


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Features of a set of images, with their mean and covariance: all that distances between sets are made of.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased.
        count: images.
        origin: what they are of: feature network, crop, size, images; two are only compared if the first three agree.
        features: (min(count, 10000), D) float32, of the first images.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    origin: dict[str, str]
    features: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, origin: dict[str, str] | None = None) -> "Statistics":
        """Computes the statistics of features (N, D), N of at least 2."""
        wide = np.asarray(features, np.float64)
        kept = np.asarray(features[:_MAX_KEPT], np.float32)
        return cls(wide.mean(axis=0), np.cov(wide, rowvar=False), len(wide), dict(origin or {}), kept)

    @functools.cached_property
    def root(self) -> np.ndarray:
        """The square root of the covariance, (D, D)."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def save(self, path: pathlib.Path) -> None:
        """Writes them, whole or not at all; `load` reads them."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            arrays = {"mean": self.mean, "covariance": self.covariance, "features": self.features}
            np.savez(file, **arrays, count=self.count, origin=json.dumps(self.origin))


def load(path: pathlib.Path, expected: dict[str, str]) -> Statistics:
    """Reads statistics of the expected origin.

    Raises:
        StatisticsError: a damaged file, or statistics of something else.
    """
    try:
        with np.load(path) as file:
            origin = json.loads(str(file["origin"]))
            if "features" not in file.files:
                raise StatisticsError(
                    f"{path}: of an earlier version, without features; remove it, to have it made anew"
                )
            found = Statistics(file["mean"], file["covariance"], int(file["count"]), origin, file["features"])
        if found.covariance.shape != 2 * found.mean.shape or not np.isfinite(found.covariance).all():
            raise ValueError
    except StatisticsError:
        raise
    except OSError as error:
        raise StatisticsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:
        raise StatisticsError(f"{path}: damaged, or no statistics of this program") from None
    for key, value in expected.items():
        if origin.get(key) != value:
            raise StatisticsError(
                f"{path}: statistics with {key} {origin.get(key)!r}, expected {value!r}; give another --statistics"
            )
    return found


def check_count(images: int) -> None:
    """Checks, before anything slow, that there are enough images for a distance and its floors.

    Raises:
        StatisticsError: fewer than four.
    """
    if images < _MIN_IMAGES:
        raise StatisticsError(f"{images} images, distances between sets take at least {_MIN_IMAGES}")


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), between normal distributions with these means and covariances.

    The trace of the root is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: its eigenvalues are real and
    exact even where covariances have not full rank.
    """
    between = np.linalg.eigvalsh(one.root @ other.covariance @ one.root).clip(0)
    difference = one.mean - other.mean
    spread = np.trace(one.covariance) + np.trace(other.covariance) - 2 * np.sqrt(between).sum()
    return float(difference @ difference + spread)


def halves(features: np.ndarray, seed: int = 0) -> tuple[Statistics, Statistics]:
    """Two halves of one set (N, D), drawn at random: sets that differ by chance alone."""
    order = np.random.default_rng(seed).permutation(len(features))
    half = len(features) // 2
    return Statistics.of(features[order[:half]]), Statistics.of(features[order[half : 2 * half]])
