"""Configurations of the three networks: frozen, validated once, unknown fields refused.

Field names are those of the published release's config files, so that a `config.yaml` saved beside one of its
checkpoints can be read. Defaults are the paper's sizes.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from coltran_jax.errors import ConfigError

ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh")
INITIALIZERS = ("glorot_uniform", "glorot_normal", "zeros")
# Of `coltran_jax.nn.compute.Compute`, which says what they are.
BACKENDS = ("xla", "pallas", "pallas_interpreted")
REMAT = ("none", "products", "block")
# Of `coltran_jax.nn.pretrained_stem`.
PRETRAINED_STEMS = ("efficientnet-lite0",)


def check(condition: bool, field: str, found: Any, expected: str) -> None:
    """Raises ConfigError, which says field, value and what was expected, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{field} is {found!r}, expected {expected}")


def check_choice(config: Any, field: str, choices: tuple) -> None:
    """Raises ConfigError unless the field's value is one of the choices."""
    value = getattr(config, field)
    check(value in choices, field, value, "one of " + ", ".join(repr(c) for c in choices))


def check_at_least(config: Any, least: float, *fields: str) -> None:
    """Raises ConfigError unless each of the fields is at least so much."""
    for field in fields:
        check(getattr(config, field) >= least, field, getattr(config, field), f"{least} or more")


def _check_stack(config: Any) -> None:
    for field in ("hidden_size", "ff_size", "num_heads"):
        check(getattr(config, field) > 0, field, getattr(config, field), "a positive number")
    check(
        config.hidden_size % config.num_heads == 0,
        "hidden_size",
        config.hidden_size,
        f"a multiple of num_heads ({config.num_heads})",
    )


def _check_resolution(resolution: tuple[int, ...]) -> None:
    valid = len(resolution) == 2 and all(side > 0 for side in resolution)
    check(valid, "resolution", resolution, "two positive numbers, rows and columns")


def added(default: Any) -> Any:
    """A field that bundles and checkpoints may lack, because they were written before the field was there.

    Its default is what the network did then.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def added_fields(*classes: type) -> frozenset[str]:
    """Returns the names of the fields of some dataclasses that `added` made."""
    fields = (field for cls in classes for field in dataclasses.fields(cls))
    return frozenset(field.name for field in fields if "added" in field.metadata)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The gray encoder (Section 4.1 of the paper).

    Three fields are not in the paper, and the first two each add something to the gray embedding. `conv_stem` has the
    widths of the levels of a convolutional pyramid; see `coltran_jax.nn.conv_stem`. Empty for none. `pretrained_stem`
    names the classifier whose features a feature pyramid reads; see `coltran_jax.nn.pretrained_stem`. Empty for none.
    `stem_dropout` is the rate of dropout of these features.
    """

    hidden_size: int = 512
    ff_size: int = 512
    num_heads: int = 4
    num_encoder_layers: int = 4
    dropout: float = 0.0
    conv_stem: tuple[int, ...] = added(())
    pretrained_stem: str = added("")
    stem_dropout: float = added(0.0)

    def __post_init__(self) -> None:
        _check_stack(self)
        check(self.num_encoder_layers > 0, "num_encoder_layers", self.num_encoder_layers, "a positive number")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        check(0 <= self.stem_dropout < 1, "stem_dropout", self.stem_dropout, "a number in [0, 1)")
        check(all(width > 1 for width in self.conv_stem), "conv_stem", self.conv_stem, "widths above 1, or none")
        check_choice(self, "pretrained_stem", ("", *PRETRAINED_STEMS))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The outer and the inner decoder and how they are conditioned (Section 4.1 of the paper).

    `cond_att_shift` and the value "scale" of `cond_mlp` are not in the release: they make the paper's scale-only
    ablation.
    """

    hidden_size: int = 512
    ff_size: int = 512
    num_heads: int = 4
    num_outer_layers: int = 2
    num_inner_layers: int = 2
    resolution: tuple[int, ...] = (64, 64)
    dropout: float = 0.0
    skip: bool = True
    cond_att_q: bool = True
    cond_att_k: bool = True
    cond_att_v: bool = True
    cond_att_scale: bool = True
    cond_att_shift: bool = True
    cond_att_act: str = "identity"
    cond_att_init: str = "glorot_uniform"
    cond_mlp: str = "affine"
    cond_mlp_act: str = "identity"
    cond_ln: bool = True
    cond_ln_act: str = "identity"
    cond_ln_init: str = "glorot_uniform"
    cond_ln_seq: str = "sc"
    cond_ln_sp_ave: str = "learnable"

    def __post_init__(self) -> None:
        _check_stack(self)
        _check_resolution(self.resolution)
        for field in ("num_outer_layers", "num_inner_layers"):
            check(getattr(self, field) > 0, field, getattr(self, field), "a positive number")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        for field in ("cond_att_act", "cond_mlp_act", "cond_ln_act"):
            check_choice(self, field, ACTIVATIONS)
        for field in ("cond_att_init", "cond_ln_init"):
            check_choice(self, field, INITIALIZERS)
        check_choice(self, "cond_mlp", ("affine", "shift", "scale", ""))
        check_choice(self, "cond_ln_seq", ("sc", "cs"))
        check_choice(self, "cond_ln_sp_ave", ("learnable", "mean"))
        if self.cond_att_q or self.cond_att_k or self.cond_att_v:
            check(
                self.cond_att_scale or self.cond_att_shift,
                "cond_att_scale and cond_att_shift",
                (False, False),
                "at least one of them where cond_att_q, cond_att_k or cond_att_v is set",
            )


@dataclasses.dataclass(frozen=True)
class ColorizerConfig:
    """The autoregressive colorizer: gray 64x64 -> coarse colours 64x64 (Section 4.1 of the paper)."""

    hidden_size: int = 512
    resolution: tuple[int, ...] = (64, 64)
    stage: str = "encoder_decoder"
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self) -> None:
        _check_resolution(self.resolution)
        check_choice(self, "stage", ("encoder_decoder", "decoder"))
        for part, config in (("encoder", self.encoder), ("decoder", self.decoder)):
            check(
                config.hidden_size == self.hidden_size,
                f"{part}.hidden_size",
                config.hidden_size,
                f"the colorizer's hidden_size ({self.hidden_size})",
            )
        check(
            self.decoder.resolution == self.resolution,
            "decoder.resolution",
            self.decoder.resolution,
            f"the colorizer's resolution {self.resolution}",
        )


@dataclasses.dataclass(frozen=True)
class ColorUpsamplerConfig:
    """The color upsampler: gray and coarse colours 64x64 -> RGB 64x64.

    `use_gray` is not in the release: without it upsamplers see the coarser image alone, an ablation of the paper.
    """

    hidden_size: int = 512
    ff_size: int = 512
    num_heads: int = 4
    num_encoder_layers: int = 4
    resolution: tuple[int, ...] = (64, 64)
    dropout: float = 0.0
    use_gray: bool = added(True)

    def __post_init__(self) -> None:
        _check_stack(self)
        _check_resolution(self.resolution)
        check(self.num_encoder_layers > 0, "num_encoder_layers", self.num_encoder_layers, "a positive number")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")


@dataclasses.dataclass(frozen=True)
class SpatialUpsamplerConfig(ColorUpsamplerConfig):
    """The spatial upsampler: gray 256x256 and RGB 64x64 -> RGB 256x256."""

    num_encoder_layers: int = 3
    resolution: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class JointUpsamplerConfig(ColorUpsamplerConfig):
    """One upsampler for both steps, an ablation of the paper: gray 256x256 and coarse colours 64x64 -> RGB 256x256."""

    num_encoder_layers: int = 3
    resolution: tuple[int, ...] = (256, 256)


NetworkConfig = ColorizerConfig | ColorUpsamplerConfig | SpatialUpsamplerConfig | JointUpsamplerConfig

ADDED_FIELDS = added_fields(EncoderConfig, DecoderConfig, *typing.get_args(NetworkConfig))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists, strings and numbers, fit for JSON and `ConfigDict`."""
    plain = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def at_resolution(config: NetworkConfig, resolution: tuple[int, ...]) -> NetworkConfig:
    """The same network at another resolution (rows, columns)."""
    return with_fields(config, resolution=resolution)


def without_dropout(config: Any) -> Any:
    """The same network without dropout, which no parameter depends on."""
    return with_fields(config, dropout=0.0, stem_dropout=0.0)


def with_fields(config: Any, **values: Any) -> Any:
    """The same configuration with other values of all fields of these names, wherever it has them."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = with_fields(value, **values)
        elif field.name in values:
            changed[field.name] = values[field.name]
    return dataclasses.replace(config, **changed)


def from_dict(
    cls: type,
    values: Mapping[str, Any],
    *,
    optional: frozenset[str] = frozenset(),
    unions: Mapping[str, type] = types.MappingProxyType({}),
    where: str = "",
) -> Any:
    """The inverse of `to_dict`: every field must be there, and no other.

    Args:
        cls: the dataclass to build.
        values: the fields; nested mappings for nested configurations.
        optional: names of fields that may be missing, at any depth; they take their defaults.
        unions: for fields that may be one of several dataclasses, which it is here.
        where: dotted path of `values` in its file, for messages.

    Raises:
        ConfigError: an unknown or missing field, a value of the wrong type, or an impossible combination.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__} is {values!r}, expected a mapping of fields")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        names = ", ".join(prefix + str(name) for name in unknown)
        raise ConfigError(f"unknown field {names}; {cls.__name__} has: {', '.join(hints)}")
    missing = [prefix + name for name in hints if name not in values and name not in optional]
    if missing:
        raise ConfigError(f"missing field {', '.join(missing)} of {cls.__name__}")
    kwargs = {}
    for name, value in values.items():
        kwargs[name] = _convert(unions.get(name, hints[name]), value, optional, prefix + name)
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, optional: frozenset[str], where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, optional=optional, where=where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} is {value!r}, expected a list of numbers")
        return tuple(_convert(int, item, optional, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}, expected {hint.__name__}")
    return value
