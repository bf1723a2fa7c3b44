"""Bundles: the weights of one or more networks in one safetensors file, with their configurations as metadata."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from coltran_jax import config as configs
from coltran_jax.errors import WeightsError
from coltran_jax.files import replacing
from coltran_jax.networks.registry import NETWORKS, parameter_shapes
from coltran_jax.nn.parameters import Parameters
from coltran_jax.sampling.content import TABLE_SHAPE
from coltran_jax.sampling.options import RECOMMENDED, SamplingOptions

_METADATA_KEY = "coltran_jax"
_VERSION = 1
_GRAY_TABLE = "gray_table"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Networks by name ("colorizer", "color_upsampler", "spatial_upsampler").

    Attributes:
        configs: configurations.
        params: parameters, float32.
        recommended: sampling options that suit these weights, some of `coltran_jax.sampling.options.RECOMMENDED`.
        gray_table: (256, 512) float32, natural logarithms of the probabilities of coarse colours by gray value, for
            guidance; see `coltran_jax.sampling.content`. None for none.
    """

    configs: Mapping[str, configs.NetworkConfig]
    params: Mapping[str, Parameters]
    recommended: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gray_table: np.ndarray | None = None


def check_parameters(name: str, config: configs.NetworkConfig, params: Mapping[str, Any]) -> None:
    """Raises WeightsError, listing every difference, unless `params` has just the shapes that `config` asks for."""
    expected = traverse_util.flatten_dict(parameter_shapes(config), sep="/")
    found = traverse_util.flatten_dict(params, sep="/")
    problems = [f"missing {key}" for key in sorted(expected.keys() - found.keys())]
    problems += [f"left over {key}" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if expected[key].shape != found[key].shape:
            problems.append(f"{key} is {tuple(found[key].shape)}, expected {expected[key].shape}")
    if problems:
        raise WeightsError(f"the weights of {name} do not fit its configuration: {'; '.join(problems)}")


def save_bundle(path: str | pathlib.Path, bundle: Bundle, dtype: jnp.dtype = jnp.float32) -> None:
    """Writes a bundle, by rename.

    Args:
        path: the file.
        bundle: what to write.
        dtype: to store parameters in; `load_bundle` gives float32 in any case.

    Raises:
        WeightsError: parameters that do not fit their configuration, or guidance that cannot be had.
        OSError: the file cannot be written.
    """
    for name, config in bundle.configs.items():
        check_parameters(name, config, bundle.params[name])
    check_guidance(bundle)
    tensors = traverse_util.flatten_dict(dict(bundle.params), sep="/")
    if bundle.gray_table is not None:
        tensors[_GRAY_TABLE] = bundle.gray_table
    description = {
        "version": _VERSION,
        "networks": {name: configs.to_dict(config) for name, config in bundle.configs.items()},
    }
    if bundle.recommended:
        description["recommended"] = dict(bundle.recommended)
    arrays = {key: np.asarray(value).astype(dtype) for key, value in tensors.items()}
    check_tensors(arrays)
    description["checksum"] = checksum(arrays)
    with replacing(pathlib.Path(path)) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={_METADATA_KEY: json.dumps(description)})


def load_bundle(path: str | pathlib.Path, required: Collection[str] = ()) -> Bundle:
    """Reads a bundle, strictly: every parameter is there, none is left over, all have the right shape.

    Args:
        path: a file that `save_bundle` wrote.
        required: names of networks that must be in it.

    Returns:
        The bundle, parameters in float32, of NumPy.

    Raises:
        WeightsError: not a bundle, a damaged one, one that lacks a network, or weights that do not fit.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a bundle of weights"
        )
    try:
        # Not as JAX's arrays, for each of which a program would be compiled.
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged, or not a bundle of weights ({error})") from None
    try:
        description = json.loads(metadata[_METADATA_KEY])
        version, networks = description["version"], description["networks"]
    except (KeyError, TypeError, ValueError):
        raise WeightsError(
            f"{path}: a safetensors file without a coltran_jax configuration; expected what convert or export writes"
        ) from None
    if version != _VERSION:
        raise WeightsError(f"{path}: bundle version {version}, expected {_VERSION}; a newer coltran_jax may read it")
    recommended, expected = description.get("recommended", {}), description.get("checksum")
    try:
        if not isinstance(networks, Mapping):
            raise WeightsError(f"networks are {networks!r}, expected configurations by name")
        missing = [name for name in required if name not in networks]
        if missing:
            raise WeightsError(f"has {', '.join(sorted(networks))}, lacks {', '.join(missing)}")
        check_tensors(tensors)
        # Bundles that were written before there were checksums have none.
        if expected is not None and expected != checksum(tensors):
            raise WeightsError("the weights are not those that were written (checksum); copy the file again")
        loaded = {
            name: configs.from_dict(_config_class(name), values, optional=configs.ADDED_FIELDS)
            for name, values in networks.items()
        }
        values = {key: value.astype(np.float32) for key, value in tensors.items()}
        gray_table = values.pop(_GRAY_TABLE, None)
        params = traverse_util.unflatten_dict({tuple(key.split("/")): value for key, value in values.items()})
        left_over = sorted(params.keys() - loaded.keys())
        if left_over:
            raise WeightsError(f"weights without a configuration: {', '.join(left_over)}")
        for name, config in loaded.items():
            check_size(name, config, params.get(name, {}))
            check_parameters(name, config, params.get(name, {}))
        check_recommended(recommended)
        bundle = Bundle(loaded, params, recommended, gray_table)
        check_guidance(bundle)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return bundle


def check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError unless all are finite floating-point numbers whose names make a tree."""
    for key, value in tensors.items():
        above = key.rpartition("/")[0]
        while above:
            if above in tensors:
                raise WeightsError(f"{above} is a tensor and has {key} below it")
            above = above.rpartition("/")[0]
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise WeightsError(f"{key} is {value.dtype}, expected floating-point numbers")
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise WeightsError(f"{key} has values that are not finite")


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names and values, as they are stored."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = np.asarray(tensors[key])
        digest.update(f"{key} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def check_size(name: str, config: configs.NetworkConfig, params: Mapping[str, Any]) -> None:
    """Raises WeightsError for sizes that no tensor has, before a network of such a size is built."""
    leaves = jax.tree.leaves(params)
    largest = max([len(leaves), *(size for leaf in leaves for size in leaf.shape)])
    for field, value in _numbers(configs.to_dict(config), name):
        if value > largest:
            raise WeightsError(f"{field} is {value}, but no dimension of the weights is above {largest}")


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Numbers in nested dicts and lists, with the names of their fields."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


def check_recommended(recommended: Any) -> None:
    """Raises WeightsError unless `recommended` is a mapping of sampling options that a bundle may recommend."""
    if not isinstance(recommended, Mapping) or not set(recommended) <= set(RECOMMENDED):
        expected = f"{', '.join(RECOMMENDED[:-1])} and {RECOMMENDED[-1]}"
        raise WeightsError(f"recommended sampling options are {recommended!r}, expected {expected} alone")
    try:
        SamplingOptions(**recommended)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"recommended sampling options: {error}") from None


def check_guidance(bundle: Bundle) -> None:
    """Raises WeightsError if a bundle has a wrong table of colours by gray value, or recommends guidance without."""
    if bundle.gray_table is not None and bundle.gray_table.shape != TABLE_SHAPE:
        raise WeightsError(f"{_GRAY_TABLE} is {bundle.gray_table.shape}, expected {TABLE_SHAPE}")
    if bundle.recommended.get("guidance"):
        why = why_no_guidance(bundle)
        if why:
            raise WeightsError(f"guidance is recommended, but there is {why}")


def why_no_guidance(bundle: Bundle) -> str:
    """Returns what is missing for guidance by content, as "no ..."; "" where nothing is."""
    if bundle.gray_table is None:
        return "no table of colours by gray value, which export --config=CONFIG counts"
    colorizer = bundle.configs.get("colorizer")
    if colorizer is None or colorizer.stage != "encoder_decoder":
        return "no colorizer with a parallel head"
    return ""


def _config_class(name: str) -> type:
    if name not in NETWORKS:
        raise WeightsError(f"unknown network {name!r}, expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name].config_class
