"""Command line: trains a network, on one device or on every host of a pod slice."""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from coltran_jax.cli.runs import define_cluster_flags, read_config, run_face, start_cluster
from coltran_jax.cli.shared import use_huge_pages

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration of the run, such as configs/colorizer.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and reports; a run there is resumed.")
_INIT_FROM = flags.DEFINE_string("init_from", None, "Bundle whose weights a new run starts from.")
_PROFILE_STEP = flags.DEFINE_integer("profile_step", None, "Profile five steps from this one on.", lower_bound=0)
_RESTORE_STEP = flags.DEFINE_integer(
    "restore_step", None, "Go on from this checkpoint instead of the newest; those after it are removed.", lower_bound=0
)
define_cluster_flags()


def main() -> None:
    """Trains as the flags say."""
    config = read_config(_CONFIG.value)
    start_cluster()
    from coltran_jax.training.loop import train

    init_from = _INIT_FROM.value and pathlib.Path(_INIT_FROM.value)
    train(
        config,
        pathlib.Path(_WORKDIR.value),
        init_from=init_from,
        profile_step=_PROFILE_STEP.value,
        restore_step=_RESTORE_STEP.value,
    )


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(run_face(main, required=("config", "workdir")))
