"""Processes of one run: found, joined, and waited for."""

import os
import pathlib


def join_cluster(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any: as said, or as JAX finds them on Cloud TPU, GKE and Slurm.

    Raises:
        ValueError: some of the three are given, not all.
    """
    import jax

    explicit = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in explicit):
        if any(value is None for value in explicit):
            raise ValueError("--coordinator_address, --num_processes and --process_id go together; give all three")
        jax.distributed.initialize(*explicit)
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or _on_tpu():
        jax.distributed.initialize()


def _on_tpu() -> bool:
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    return any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))


def wait_for_all(what: str) -> None:
    """Until every process of the cluster is here; `what` is the same in all of them."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
