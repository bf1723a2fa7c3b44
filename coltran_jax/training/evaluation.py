"""Bits per pixel of checkpoints."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from coltran_jax import config as configs
from coltran_jax import data, images, partitioning
from coltran_jax.training.checkpoints import CheckpointError, Checkpoints
from coltran_jax.training.config import TrainConfig
from coltran_jax.training.loop import holdout_bits, programs
from coltran_jax.training.losses import coarser

_POLL_SECS = 5


def marginal_bits(config: TrainConfig) -> float:
    """Bits per pixel on the holdout of predicting coarse colours by their frequency alone.

    Frequencies are counted on the centre squares of the training split, one added to each colour.
    """

    def counts(split: str) -> np.ndarray:
        source = data.open_source(config.data, split)
        total = np.zeros(images.NUM_COARSE_COLORS)
        size = config.downsample_res
        for batch in data.evaluation_batches(config.data, source, size=config.resolution, batch_size=32):
            pictures = batch["pictures"][batch["mask"] == 1]
            small = np.asarray(coarser(jnp.asarray(pictures), size))
            total += np.bincount(images.coarse_from_rgb(small).ravel(), minlength=len(total))
        return total

    frequencies = counts("train") + 1
    seen = counts("holdout")
    return float(-(seen * np.log2(frequencies / frequencies.sum())).sum() / seen.sum())


def evaluate_checkpoints(
    config: TrainConfig,
    workdir: pathlib.Path,
    *,
    split: str = "holdout",
    step: int | None = None,
    watch: bool = False,
    num_examples: int = 0,
) -> Iterator[dict[str, Any]]:
    """Evaluates the averaged weights of a checkpoint, or of each new one.

    Args:
        config: of the run.
        workdir: of the run.
        split: "holdout" or "test".
        step: of the checkpoint, the latest by default.
        watch: go on with each new checkpoint, until that of `config.max_train_steps`.
        num_examples: pictures, 0 for all.

    Yields:
        step, split, bits, encoder_bits, count.

    Raises:
        CheckpointError: no such checkpoint, or one of another model.
        coltran_jax.data.DataError: no such pictures.
    """
    mesh = partitioning.make_mesh(configs.to_dict(config.mesh))
    compiled = programs(config, mesh)
    data.open_source(config.data, split)
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
            average = checkpoints.restore(found, config, mesh).average
            result = holdout_bits(config, compiled, average, split, num_examples)
            done.add(found)
            yield {"step": found, "split": split, **result}
        if not watch or config.max_train_steps in done:
            return
        time.sleep(_POLL_SECS)
