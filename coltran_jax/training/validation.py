"""Bits per pixel of checkpoints."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.data import loader, sources
from coltran_jax.errors import CheckpointError
from coltran_jax.images import arrays
from coltran_jax.networks.base import coarser
from coltran_jax.training.checkpoints import Checkpoints
from coltran_jax.training.config import TrainConfig
from coltran_jax.training.loop import holdout_bits, programs

_POLL_SECS = 5


# Pixels with the colours' overall frequencies that are added to those of each gray value.
_SMOOTHING = 512


def gray_table(config: TrainConfig) -> np.ndarray:
    """Counts the coarse colours of the training split's centre squares by gray value.

    Returns:
        (256, 512) float32, natural logarithms of probabilities: the frequencies at each gray value, to which 512 pixels
        of the overall frequencies are added; these have one added to each count.
    """
    return _by_gray(_counts(config, "train")).astype(np.float32)


def simple_bits(config: TrainConfig) -> dict[str, float]:
    """Computes held-out bits per pixel of two predictions that ignore the image, which a colorizer must beat.

    Both are counted on the centre squares of the training split.

    Returns:
        "marginal_bits", of predicting each coarse colour by its frequency, one added to each count; "gray_bits", of
        predicting it by its frequency at the pixel's gray value; see `gray_table`.
    """
    known, seen = _counts(config, "train"), _counts(config, "holdout")
    predictions = {"marginal_bits": np.log(_marginal(known)), "gray_bits": _by_gray(known)}
    return {name: float(-(seen * found).sum() / seen.sum() / np.log(2)) for name, found in predictions.items()}


def _counts(config: TrainConfig, split: str) -> np.ndarray:
    """(256, 512): pixels by gray value and coarse colour."""
    source = sources.open_source(config.data, split)
    total = np.zeros(256 * arrays.NUM_COARSE_COLORS)
    for batch in loader.evaluation_batches(config.data, source, size=config.resolution, batch_size=32):
        images = batch["images"][batch["mask"] == 1]
        small = np.asarray(coarser(jnp.asarray(images), config.downsample_res))
        pairs = arrays.gray_from_rgb(small)[..., 0].astype(int) * arrays.NUM_COARSE_COLORS
        pairs += arrays.coarse_from_rgb(small)
        total += np.bincount(pairs.ravel(), minlength=len(total))
    return total.reshape(256, -1)


def _marginal(counts: np.ndarray) -> np.ndarray:
    return (counts.sum(axis=0) + 1) / (counts.sum() + counts.shape[1])


def _by_gray(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(axis=1, keepdims=True)
    return np.log((counts + _SMOOTHING * _marginal(counts)) / (totals + _SMOOTHING))


def evaluate_checkpoints(
    config: TrainConfig,
    workdir: pathlib.Path,
    *,
    split: str = "holdout",
    step: int | None = None,
    watch: bool = False,
    num_examples: int = 0,
) -> Iterator[dict[str, Any]]:
    """Evaluates the EMA parameters of a checkpoint, or of each new one.

    Args:
        config: of the run.
        workdir: of the run.
        split: "holdout" or "test".
        step: of the checkpoint, the latest by default.
        watch: go on with each new checkpoint, until that of `config.max_train_steps`.
        num_examples: images, 0 for all.

    Yields:
        step, split, and what `coltran_jax.training.loop.holdout_bits` gives.

    Raises:
        CheckpointError: no such checkpoint, or one of another model.
        DataError: no such images.
    """
    mesh = partitioning.make_mesh(configs.to_dict(config.mesh))
    compiled = programs(config, mesh)
    sources.open_source(config.data, split)
    checkpoints = Checkpoints(workdir, read_only=True)
    done: set[int] = set()
    while True:
        steps = checkpoints.steps()
        if step is not None:
            if step not in steps:
                raise CheckpointError(
                    f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}"
                )
            waiting = [step]
        else:
            waiting = [found for found in steps if found not in done] if watch else steps[-1:]
        if not waiting and not watch:
            raise CheckpointError(f"{workdir}: no finished checkpoint there")
        for found in waiting:
            ema_params = checkpoints.restore(found, config, mesh).ema_params
            result = holdout_bits(config, compiled, ema_params, split, num_examples)
            done.add(found)
            yield {"step": found, "split": split, **result}
        if not watch or config.max_train_steps in done:
            return
        time.sleep(_POLL_SECS)
