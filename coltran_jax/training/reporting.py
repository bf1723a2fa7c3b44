"""Reports of a run: lines of progress, TensorBoard and Weights & Biases through clu, and JSON lines beside them."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from clu import metric_writers, parameter_overview
from jax.sharding import Mesh

from coltran_jax import partitioning
from coltran_jax.data import loader, sources
from coltran_jax.errors import ConfigError
from coltran_jax.files import replacing
from coltran_jax.images import arrays
from coltran_jax.networks.registry import NETWORKS
from coltran_jax.nn.parameters import Parameters
from coltran_jax.training import state as states
from coltran_jax.training import tracking
from coltran_jax.training.checkpoints import abstract_state
from coltran_jax.training.config import TrainConfig

_NUM_IMAGES = 4

# Dense bfloat16 products a second and device, as the makers state them, by the beginning of the device's name.
_PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak rate in bfloat16; None for a device that is not in the table."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Counts a function's floating-point operations for arguments of these shapes, without running it.

    The count is XLA's, before it optimizes; only its CPU backend gives one.

    Raises:
        ConfigError: JAX has no CPU backend.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ConfigError(
            f'JAX_PLATFORMS is {os.environ.get("JAX_PLATFORMS")!r}, expected one that has "cpu", too: operations '
            "are counted there"
        ) from None
    with jax.default_device(device):
        return jax.jit(function).lower(*args).cost_analysis()["flops"]


def train_flops(config: TrainConfig) -> float:
    """Floating-point operations of a step's matrix products, forward and backward; see `count_flops`.

    Recomputed activations do not count, nor does anything else that another implementation could leave out.

    Raises:
        ConfigError: JAX has no CPU backend.
    """
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract_state(config, mesh))
    batch = {
        "images": jax.ShapeDtypeStruct((1, config.resolution, config.resolution, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    optimizer = dataclasses.replace(config.optimizer, accumulation_steps=1)
    plain = dataclasses.replace(config, remat="none", backend="xla", dtype="float32", batch_size=1, optimizer=optimizer)
    return config.batch_size * count_flops(lambda s, b: states.train_step(plain, s, b), one, batch)


class Reporter:
    """Collects metrics one step late, so that the device never waits for the host; writes on one process."""

    def __init__(self, config: TrainConfig, workdir: pathlib.Path, mesh: Mesh, state: states.TrainState):
        """Opens the files and prints the parameters."""
        self._config, self._mesh, self._workdir = config, mesh, workdir
        self._main = jax.process_index() == 0
        self._writer: metric_writers.MetricWriter = metric_writers.create_default_writer(
            str(workdir), just_logging=not self._main
        )
        if self._main and config.wandb_project:
            self._writer = metric_writers.MultiWriter([self._writer, tracking.WandbWriter(config, workdir)])
        self._lines = _opened(workdir / "metrics.jsonl", int(state.step)) if self._main else None
        self._pending: tuple[int, states.StepMetrics] | None = None
        self._collected: list[states.StepMetrics] = []
        self._waited = 0.0
        self._interval_started = time.perf_counter()
        self._profiling = False
        device = mesh.devices.flat[0]
        peak = peak_flops(device.device_kind)
        self._peak = peak and peak * mesh.size
        self._flops = None
        try:
            self._flops = train_flops(config) if peak else None
        except ConfigError as error:
            if self._main:
                print(f"MFU is not reported: {error}")
        if self._main:
            print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
            compute = states.compute(config)
            sizes = f"mesh {dict(mesh.shape)}, batch {config.batch_size}"
            print(f"{sizes}, {compute.dtype.name}, backend {compute.backend}")

    def record(self, step: int, metrics: states.StepMetrics, waited: float) -> list[int]:
        """Takes a step's metrics, still being computed, and looks at those of the step before.

        Returns:
            Steps now known not to have been finite.
        """
        found = self.flush(waited)
        self._pending = (step, metrics)
        self._waited += waited
        return found

    def flush(self, waited: float = 0.0) -> list[int]:
        """Looks at the metrics taken last; see `record`. `waited` are seconds that belong to the next step already."""
        if self._pending is None:
            return []
        step, metrics = self._pending
        self._pending = None
        metrics = jax.tree.map(float, jax.device_get(metrics))
        self._collected.append(metrics)
        if step % self._config.log_every_steps == 0 or step == self._config.max_train_steps:
            self._log(step, time.perf_counter() - waited)
        return [step] if metrics.nonfinite else []

    def _log(self, step: int, now: float) -> None:
        secs, count = now - self._interval_started, len(self._collected)
        finite = [metrics for metrics in self._collected if not metrics.nonfinite]
        names = ("loss_bits", "encoder_loss_bits", "total_loss_bits", "grad_norm")
        scalars = {name: float(np.mean([getattr(m, name) for m in finite])) for name in names if finite}
        scalars["num_skipped"] = sum(metrics.num_skipped for metrics in self._collected)
        scalars["num_nonfinite"] = sum(metrics.nonfinite for metrics in self._collected)
        scalars["step_secs"] = secs / count
        scalars["images_per_sec"] = self._config.batch_size * count / secs
        scalars["input_wait_fraction"] = self._waited / secs
        if self._flops:
            scalars["mfu"] = self._flops * count / secs / self._peak
        self.write(step, {f"train/{key}": value for key, value in scalars.items()})
        left = (self._config.max_train_steps - step) * secs / count
        if self._main:
            mfu = f", MFU {scalars['mfu']:.1%}" if self._flops else ""
            print(
                f"step {step}/{self._config.max_train_steps}: {scalars.get('loss_bits', float('nan')):.4f} bits per "
                f"pixel, {scalars['images_per_sec']:.1f} images/s, {1000 * secs / count:.0f} ms a step{mfu}, "
                f"input wait {scalars['input_wait_fraction']:.0%}, {_duration(left)} left",
                flush=True,
            )
        self._collected, self._waited, self._interval_started = [], 0.0, now

    def holdout(self, step: int, result: dict[str, float]) -> None:
        """Writes the result of an evaluation."""
        self.write(step, {f"holdout/{key}": value for key, value in result.items()})
        if self._main:
            print(f"step {step}: holdout {result['bits']:.4f} bits per pixel, {result['count']:.0f} images", flush=True)
        self._interval_started = time.perf_counter() if not self._collected else self._interval_started

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes to TensorBoard, to Weights & Biases where it is asked for, and to metrics.jsonl."""
        self._writer.write_scalars(step, scalars)
        if self._lines:
            self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
            self._lines.flush()

    def images(self, step: int, ema_params: Parameters) -> None:
        """Gray, result and truth of the first holdout images, a row each, to TensorBoard."""
        result = sample_images(self._config, self._mesh, ema_params)
        self._writer.write_images(step, {"holdout/gray_result_truth": result[None]})
        self._writer.flush()

    def start_profile(self) -> None:
        """Into workdir/profile, for TensorBoard or Perfetto."""
        jax.profiler.start_trace(str(self._workdir / "profile"))
        self._profiling = True

    def stop_profile(self) -> None:
        """Ends the profile."""
        jax.profiler.stop_trace()
        self._profiling = False

    def close(self) -> None:
        """Writes what is left."""
        if self._profiling:
            self.stop_profile()
        self._writer.close()
        if self._lines:
            self._lines.close()


def sample_images(config: TrainConfig, mesh: Mesh, ema_params: Parameters) -> np.ndarray:
    """Gray, what the network makes of it (from true colours, the upsamplers), truth: (H, W, 3) uint8."""
    source = sources.open_source(config.data, "holdout")
    count = min(_NUM_IMAGES, len(source))
    batches = loader.evaluation_batches(
        config.data, source, size=config.resolution, batch_size=count, num_examples=count
    )
    result, truth = jax.device_get(drawing(config, mesh)(ema_params, next(batches)["images"]))
    gray = np.repeat(arrays.gray_from_rgb(truth), 3, axis=-1)
    return np.concatenate([np.concatenate(row, axis=1) for row in zip(gray, result, truth, strict=True)])


def drawing(config: TrainConfig, mesh: Mesh) -> Callable[[Parameters, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the jitted function from EMA parameters and squares to what the network makes of them, and the truth."""
    # So few images are not divided among devices, as Pallas kernels on a mesh take them.
    model = states.network(dataclasses.replace(config, backend="xla"))

    def draw(ema_params: Parameters, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with partitioning.logical_axes(mesh):
            keys = jax.random.split(states.stream(config.seed, "images"), len(images))
            return NETWORKS[config.network].draw(config, model, ema_params, images, keys)

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(draw, out_shardings=whole)


def _opened(path: pathlib.Path, step: int) -> TextIO:
    """The file of metrics, to be added to, without what a run that was killed wrote after its last checkpoint."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            with replacing(path) as temporary:
                temporary.write_text("".join(kept))
    return path.open("a")


def _step_of(line: str) -> float:
    # A process that was killed may have left part of a line.
    try:
        return json.loads(line)["step"]
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _duration(secs: float) -> str:
    hours, rest = divmod(round(secs), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
