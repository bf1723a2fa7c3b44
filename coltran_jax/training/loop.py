"""The training loop: data, steps, evaluation, checkpoints, and what is reported."""

import collections
import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.checkpoints import trunks
from coltran_jax.checkpoints.bundles import load_bundle
from coltran_jax.data import loader, sources
from coltran_jax.errors import CheckpointError, Interrupted, MeshError, TrainingError
from coltran_jax.networks.registry import NETWORKS, parameter_shapes
from coltran_jax.nn.parameters import Parameters
from coltran_jax.training import state as states
from coltran_jax.training import tracking
from coltran_jax.training.checkpoints import Checkpoints, abstract_state, differences, latest_step
from coltran_jax.training.config import TrainConfig, for_platform
from coltran_jax.training.kernel_check import check_kernels
from coltran_jax.training.lock import locked
from coltran_jax.training.reporting import Reporter
from coltran_jax.training.resampling import resampled


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled step and evaluation of a run on a mesh."""

    mesh: Mesh
    abstract: states.TrainState
    train: Any
    evaluate: Any


# Of parameters, by path.
Weights = dict[tuple[str, ...], Any]

# Those that JAX finds on v5p and v6e.
_WITH_SPARSE_CORES = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")


def _compiler_options(config: TrainConfig, mesh: Mesh) -> dict[str, str]:
    platform = mesh.devices.flat[0].platform
    options = partitioning.image_options(platform)
    if platform == "tpu":
        # Equal operations are called, not written out as often as they occur: a step compiles in less time.
        options = {**options, "xla_tpu_enable_deduplicated_calls": "ENABLED"}
    if config.overlap_all_reduces:
        options = {**options, "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true"}
    # On a CPU, XLA (jax 0.10) drops the barriers around what is to be computed again, finds it computed already, and
    # keeps it after all: the paper's spatial upsampler took 17 GiB, not 5.
    if platform == "cpu" and config.remat != "none":
        options = {**options, "xla_disable_hlo_passes": "cse_barrier_expander"}
    return options


def programs(config: TrainConfig, mesh: Mesh) -> Programs:
    """Jitted functions with explicit shardings in and out; the state is donated to the step.

    Raises:
        MeshError: a batch or an array that the mesh does not divide.
        ConfigError: a backend, or overlapping all-reduces, for other devices.
    """
    device = mesh.devices.flat[0]
    config = for_platform(config, device.platform)
    states.compute(config).check_platform(device.platform)
    configs.check(
        not config.overlap_all_reduces or device.device_kind in _WITH_SPARSE_CORES,
        "overlap_all_reduces",
        True,
        f"False: it takes the SparseCores of TPU v5p and v6e, and the devices are {device.device_kind}",
    )
    for name in ("batch_size", "eval_batch_size"):
        parts = partitioning.batch_parts(mesh.shape)
        each = getattr(config, name) // (config.optimizer.accumulation_steps if name == "batch_size" else 1)
        if each % parts:
            raise MeshError(
                f"{name} is {getattr(config, name)}, expected a multiple of the mesh's data x fsdp"
                f"{' x accumulation_steps' if each != getattr(config, name) else ''}, {parts}"
            )
    abstract = abstract_state(config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    whole, batch = NamedSharding(mesh, PartitionSpec()), partitioning.batch_sharding(mesh)

    def train(state, batch):
        with partitioning.logical_axes(mesh):
            return states.train_step(config, state, batch)

    def evaluate(ema_params, batch):
        with partitioning.logical_axes(mesh):
            return states.evaluation_step(config, ema_params, batch)

    options = _compiler_options(config, mesh)
    return Programs(
        mesh,
        abstract,
        jax.jit(
            train,
            in_shardings=(shardings, batch),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=options,
        ),
        jax.jit(evaluate, in_shardings=(shardings.ema_params, batch), out_shardings=whole, compiler_options=options),
    )


def starting_weights(config: TrainConfig, init_from: pathlib.Path | None = None) -> Weights:
    """Reads the weights that a new run does not draw at random, by their path among the parameters.

    Args:
        config: the run.
        init_from: a bundle whose weights to start from. Those of the same network at another resolution are resampled;
            see `coltran_jax.training.resampling`. Its dropout may be another, and the model's pretrained parts may be
            missing in it.

    Raises:
        WeightsError: pretrained weights that are not installed.
        WeightsError, CheckpointError: a bundle that does not fit the model.
    """
    known = {} if init_from is None else traverse_util.flatten_dict(_of_bundle(config, init_from))
    for path, name in NETWORKS[config.network].pretrained(config.model).items():
        if not any(found[: len(path)] == path for found in known):
            logging.info("%s: the pretrained weights of %s", "/".join(path), name)
            weights = traverse_util.flatten_dict(trunks.load(name))
            known |= {(*path, *rest): value for rest, value in weights.items()}
    return known


def fresh_state(config: TrainConfig, compiled: Programs, known: Weights | None = None) -> states.TrainState:
    """A state before the first step, made in its sharding: no host holds all of what is drawn at random.

    Args:
        config: the run.
        compiled: its programs.
        known: its `starting_weights`, by default without a bundle's.
    """
    if known is None:
        known = starting_weights(config)

    def create(known: Weights) -> states.TrainState:
        if known.keys() == traverse_util.flatten_dict(parameter_shapes(config.model)).keys():
            return states.create(config, traverse_util.unflatten_dict(known))
        drawn = traverse_util.flatten_dict(nn.unbox(states.fresh_parameters(config)))
        return states.create(config, traverse_util.unflatten_dict(drawn | known))

    shardings = jax.tree.map(lambda x: x.sharding, compiled.abstract)
    return jax.jit(create, out_shardings=shardings)(jax.tree.map(np.asarray, known))


def _of_bundle(config: TrainConfig, path: pathlib.Path) -> Parameters:
    """A bundle's parameters of the network, at the resolution of the run."""
    bundle = load_bundle(path, required=[config.network])
    saved, model = (configs.without_dropout(one) for one in (bundle.configs[config.network], config.model))
    resolution = model.resolution
    without = NETWORKS[config.network].without_pretrained(model)
    if configs.at_resolution(saved, resolution) not in (model, without):
        changed = differences(configs.to_dict(saved), configs.to_dict(model), "model.")
        raise CheckpointError(f"{path}: another model than the configuration's ({', '.join(changed)})")
    if saved.resolution == resolution:
        return bundle.params[config.network]
    logging.info("%s: resampled from %s to %s pixels", path, saved.resolution, resolution)
    return resampled(bundle.params[config.network], parameter_shapes(configs.at_resolution(saved, resolution)))


def holdout_bits(
    config: TrainConfig, compiled: Programs, ema_params: Parameters, split: str = "holdout", num_examples: int = 0
) -> dict[str, float]:
    """Means over the images of a split, exact whatever the batch, and their "count"; see `state.evaluation_step`."""
    part, num_parts = partitioning.share_of_process(compiled.mesh, config.eval_batch_size)
    source = sources.open_source(config.data, split)
    batches = loader.evaluation_batches(
        config.data,
        source,
        size=config.resolution,
        batch_size=config.eval_batch_size,
        num_examples=num_examples,
        part=part,
        num_parts=num_parts,
    )
    totals, count = collections.Counter(), 0.0
    for batch in batches:
        sums, number = jax.device_get(compiled.evaluate(ema_params, partitioning.global_batch(compiled.mesh, batch)))
        totals.update({key: float(value) for key, value in sums.items()})
        count += float(number)
    if not count:
        raise TrainingError(f"no image of the {split} split could be read")
    return {**{key: value / count for key, value in totals.items()}, "count": count}


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[int], signal.Signals | None]]:
    """A function that returns, at a step, the signal that asked the run to end, while the context lasts.

    The first SIGTERM or Ctrl-C is remembered until the step is done; a second Ctrl-C ends the process at once.
    """
    if jax.process_count() > 1:
        # JAX listens for SIGTERM itself. It agrees with all processes on the step to end at, whichever of them were
        # asked and when: had each its own, one would save while another waits for it in the next step.
        yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return
    asked: list[signal.Signals] = []

    def remember(number: int, frame: object) -> None:
        asked.append(signal.Signals(number))
        if number == signal.SIGINT:
            logging.info("ending after this step; Ctrl-C again ends at once, without saving")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: TrainConfig,
    workdir: pathlib.Path,
    *,
    init_from: pathlib.Path | None = None,
    profile_step: int | None = None,
    restore_step: int | None = None,
) -> states.TrainState:
    """Trains to the last step, from the newest checkpoint in `workdir` if there is one.

    Args:
        config: the run.
        workdir: for checkpoints, TensorBoard and metrics.jsonl.
        init_from: a bundle whose weights a new run starts from.
        profile_step: profile the device from this step on, for five steps.
        restore_step: go on from this checkpoint instead of the newest; those after it are removed.

    Returns:
        The last state; or the state at which SIGTERM was answered, after it was saved.

    Raises:
        ValueError: configuration, data, mesh or checkpoints that cannot be used, before anything slow starts.
        TrainingError: a loss that is not finite, or Pallas kernels whose gradients are not XLA's.
        Interrupted: Ctrl-C was answered, after the state was saved.
    """
    tracking.check(config.wandb_project)
    mesh = partitioning.make_mesh(configs.to_dict(config.mesh))
    compiled = programs(config, mesh)
    part, num_parts = partitioning.share_of_process(mesh, config.batch_size)
    source = sources.open_source(config.data, "train")
    if config.eval_every_steps or config.log_images_every_steps:
        sources.open_source(config.data, "holdout")
    # What may be refused at once comes before what takes time.
    latest = latest_step(workdir) if restore_step is None else restore_step
    known = starting_weights(config, init_from) if latest is None else None
    if states.compute(config).backend == "pallas" and (latest or 0) < config.max_train_steps:
        check_kernels(config)
    with locked(pathlib.Path(workdir)) if jax.process_index() == 0 else contextlib.nullcontext():
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        latest = checkpoints.latest() if restore_step is None else restore_step
        if latest is None:
            state = fresh_state(config, compiled, starting_weights(config, init_from) if known is None else known)
            # Not in memory as long as the run.
            known = None
        else:
            state = _resumed(config, mesh, checkpoints, latest)
            if restore_step is not None:
                checkpoints.remove_after(restore_step)
        batches = loader.training_batches(
            config.data,
            source,
            size=config.resolution,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=int(state.step),
            part=part,
            num_parts=num_parts,
        )
        reporter = Reporter(config, pathlib.Path(workdir), mesh, state)
        with (
            _termination() as terminated,
            contextlib.closing(checkpoints),
            contextlib.closing(reporter),
            contextlib.closing(batches),
        ):
            return _steps(config, compiled, state, batches, checkpoints, reporter, terminated, profile_step)


def _resumed(config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints, step: int) -> states.TrainState:
    """The state of a checkpoint, and a word about what has changed since it was saved."""
    if step > config.max_train_steps:
        raise CheckpointError(
            f"{checkpoints.folder}: trained to step {step}, beyond max_train_steps, {config.max_train_steps}; raise "
            "it, or take a new --workdir"
        )
    state = checkpoints.restore(step, config, mesh)
    logging.info("resumed from step %d", step)
    changed = differences(configs.to_dict(checkpoints.config(step)), configs.to_dict(config))
    if changed:
        logging.info("changed since then: %s", ", ".join(changed))
    if step == config.max_train_steps:
        logging.info("that is the last step, max_train_steps; nothing to do")
    return state


def _steps(config, compiled, state, batches, checkpoints, reporter, terminated, profile_step):
    step = int(state.step)
    saved = step if step else None
    ended = None
    while step < config.max_train_steps:
        waited = time.perf_counter()
        batch = partitioning.global_batch(compiled.mesh, next(batches))
        waited = time.perf_counter() - waited
        if step == profile_step:
            reporter.start_profile()
        state, metrics = compiled.train(state, batch)
        step += 1
        _check(config, reporter.record(step, metrics, waited))
        if profile_step is not None and step == profile_step + 5:
            jax.block_until_ready(metrics)
            reporter.stop_profile()
        last, ended = step == config.max_train_steps, terminated(step)
        bits = None
        if _due(config.eval_every_steps, step, last) and not ended:
            _check(config, reporter.flush())
            result = holdout_bits(config, compiled, state.ema_params, num_examples=config.eval_num_examples)
            bits = result["bits"]
            reporter.holdout(step, result)
        if _due(config.log_images_every_steps, step, last) and not ended:
            reporter.images(step, state.ema_params)
        if last or ended or bits is not None or _due(config.save_every_steps, step, False):
            # The metrics of this very step must be known before its state may be saved.
            _check(config, reporter.flush())
            checkpoints.save(config, state, bits)
            saved = step
        if ended:
            break
    _check(config, reporter.flush())
    if saved is not None:
        checkpoints.wait()
    if ended == signal.SIGINT:
        raise Interrupted(f"interrupted at step {step}, saved")
    if ended:
        logging.info("asked to end: saved step %d", step)
    return state


def _due(interval: int, step: int, last: bool) -> bool:
    return bool(interval) and (last or step % interval == 0)


def _check(config: TrainConfig, nonfinite_steps: list[int]) -> None:
    if nonfinite_steps and config.on_nonfinite == "stop":
        step = nonfinite_steps[0]
        raise TrainingError(
            f"step {step}: loss or gradient is not finite, at batch {step - 1}; nothing of it was saved. Lower "
            'optimizer.learning_rate, set optimizer.clip_norm, or on_nonfinite = "skip"'
        )
