"""The device that a benchmark ran on, and the most memory that it took."""

import platform
import resource
import sys

import jax

from coltran_jax.stages import usable_cores


def describe_device() -> str:
    """The device's name, with the number of cores for a CPU."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {len(usable_cores())} cores, {platform.machine()}"


def peak_memory_gib() -> float:
    """Returns the peak memory of the device, or of this process on a CPU, in GiB."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
