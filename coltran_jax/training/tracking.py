"""Weights & Biases as a writer of clu, beside TensorBoard."""

import importlib.util
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metric_writers

from coltran_jax.config import to_dict
from coltran_jax.errors import ConfigError
from coltran_jax.files import replacing
from coltran_jax.training.config import TrainConfig

# The file in a sweep's folder that says so; the folders of its trials are VARIANT/seed_N in it.
SWEEP_RECORD = "sweep.json"
# A run that goes on after it was stopped is the same run there.
_ID = "wandb_id"


def check(project: str) -> None:
    """Finds out whether a project can be written to, as far as that goes without a connection.

    Raises:
        ConfigError: wandb is not installed.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"wandb_project is {project!r}, but wandb is not installed: pip install wandb")


class WandbWriter(metric_writers.MetricWriter):
    """Writes scalars, images, texts, histograms and hyperparameters to a run of Weights & Biases.

    Whether it is online is said by `WANDB_MODE`, and the account by `wandb login` or `WANDB_API_KEY`, as ever.
    """

    def __init__(self, config: TrainConfig, workdir: pathlib.Path):
        """Begins the run, or goes on with that of the same folder.

        It is named after the folder; the trials of a sweep are grouped by their variant.
        """
        import wandb

        path = workdir / _ID
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(secrets.token_hex(4))
        group, name = names_of(workdir)
        self._run = wandb.init(
            project=config.wandb_project,
            dir=str(workdir),
            id=path.read_text(),
            resume="allow",
            group=group,
            name=name,
            config=to_dict(config),
        )
        # Metrics of one step come at several times, and after a restart some steps come again.
        self._run.define_metric("*", step_metric="step")

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Not there: summaries are TensorBoard's."""
        raise NotImplementedError("summaries are for TensorBoard alone")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers by name."""
        self._log(step, {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images by name, (N, H, W, 1 or 3)."""
        import wandb

        self._log(step, {name: [wandb.Image(np.asarray(image)) for image in batch] for name, batch in images.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts by name."""
        import wandb

        self._log(step, {name: wandb.Html(text) for name, text in texts.items()})

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the histogram of arrays by name."""
        import wandb

        buckets = num_buckets or {}
        self._log(
            step,
            {
                name: wandb.Histogram(np.asarray(array).ravel(), num_bins=buckets.get(name) or 64)
                for name, array in arrays.items()
            },
        )

    def write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
        """Not there: nothing in training moves."""
        raise NotImplementedError("videos are not written")

    def write_audios(self, step: int, audios: Mapping[str, np.ndarray], *, sample_rate: int) -> None:
        """Not there: nothing in training sounds."""
        raise NotImplementedError("audios are not written")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Adds to the run's configuration."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def flush(self) -> None:
        """Does nothing: wandb writes in a process of its own."""

    def close(self) -> None:
        """Ends the run, once everything is written."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})


def names_of(workdir: pathlib.Path) -> tuple[str | None, str]:
    """Group and name of a run: of a trial the sweep with the variant, and the variant with the seed."""
    workdir = workdir.absolute()
    sweep = workdir.parent.parent
    if not (sweep / SWEEP_RECORD).is_file():
        return None, workdir.name
    return f"{sweep.name}/{workdir.parent.name}", f"{workdir.parent.name}/{workdir.name}"
