"""What the command lines for runs have in common: flags, configuration, cluster, errors in one line."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging

from coltran_jax.cli.shared import enable_compilation_cache
from coltran_jax.cluster import join_cluster
from coltran_jax.errors import Interrupted, TrainingError
from coltran_jax.training.config import TrainConfig, from_dict
from coltran_jax.training.variants import read

_FLAGS = flags.FLAGS


def define_cluster_flags() -> None:
    """For clusters that JAX does not find by itself, as it does on Cloud TPU, GKE and Slurm."""
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, where the cluster is not found by itself."
    )
    flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process.", lower_bound=0)


def start_cluster() -> None:
    """Joins the other processes of the run, if there are any."""
    join_cluster(_FLAGS.coordinator_address, _FLAGS.num_processes, _FLAGS.process_id)


def read_config(config: Any) -> TrainConfig:
    """The configuration that --config gives."""
    return from_dict(config.to_dict())


def _check_config_file(argv: Sequence[str]) -> None:
    """Raises ConfigError where the file of --config cannot be read; the flag itself would tell with a traceback."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word.startswith("--config="):
            read(word.partition("=")[2])
        elif word == "--config":
            read(following)


def run_face(main: Callable[[], Any], required: Sequence[str]) -> int:
    """Parses flags and calls `main`; errors of the user's making become one line and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # TensorFlow writes TensorBoard's files, nothing else: no word about how it would compute.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    absl_logging.set_verbosity(absl_logging.ERROR)
    # JAX tells which kinds of devices this machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)
    # Orbax raises the first error of its many writers; asyncio would print the others', a traceback each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(f"{sys.modules['__main__'].__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        _check_config_file(sys.argv)
        rest = _FLAGS(sys.argv)[1:]
        if rest:
            raise flags.Error(f"unexpected {' '.join(rest)}")
        for name in required:
            if _FLAGS[name].value is None:
                raise flags.Error(f"--{name} is missing")
        enable_compilation_cache()
        main()
    except (AttributeError, KeyError) as error:
        if _FLAGS.is_parsed():
            raise
        print(f"error: the configuration has no field {error}", file=sys.stderr)
        return 2
    except TypeError as error:
        if _FLAGS.is_parsed():
            raise
        print(f"error: a value of the wrong type for the configuration: {error}", file=sys.stderr)
        return 2
    except (flags.Error, ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except RuntimeError as error:
        if isinstance(error, Interrupted):
            print(error, file=sys.stderr)
            return 130
        if not isinstance(error, TrainingError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
