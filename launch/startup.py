"""The time from the command to its first image, and where it goes: `launch.benchmark startup`.

As a program, `python -m launch.startup ARGUMENTS`, it runs `colorize` with these arguments and prints what JAX reports.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from coltran_jax.cli.shared import use_huge_pages
from coltran_jax.images.encoding import write_image
from coltran_jax.pipeline import MINI

# Events of `jax.monitoring`, by what they are called here.
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_BEGUN = "COLTRAN_STARTUP_BEGUN"


def benchmark_startup(args: argparse.Namespace) -> dict[str, Any]:
    """Times `colorize` from its start to its end for one image, each run in a process of its own.

    The first run, "cold", compiles its programs; those after it, "warm", find them in the cache, and the fastest
    counts. Tracing and lowering are JAX's, compiling is XLA's, or the reading of what is in the cache; "other" is all
    the rest: weights and image read, networks run, image written.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_image(folder / "image.png", np.zeros((256, 256, 1), np.uint8))
        command = [sys.executable, "-m", "launch.startup", folder / "image.png", "--output", folder / "out"]
        command += ["--weights", args.weights or MINI, "--overwrite"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        cold, *warm = [_timed(command, environment) for _ in range(1 + args.repeats)]
    fastest = min(warm, key=lambda run: run["secs"])
    report = {"benchmark": "startup"}
    for state, run in (("cold", cold), ("warm", fastest)):
        report |= {f"{state}_{name}": value for name, value in run.items()}
    return report


def _timed(command: list[Any], environment: dict[str, str]) -> dict[str, Any]:
    begun = time.time()
    done = subprocess.run(command, check=True, capture_output=True, env={**environment, _BEGUN: str(begun)}, text=True)
    secs = time.time() - begun
    run = json.loads(done.stdout.splitlines()[-1])
    told = sum(run[f"{name}_secs"] for name in ("importing", *_EVENTS.values()))
    return {"secs": secs, **run, "other_secs": secs - told}


def _colorize(argv: list[str]) -> int:
    import jax

    # The command imports it later, so that its --help is fast.
    import coltran_jax.colorize_files  # noqa: F401
    from coltran_jax.cli import colorize

    totals: collections.Counter[str] = collections.Counter(importing_secs=time.time() - float(os.environ[_BEGUN]))

    def add(event: str, secs: float, **kwargs: Any) -> None:
        if event in _EVENTS:
            totals[f"{_EVENTS[event]}_secs"] += secs
            totals["programs"] += _EVENTS[event] == "compiling"

    jax.monitoring.register_event_duration_secs_listener(add)
    status = colorize.main(argv)
    print(json.dumps(totals))
    return status


if __name__ == "__main__":
    # As the command does.
    use_huge_pages()
    sys.exit(_colorize(sys.argv[1:]))
