"""Checkpoints of the published TensorFlow release -> parameters.

Reading the files takes TensorFlow, imported only then. The mapping from names to parameters works on a plain dict of
arrays.

Names carry numbers that TensorFlow counted up while it built the network ("dense_9", "layer_normalization_3"). Where
they start depends on what else the process had built, so only their order is used: a canonical name has each such
number replaced by its rank among its siblings ("dense#8").
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import yaml
from flax import traverse_util

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, save_bundle
from coltran_jax.errors import CheckpointError, ConfigError, one_line
from coltran_jax.files import why_no_folder
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.networks.registry import NETWORKS, parameter_shapes
from coltran_jax.nn.parameters import Parameters

# Names of the networks in the release's config files, which are also the scopes of their variables.
_NAMES = {"coltran_core": "colorizer", "color_upsampler": "color_upsampler", "spatial_upsampler": "spatial_upsampler"}

# Fields of ours that the release's config files do not have, and those that matter in training alone.
_OPTIONAL_FIELDS = configs.ADDED_FIELDS | {"cond_att_shift", "cond_att_init", "cond_ln_init", "dropout"}

_EMA = "/ExponentialMovingAverage"
_NUMBERED = re.compile(
    r"(dense|layer_normalization|conditional_layer_norm|self_attention_nd|position_embed|col_tran_core|"
    r"color_upsampler|spatial_upsampler|gray_scale_encoder|factorized_attention|outer_decoder|inner_decoder)(?:_(\d+))?"
)
_OPTIMIZER_STATE = re.compile(r"(^|/)(optimizer|save_counter|global_step|iter|step)(/|$)|\.OPTIMIZER_SLOT")
_FROZEN = re.compile(r"conditional_layer_norm(_\d+)?/normalize/(gamma|beta)$")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Names the variables that a parameter is made of; their arrays are stacked along axis 1 if `stacked`."""

    parameter: str
    names: tuple[str, ...]
    stacked: bool = False

    def split(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """The release's arrays of a parameter of ours, up to axes of length one."""
        parts = np.moveaxis(value, 1, 0) if self.stacked else [value]
        return dict(zip(self.names, parts, strict=True))

    def shapes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of the release's arrays of a parameter of ours."""
        return shape[:1] + shape[2:] if self.stacked else shape


def _dense(parameter: str, name: str, bias: bool = True) -> Iterator[_Source]:
    yield _Source(f"{parameter}/kernel", (f"{name}/kernel",))
    if bias:
        yield _Source(f"{parameter}/bias", (f"{name}/bias",))


def _position(parameter: str, scope: str) -> Iterator[_Source]:
    yield _Source(f"{parameter}/rows", (f"{scope}/position_embed#0/position_embedding_0",))
    yield _Source(f"{parameter}/columns", (f"{scope}/position_embed#0/position_embedding_1",))


def _attention(parameter: str, name: str, axis: str, conditional: str = "") -> Iterator[_Source]:
    yield _Source(f"{parameter}/qkv", tuple(f"{name}/{z}/kernel" for z in "qkv"), stacked=True)
    yield _Source(f"{parameter}/output", (f"{name}/output/kernel",))
    yield _Source(f"{parameter}/relative_bias", (f"{name}/relative_attention_bias_{1 if axis == 'row' else 0}",))
    if conditional:
        yield _Source(f"{parameter}/context", tuple(f"{name}/cond_{z}/kernel" for z in conditional), stacked=True)


def _mlp(parameter: str, number: int) -> Iterator[_Source]:
    yield from _dense(f"{parameter}/hidden", f"dense#{2 * number}")
    yield from _dense(f"{parameter}/output", f"dense#{2 * number + 1}")


def _norm(parameter: str, scope: str, number: int, switches: configs.DecoderConfig | None = None) -> Iterator[_Source]:
    if switches is None or not switches.cond_ln:
        yield _Source(f"{parameter}/scale", (f"{scope}/layer_normalization#{number}/gamma",))
        yield _Source(f"{parameter}/bias", (f"{scope}/layer_normalization#{number}/beta",))
        return
    name = f"{scope}/conditional_layer_norm#{number}"
    if switches.cond_ln_sp_ave == "learnable":
        yield _Source(f"{parameter}/spatial_average", (f"{name}/spatial_average",))
    yield from _dense(f"{parameter}/projection", f"{name}/dense#0")


def _stack(parameter: str, scope: str, num_layers: int) -> Iterator[_Source]:
    yield from _position(f"{parameter}/position", scope)
    for block in range(2 * num_layers):
        name = f"{parameter}/blocks_{block}"
        axis = ("row", "column")[block % 2]
        yield from _attention(f"{name}/attention", f"{scope}/self_attention_nd#{block}", axis)
        yield from _mlp(f"{name}/mlp", block)
        yield from _norm(f"{name}/attention_norm", scope, 2 * block)
        yield from _norm(f"{name}/mlp_norm", scope, 2 * block + 1)


def _decoder_block(
    parameter: str,
    scope: str,
    axis: str,
    attention: str,
    cond_mlp: str,
    norm: int,
    mlp: int,
    switches: configs.DecoderConfig,
) -> Iterator[_Source]:
    conditional = "".join(z for z in "qkv" if getattr(switches, f"cond_att_{z}"))
    yield from _attention(f"{parameter}/attention", f"{scope}/{attention}", axis, conditional)
    yield from _norm(f"{parameter}/attention_norm", scope, norm, switches)
    yield from _mlp(f"{parameter}/mlp", mlp)
    if switches.cond_mlp:
        yield from _dense(f"{parameter}/mlp/context", f"{scope}/{cond_mlp}")
    yield from _norm(f"{parameter}/mlp_norm", scope, norm + 1, switches)


def _colorizer(config: configs.ColorizerConfig) -> Iterator[_Source]:
    root, switches = "col_tran_core#0", config.decoder
    encoder = f"{root}/gray_scale_encoder#0"
    yield from _dense("encoder/embedding", f"{encoder}/dense#0")
    yield from _stack("encoder/stack", f"{encoder}/factorized_attention#0", config.encoder.num_encoder_layers)
    if config.stage == "encoder_decoder":
        yield from _dense("parallel_head", f"{root}/parallel_logits", bias=False)
    yield from _dense("pixel_embedding", f"{root}/dense#0", bias=False)
    mlp = 2 * config.encoder.num_encoder_layers

    scope = f"{root}/outer_decoder#0"
    yield from _position("outer_decoder/position", scope)
    for layer in range(switches.num_outer_layers):
        for half, axis, attention, cond_mlp in (
            ("row", "row", "unmask_row", "r"),
            ("column", "column", "mask_col", "c"),
        ):
            second = half == "column"
            yield from _decoder_block(
                f"outer_decoder/{half}_blocks_{layer}",
                scope,
                axis,
                f"{attention}_att_{layer}",
                f"{switches.cond_mlp}_{cond_mlp}_{layer}",
                norm=4 * layer + 2 * second,
                mlp=mlp + 2 * layer + second,
                switches=switches,
            )
    mlp += 2 * switches.num_outer_layers

    scope = f"{root}/inner_decoder#0"
    yield from _position("inner_decoder/position", scope)
    for layer in range(switches.num_inner_layers):
        yield from _decoder_block(
            f"inner_decoder/blocks_{layer}",
            scope,
            "row",
            f"mask_row_att_{layer}",
            f"{switches.cond_mlp}_c_{layer}",
            norm=2 * layer,
            mlp=mlp + layer,
            switches=switches,
        )
    yield from _norm("final_norm", root, 0)
    yield from _dense("head", f"{root}/auto_logits")


def _upsampler(config: configs.ColorUpsamplerConfig) -> Iterator[_Source]:
    spatial = isinstance(config, configs.SpatialUpsamplerConfig)
    root = "spatial_upsampler#0" if spatial else "color_upsampler#0"
    yield from _dense("channel_embedding", f"{root}/dense#0", bias=False)
    yield from _dense("gray_embedding", f"{root}/dense#1", bias=False)
    yield from _dense("projection", f"{root}/dense#2")
    yield from _stack("stack", f"{root}/factorized_attention#0", config.num_encoder_layers)
    yield from _dense("head", f"{root}/dense#3")


def _sources(config: configs.NetworkConfig) -> list[_Source]:
    return list(_colorizer(config) if isinstance(config, configs.ColorizerConfig) else _upsampler(config))


def canonical_names(names: Sequence[str]) -> dict[str, str]:
    """Each name -> its canonical name: without ":0", automatic numbers replaced by ranks among siblings."""
    numbers: dict[tuple[str, str], set[int]] = {}
    paths = {name: name.removesuffix(":0").split("/") for name in names}
    for path in paths.values():
        for depth, part in enumerate(path):
            if match := _NUMBERED.fullmatch(part):
                numbers.setdefault(("/".join(path[:depth]), match[1]), set()).add(int(match[2] or 0))
    ranks = {key: {number: rank for rank, number in enumerate(sorted(found))} for key, found in numbers.items()}

    def canonical(path: list[str]) -> str:
        parts = []
        for depth, part in enumerate(path):
            if match := _NUMBERED.fullmatch(part):
                rank = ranks["/".join(path[:depth]), match[1]][int(match[2] or 0)]
                part = f"{match[1]}#{rank}"
            parts.append(part)
        return "/".join(parts)

    return {name: canonical(path) for name, path in paths.items()}


def variables_from_parameters(config: configs.NetworkConfig, params: Parameters) -> dict[str, np.ndarray]:
    """Canonical name -> array, shaped as the release's up to axes of length one: the inverse of the import."""
    flat = traverse_util.flatten_dict(params, sep="/")
    variables = {}
    for source in _sources(config):
        variables.update(source.split(np.asarray(flat[source.parameter])))
    return variables


def parameters_from_variables(
    config: configs.NetworkConfig, variables: Mapping[str, np.ndarray], *, ema: bool = True
) -> Parameters:
    """The release's variables as parameters of ours.

    Args:
        config: the network's shape.
        variables: name -> array, named as in the release's checkpoints ("dense_9/kernel:0").
        ema: take "dense_9/kernel/ExponentialMovingAverage:0" and not the raw weight, as sampling must.

    Returns:
        Parameters, float32.

    Raises:
        CheckpointError: listing every parameter without a variable, every variable that is neither used nor optimizer
            state nor a raw weight with an EMA, and every variable of the wrong shape.
    """
    problems, chosen = [], {}
    names = {name.removesuffix(":0") for name in variables}
    for name, value in variables.items():
        plain = name.removesuffix(":0")
        if _OPTIMIZER_STATE.search(plain):
            continue
        if _FROZEN.search(plain):
            frozen = 1 if plain.endswith("gamma") else 0
            if not np.all(value == frozen):
                problems.append(f"{plain} is not all {frozen}, as the plain norm in a conditional one must be")
        elif ema and plain.endswith(_EMA):
            chosen[plain.removesuffix(_EMA)] = value
        elif not ema or plain + _EMA not in names:
            if ema:
                problems.append(f"{plain} has no EMA")
            else:
                chosen[plain] = value
    original = {new: old for old, new in canonical_names(list(chosen)).items()}
    shapes = traverse_util.flatten_dict(parameter_shapes(config), sep="/")
    flat = {}
    for source in _sources(config):
        expected = source.shapes(shapes[source.parameter].shape)
        parts = []
        for name in source.names:
            old = original.pop(name, None)
            if old is None:
                problems.append(f"missing {_readable(name)} for {source.parameter}")
                continue
            value = np.asarray(chosen[old], np.float32)
            if _without_ones(value.shape) != _without_ones(expected):
                problems.append(f"{old} is {value.shape}, expected {expected} for {source.parameter}")
                continue
            parts.append(value.reshape(expected))
        if len(parts) == len(source.names):
            flat[source.parameter] = np.stack(parts, axis=1) if source.stacked else parts[0]
    problems += [f"left over {old}" for old in sorted(original.values())]
    if problems:
        raise CheckpointError(f"variables do not fit the configuration: {'; '.join(problems)}")
    return traverse_util.unflatten_dict(flat, sep="/")


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _readable(name: str) -> str:
    """Returns a name for messages: "dense#8/kernel" -> "dense (number 9 in order)/kernel"."""
    return re.sub(r"#(\d+)", lambda match: f" (number {int(match[1]) + 1} in order)", name)


def read_config(path: pathlib.Path) -> tuple[str, configs.NetworkConfig]:
    """The network that a config file of the release describes.

    Args:
        path: YAML or JSON, either the whole file or its part `model`.

    Returns:
        The network's name, and its configuration.

    Raises:
        CheckpointError: unreadable, or not the configuration of a network.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read as YAML ({one_line(error)})") from None
    model = values.get("model", values) if isinstance(values, Mapping) else None
    if not isinstance(model, Mapping) or model.get("name") not in _NAMES:
        found = repr(model.get("name")) if isinstance(model, Mapping) else "missing"
        raise CheckpointError(f"{path}: model.name is {found[:80]}, expected one of {', '.join(_NAMES)}")
    name = _NAMES[model["name"]]
    fields = {key: value for key, value in model.items() if key != "name"}
    try:
        return name, configs.from_dict(NETWORKS[name].config_class, fields, optional=_OPTIONAL_FIELDS, where="model")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_checkpoint(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All variables of the newest checkpoint in a folder, by name.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or no TensorFlow to read it with.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: {why_no_folder(folder)}; expected one with checkpoint, model-N.index and model-N.data-*"
        )
    try:
        import tensorflow as tf
    except ImportError:
        raise CheckpointError(
            "reading a TensorFlow checkpoint takes TensorFlow: pip install 'coltran_jax[reference]'"
        ) from None
    prefix = tf.train.latest_checkpoint(str(folder)) or _moved_checkpoint(folder)
    if prefix is None:
        raise CheckpointError(f"{folder}: no checkpoint there; expected checkpoint, model-N.index and model-N.data-*")
    try:
        reader = tf.train.load_checkpoint(prefix)
        keys = [key for key in reader.get_variable_to_shape_map() if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]
        return {_unescape(key): reader.get_tensor(key) for key in keys}
    # What TensorFlow raises on a damaged file depends on where the damage is.
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"{prefix}: damaged checkpoint ({str(error).splitlines()[0]})") from None


def _moved_checkpoint(folder: pathlib.Path) -> str | None:
    """The checkpoint beside a `checkpoint` file that names it by its path on another machine."""
    import tensorflow as tf

    state = tf.train.get_checkpoint_state(str(folder))
    if state is None:
        return None
    named = pathlib.PurePosixPath(state.model_checkpoint_path)
    beside = folder / named.name
    if not beside.with_name(f"{beside.name}.index").exists():
        return None
    logging.warning("%s names %s, which is not there; %s beside it is read", folder / "checkpoint", named, beside.name)
    return str(beside)


def _unescape(key: str) -> str:
    """A key of an object-based checkpoint -> the variable's name; optimizer slots keep their marker."""
    name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    return name.replace(".S", "/").replace("..", ".") if ".OPTIMIZER_SLOT" not in name else name


def checkpoint_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder itself if it has a checkpoint, else those of its sub-folders named after networks.

    Raises:
        CheckpointError: neither.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: {why_no_folder(folder)}")
    if (folder / "checkpoint").exists():
        return [folder]
    inside = [folder / name for name in PUBLISHED if (folder / name).is_dir()]
    for network in inside:
        if not (network / "checkpoint").exists():
            raise CheckpointError(f"{network}: no file named checkpoint there; add it, or remove the folder")
    if not inside:
        raise CheckpointError(
            f"{folder}: no checkpoint there; expected a file named checkpoint, or folders "
            f"{', '.join(PUBLISHED)} with one each"
        )
    return inside


def load_reference(folder: pathlib.Path, config_path: pathlib.Path | None = None):
    """One network from a checkpoint folder of the release.

    Args:
        folder: with a checkpoint, and config.yaml unless `config_path` is given.
        config_path: the configuration to use.

    Returns:
        The network's name, its configuration, its EMA parameters.

    Raises:
        CheckpointError: a missing or unusable configuration or checkpoint, or one that does not fit the other.
    """
    path = config_path or folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; give the network's configuration with --config")
    name, config = read_config(path)
    variables = read_checkpoint(folder)
    try:
        return name, config, parameters_from_variables(config, variables)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def convert(
    folders: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    config_path: pathlib.Path | None = None,
    overwrite: bool = False,
) -> Iterator[str]:
    """Checkpoint folders of the release -> one bundle.

    Args:
        folders: each a checkpoint folder, or one that holds the networks' checkpoint folders.
        output: the bundle to write.
        config_path: configuration for a single checkpoint folder.
        overwrite: replace `output` if it exists.

    Yields:
        One line a network, and one for the bundle.

    Raises:
        CheckpointError: see `load_reference`; or the same network twice, or an output that exists.
        OSError: the output cannot be written.
    """
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; give --overwrite to replace it")
    if not output.parent.is_dir():
        raise CheckpointError(f"{output.parent}: {why_no_folder(output.parent)} to write the bundle to")
    inside = [path for folder in folders for path in checkpoint_folders(folder)]
    if config_path is not None and len(inside) != 1:
        raise CheckpointError(f"--config is for one network, found {len(inside)}: {', '.join(map(str, inside))}")
    found, params = {}, {}
    for folder in inside:
        name, config, loaded = load_reference(folder, config_path)
        if name in found:
            raise CheckpointError(f"{folder}: a second {name}; expected each network once")
        found[name], params[name] = config, loaded
        count = sum(array.size for array in traverse_util.flatten_dict(loaded).values())
        yield f"{name}: {count:,} parameters from {folder}"
    save_bundle(output, Bundle(found, params))
    yield f"wrote {output} ({', '.join(found)})"
