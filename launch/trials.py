"""Trials of a sweep: each pair of a variant and a seed has a folder, a command and a state of its own."""

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from coltran_jax import config as configs
from coltran_jax.errors import ConfigError, UsageError
from coltran_jax.files import replacing
from coltran_jax.training import variants
from coltran_jax.training.config import TrainConfig, from_dict, from_saved
from coltran_jax.training.tracking import SWEEP_RECORD

# Where an image folder lies may differ between the machines that a sweep runs on; nothing else may.
_MACHINE = ("data.path",)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of a sweep, which yields these from `get_sweep()`.

    Attributes:
        name: of the variant in folders, tables and figures.
        config: what `train --config` takes, such as "configs/colorizer.py:no_cln".
        overrides: dotted names of fields -> values.
        seeds: one trial each.
    """

    name: str
    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0,)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of a sweep.

    Attributes:
        variant: its name.
        seed: of the run.
        config: what `train --config` takes.
        overrides: dotted names of fields -> numbers, strings and truth values; the seed among them.
        resolved: the whole configuration of the run, plain.
    """

    variant: str
    seed: int
    config: str
    overrides: dict[str, Any]
    resolved: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the trial, and of its folder in the sweep's: VARIANT/seed_N."""
        return f"{self.variant}/seed_{self.seed}"

    @property
    def run(self) -> TrainConfig:
        """The configuration of the run."""
        return from_saved(self.resolved)

    def command(self, workdir: pathlib.Path, python: str = sys.executable) -> list[str]:
        """Returns the command that trains it, in the project's root."""
        fields = [f"--config.{field}={value}" for field, value in self.overrides.items()]
        return [
            python,
            "-m",
            "coltran_jax",
            "train",
            f"--config={self.config}",
            *fields,
            f"--workdir={workdir / self.name}",
        ]

    def finished(self, workdir: pathlib.Path) -> bool:
        """Returns whether its last step was saved; checkpoints appear whole or not at all."""
        return (workdir / self.name / "checkpoints" / str(self.resolved["max_train_steps"])).is_dir()


def plan(sweep: pathlib.Path, overrides: Mapping[str, Any]) -> list[Trial]:
    """The trials of a sweep file, seeds one after another so that a part of a sweep compares all variants.

    Args:
        sweep: a file with `get_sweep()`.
        overrides: of all trials, over those of the file.

    Raises:
        ValueError: no such file, two trials of one name, or a configuration, field or value that cannot be used.
    """
    if not sweep.is_file():
        raise UsageError(f"{sweep}: no such file; expected a sweep such as configs/sweeps/conditioning.py")
    trials: list[Trial] = []
    for variant in variants.load_python(sweep).get_sweep():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", variant.name):
            raise UsageError(f"{sweep}: {variant.name!r} is no name for a variant; use letters, digits, _, . and -")
        for seed in variant.seeds:
            values = {**variant.overrides, **overrides, "seed": seed}
            trials.append(Trial(variant.name, seed, variant.config, values, _resolved(variant, values)))
    names = [trial.name for trial in trials]
    if not names:
        raise UsageError(f"{sweep}: yields no trial")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{sweep}: two trials are called {name}; give each variant a name of its own")
    order = {seed: i for i, seed in enumerate(dict.fromkeys(trial.seed for trial in trials))}
    return sorted(trials, key=lambda trial: order[trial.seed])


def _resolved(variant: Variant, overrides: Mapping[str, Any]) -> dict[str, Any]:
    path = pathlib.Path(variant.config.partition(":")[0])
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file")
        config = variants.read(variant.config)
        for field, value in overrides.items():
            if not isinstance(value, bool | int | float | str):
                raise ConfigError(f"{field} is {value!r}, expected a number, a string or a truth value")
            variants.override(config, field, value)
        return configs.to_dict(from_dict(config.to_dict()))
    except ValueError as error:
        raise UsageError(f"{variant.name}: {error}") from None


def record(trials: Sequence[Trial], workdir: pathlib.Path) -> None:
    """Writes down in the folder what the sweep is.

    Raises:
        UsageError: the folder holds another sweep, or other files, or cannot be written to.
    """
    if (workdir / SWEEP_RECORD).exists():
        known = {trial.name: trial for trial in recorded(workdir)}
        wanted = {trial.name: trial for trial in trials}
        missing = sorted(known.keys() - wanted.keys())
        if missing:
            raise UsageError(f"{workdir} holds another sweep, with a trial {missing[0]}; take another --workdir")
        for name in known.keys() & wanted.keys():
            changed = _differences(known[name].resolved, wanted[name].resolved)
            if changed:
                raise UsageError(f"{workdir} holds another sweep ({name}: {changed[0]}); take another --workdir")
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UsageError(f"{workdir} holds something else than a sweep; take another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with replacing(workdir / SWEEP_RECORD) as temporary:
            temporary.write_text(json.dumps([dataclasses.asdict(trial) for trial in trials], indent=1))
    except OSError as error:
        raise UsageError(f"{workdir}: cannot be written to ({error.strerror})") from None


def recorded(workdir: pathlib.Path) -> list[Trial]:
    """The trials of the sweep in a folder.

    Raises:
        UsageError: there is none.
    """
    try:
        return [Trial(**values) for values in json.loads((workdir / SWEEP_RECORD).read_text())]
    except FileNotFoundError:
        raise UsageError(f"{workdir}: no sweep there; expected the --workdir of launch.sweep") from None
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{workdir / SWEEP_RECORD}: damaged ({error})") from None


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    from coltran_jax.training.checkpoints import differences

    return [line for line in differences(before, after) if not line.startswith(_MACHINE)]
