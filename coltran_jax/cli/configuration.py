"""Command-line options that name a configuration file and override its fields, as those of ml_collections do."""

import argparse
from collections.abc import Sequence

from coltran_jax.errors import ConfigError

_OVERRIDES = ("--config.", "--noconfig.")


def add_config(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """Adds --config; `parse_with_config` parses what follows `--config.`.

    Args:
        parser: to add to.
        purpose: what the configuration is for, where the command does without one, too; "" where it must have one.
    """
    parser.add_argument(
        "--config",
        required=not purpose,
        metavar="FILE[:VARIANT]",
        help=f"{purpose}configuration of a run, such as configs/colorizer.py; --config.FIELD=VALUE overrides a field, "
        "such as --config.optimizer.learning_rate=1e-4",
    )


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line; returns its options, and the words that override fields of the configuration."""
    words, rest = split_overrides(argv)
    args = parser.parse_args(rest)
    if words and getattr(args, "config", None) is None:
        parser.error(f"{words[0]}: this command takes no configuration")
    return args, words


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the words of a command line into those that override fields, and the others."""
    words: list[str] = []
    rest: list[str] = []
    waiting = False
    for word in argv:
        if word.startswith(_OVERRIDES):
            words.append(word)
            waiting = "=" not in word and word.startswith("--config.")
        elif waiting and not word.startswith("--"):
            words.append(word)
            waiting = False
        else:
            rest.append(word)
            waiting = False
    return words, rest


def read_config(given: str, overrides: Sequence[str] = ()):
    """Reads the configuration of a run.

    Args:
        given: FILE or FILE:VARIANT.
        overrides: words of a command line such as "--config.batch_size=8".

    Returns:
        A `coltran_jax.training.config.TrainConfig`.

    Raises:
        ConfigError: no such file, or a field or value that cannot be used.
    """
    from absl import flags
    from ml_collections import config_flags

    from coltran_jax.training import variants
    from coltran_jax.training.config import from_dict

    config = variants.read(given)
    values = flags.FlagValues()
    argv = ["coltran", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        raise ConfigError(f"the configuration has no field {name!r}") from None
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"a value of the wrong type for the configuration: {error}") from None
    return from_dict(config.to_dict())
