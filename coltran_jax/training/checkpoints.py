"""Checkpoints through Orbax: state, data position and configuration together, saved asynchronously; their export."""

import dataclasses
import logging
import pathlib
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.checkpoints.bundles import Bundle, check_recommended, load_bundle, save_bundle
from coltran_jax.errors import CheckpointError, one_line
from coltran_jax.networks.chain import COLORIZER
from coltran_jax.nn.parameters import Parameters
from coltran_jax.training import state as states
from coltran_jax.training.config import TrainConfig, from_saved

_METRIC = "holdout_bits"
# The name under which all checkpoints so far have the EMA parameters.
_EMA_ON_DISK = "average"
_DISK_FULL = "No space left on device"


def abstract_state(config: TrainConfig, mesh: Mesh) -> states.TrainState:
    """Shapes, types and shardings of the training state; nothing is allocated.

    Raises:
        MeshError: an axis that the mesh does not divide.
    """
    boxed = jax.eval_shape(lambda: states.create(config))
    shardings = partitioning.shardings(boxed, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)


def latest_step(workdir: pathlib.Path) -> int | None:
    """The step of a run's newest checkpoint, None where there is none. Makes no folder, and waits for no process."""
    folder = _folder_of(workdir)
    return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.is_dir() else None


def _folder_of(workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


class Checkpoints:
    """The checkpoints of a run, in `workdir/checkpoints`."""

    def __init__(self, workdir: pathlib.Path, keep: int = 1, *, read_only: bool = False):
        """Opens the folder, or makes it.

        Raises:
            CheckpointError: no such folder (read only), or it cannot be written to.
        """
        self.folder = _folder_of(workdir)
        self._saving: int | None = None
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{workdir}: no checkpoints there; expected the --workdir of a training run")
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: -metrics[_METRIC], n=1, keep_checkpoints_without_metrics=False
        )
        latest = preservation_policy.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            preservation_policy=preservation_policy.AnyPreservationPolicy([latest, best]),
        )
        try:
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "run"), item_handlers=_handlers()
            )
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be written to ({error.strerror})") from None

    def latest(self) -> int | None:
        """The newest step, None where there is none."""
        self._manager.reload()
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps, in order."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the fewest holdout bits, None where none was measured."""
        measured = {step: self.holdout_bits(step) for step in self.steps()}
        measured = {step: bits for step, bits in measured.items() if bits is not None}
        return min(measured, key=measured.get) if measured else None

    def holdout_bits(self, step: int) -> float | None:
        """Measured when this step was saved; None if it was not."""
        return self.run(step)["holdout_bits"]

    def save(self, config: TrainConfig, state: states.TrainState, holdout_bits: float | None = None) -> None:
        """Starts to save; `wait` ends it. A checkpoint appears by rename, whole or not at all.

        Raises:
            CheckpointError: it cannot be written; those before are as they were.
        """
        step = int(state.step)
        run = {
            "step": step,
            # The n-th batch depends on seed and n alone: its number is all of the data's position.
            "next_batch": step,
            "holdout_bits": holdout_bits,
            "config": configs.to_dict(config),
        }
        self.wait()
        self._saving = step
        metrics = None if holdout_bits is None else {_METRIC: holdout_bits}
        args = ocp.args.Composite(state=ocp.args.StandardSave(_to_disk(state)), run=ocp.args.JsonSave(run))
        try:
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError) as error:
            raise self._unwritten(step, error) from None

    def wait(self) -> None:
        """Waits until nothing is being saved any more.

        Raises:
            CheckpointError: as `save`.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(self._saving, error) from None

    def _unwritten(self, step: int | None, error: Exception) -> CheckpointError:
        # Orbax drops what it had not begun to write, which Python would tell of on the way out.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        reason = one_line(error)[:300]
        if _DISK_FULL in str(error):
            reason = _DISK_FULL.lower()
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({reason}); earlier ones are intact"
        )

    def run(self, step: int) -> dict[str, Any]:
        """Returns the values saved beside the state: step, next_batch, holdout_bits, config.

        Raises:
            CheckpointError: no such checkpoint, or a damaged one.
        """
        return self._restored(step, "run", ocp.args.JsonRestore())

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of all later steps."""
        for later in [found for found in self.steps() if found > step]:
            logging.info("removing the checkpoint of step %d", later)
            self._manager.delete(later)

    def _restored(self, step: int, item: str, args: Any) -> Any:
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; there are {there}")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        # What Orbax and TensorStore raise depends on which file is damaged, and how.
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            whole = [str(other) for other in self.steps() if other != step and self._looks_whole(other)]
            others = f"there are those of {', '.join(whole)}" if whole else "there is no other"
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} is damaged ({item}: {reason}); {others}: train with "
                "--restore_step, evaluate with --step, export WORKDIR@STEP"
            ) from None

    def _looks_whole(self, step: int) -> bool:
        folder = self.folder / str(step)
        return (folder / "state" / "_METADATA").is_file() and any((folder / "run").glob("*"))

    def config(self, step: int) -> TrainConfig:
        """The run's configuration as it was saved."""
        return from_saved(self.run(step)["config"])

    def restore(self, step: int, config: TrainConfig, mesh: Mesh) -> states.TrainState:
        """Returns the state, sharded over this mesh, whatever the mesh it was saved from.

        Raises:
            CheckpointError: the model's configuration differs from the saved one, listing the fields.
        """
        saved = self.config(step)
        changed = differences(configs.to_dict(saved.model), configs.to_dict(config.model), "model.")
        if saved.network != config.network:
            changed = [f"network {saved.network!r} -> {config.network!r}"]
        if changed:
            raise CheckpointError(
                f"{self.folder}: saved with another model ({', '.join(changed)}); take a new --workdir"
            )
        if saved.optimizer.type != config.optimizer.type:
            raise CheckpointError(
                f"{self.folder}: saved with optimizer.type {saved.optimizer.type!r}, not {config.optimizer.type!r}; "
                "take a new --workdir and --init_from an export"
            )
        abstract = _to_disk(abstract_state(config, mesh))
        fields = self._restored(step, "state", ocp.args.StandardRestore(abstract))
        return states.TrainState(ema_params=fields.pop(_EMA_ON_DISK), **fields)

    def close(self) -> None:
        """Ends what is being saved."""
        self.wait()
        self._manager.close()


def _to_disk(state: states.TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {_EMA_ON_DISK if name == "ema_params" else name: value for name, value in fields.items()}


def _handlers() -> dict[str, Any]:
    return {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields whose values differ, as "field before -> after"."""
    found = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} {one!r} -> {other!r}")
    return found


def load_ema_params(workdir: pathlib.Path, step: int | None = None) -> tuple[TrainConfig, Parameters, int]:
    """The EMA parameters of a run.

    Args:
        workdir: of the run.
        step: of the checkpoint; by default the best by holdout bits, or the latest where none was measured.

    Raises:
        CheckpointError: no such checkpoint.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(f"{workdir}: no finished checkpoint there")
    if step is None:
        best = checkpoints.best()
        step = steps[-1] if best is None else best
    if step not in steps:
        raise CheckpointError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    config = checkpoints.config(step)
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.local_devices()[:1])
    return config, checkpoints.restore(step, config, mesh).ema_params, step


def export(
    workdirs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    dtype: jnp.dtype = jnp.float32,
    recommended: Mapping[str, float] = types.MappingProxyType({}),
    count: Callable[[], np.ndarray] | None = None,
) -> Iterator[str]:
    """Writes the EMA parameters of a run of each network to a bundle.

    Args:
        workdirs: by the network's name; "WORKDIR@STEP" for a step, else the best by holdout bits, else the latest. A
            bundle gives the network that it holds.
        output: the bundle to write.
        dtype: to store parameters in.
        recommended: sampling options to put into the bundle; see `coltran_jax.checkpoints.bundles.Bundle`.
        count: counts the bundle's table of colours by gray value. None takes the table of a bundle that gives the
            colorizer, if it has one.

    Yields:
        One line a network, and one for the bundle.

    Raises:
        CheckpointError: no such checkpoint, or a run of another network.
        WeightsError: a bundle that lacks the network or cannot be used.
    """
    check_recommended(recommended)
    found, params, gray_table = {}, {}, None
    for name, given in workdirs.items():
        workdir = pathlib.Path(given)
        if workdir.is_file():
            bundle = load_bundle(workdir, required=[name])
            found[name], params[name] = bundle.configs[name], bundle.params[name]
            if name == COLORIZER:
                gray_table = bundle.gray_table
            yield f"{name}: of {workdir}"
            continue
        folder, _, step = str(workdir).rpartition("@")
        if folder and step.isdigit() and not workdir.exists():
            config, ema_params, taken = load_ema_params(pathlib.Path(folder), int(step))
        else:
            config, ema_params, taken = load_ema_params(workdir)
        if config.network != name:
            raise CheckpointError(f"{workdir}: a run of the {config.network}, expected one of the {name}")
        found[name], params[name] = config.model, jax.tree.map(np.asarray, ema_params)
        yield f"{name}: step {taken} of {workdir}"
    # Last, as it takes the longest.
    if count is not None:
        gray_table = count()
        yield "counted the colours of the training images by gray value"
    save_bundle(output, Bundle(found, params, recommended, gray_table), dtype)
    yield f"wrote {output} ({', '.join(found)})"
