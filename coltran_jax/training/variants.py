"""Named variants of a training run, such as the paper's ablations, each a few fields changed."""

import importlib.util
import inspect
import pathlib
import traceback
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from coltran_jax.config import to_dict
from coltran_jax.errors import ConfigError
from coltran_jax.training.config import TrainConfig

# Name -> what it is, in a few words, and the fields that differ from the base, by their dotted names: values, or
# functions of the base.
Variants = Mapping[str, tuple[str, Mapping[str, Any]]]


def load_python(path: pathlib.Path) -> types.ModuleType:
    """A configuration or sweep file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(given: str) -> ConfigDict:
    """Reads the configuration that `train --config` names, FILE or FILE:VARIANT.

    Raises:
        ConfigError: no such file or variant, or an error in the file, with its line.
    """
    name, _, variant = given.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a configuration such as configs/colorizer.py")
    try:
        get_config = load_python(path).get_config
        if variant and not inspect.signature(get_config).parameters:
            raise ConfigError(f"{path} has no variants, got {variant!r}")
        return get_config(*filter(None, [variant]))
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else f"{path}"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None


def as_config_dict(config: TrainConfig) -> ConfigDict:
    """A run's configuration as what `--config` takes. Sequences are tuples, which flags can override."""

    def with_tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(with_tuples(to_dict(config)))


def choose(base: TrainConfig, variants: Variants, name: str) -> ConfigDict:
    """The base with a variant's fields, as what follows the colon of `--config=configs/FILE.py:NAME` asks for.

    Raises:
        ConfigError: no such variant; the message lists those there are.
    """
    if name not in variants:
        known = "; ".join(f"{key}, {description}" for key, (description, _) in variants.items())
        asked = "variants" if name == "help" else f"no variant {name!r}, expected one of"
        raise ConfigError(f"{asked}: {known}")
    config = as_config_dict(base)
    for field, value in variants[name][1].items():
        override(config, field, value(base) if callable(value) else value)
    return config


def override(config: ConfigDict, field: str, value: Any) -> None:
    """Changes one field, by its dotted name.

    Raises:
        ConfigError: no such field, or a value of another type.
    """
    *path, last = field.split(".")
    part = config
    for name in path:
        part = part[name] if isinstance(part, ConfigDict) and name in part else None
    if not isinstance(part, ConfigDict) or last not in part:
        raise ConfigError(f"the configuration has no field {field}")
    try:
        part[last] = value
    except TypeError:
        raise ConfigError(f"{field} is {value!r}, expected {type(part[last]).__name__}") from None
