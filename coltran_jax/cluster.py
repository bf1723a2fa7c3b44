"""The processes of one run: they join, wait for each other, and notice when one of them is gone."""

import contextlib
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_HEARTBEATS = "coltran_jax/heartbeats"
_ENDED, _FAILED = "ended", "failed"
# JAX notices, too, but does not say which process is gone. It has to come later.
_JAX_GRACE_SECS = 60
_RESUME = "Start all processes again: the run goes on from its last checkpoint"
# JAX aborts a process at once, with a stack trace, when it loses its connection to process 0 (jax 0.10 has no choice in
# this). A child of the process sees its standard input end, and says what has happened.
_EPILOGUE = """
import socket, sys
if not sys.stdin.read():
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
    except OSError:
        print(sys.argv[3], file=sys.stderr)
"""


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
) -> Iterator[None]:
    """Joins the other processes of a run, if there are any, and watches them while the context lasts.

    Without the first three arguments, JAX finds the other processes on Cloud TPU, GKE and Slurm. When a process fails
    or gives no sign of life, the others end with one line on stderr and exit status 1, because no collective operation
    would ever end.

    Args:
        coordinator_address: HOST:PORT of process 0.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0.
        heartbeat_timeout: seconds without a sign of life after which a process counts as gone.

    Raises:
        ValueError: some of the first three arguments are given, but not all.
    """
    import jax

    explicit = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in explicit):
        if any(value is None for value in explicit):
            raise ValueError("--coordinator_address, --num_processes and --process_id go together; give all three")
    elif int(os.environ.get("SLURM_NTASKS", 1)) == 1 and not _on_tpu():
        yield
        return
    jax.distributed.initialize(*explicit, heartbeat_timeout_seconds=heartbeat_timeout + _JAX_GRACE_SECS)
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(jax.process_index(), jax.process_count(), heartbeat_timeout)
    watch.start()
    try:
        yield
    except jax.errors.JaxRuntimeError:
        # A collective operation fails at once where the connection to a lost process breaks.
        watch.await_verdict()
        watch.leave(_FAILED)
        raise
    except BaseException:
        watch.leave(_FAILED)
        raise
    watch.leave(_ENDED)


def _on_tpu() -> bool:
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    return any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))


class _Watch:
    """Writes this process's heartbeats to the coordination service, and reads those of the others."""

    def __init__(self, process: int, num_processes: int, timeout: float):
        # JAX has no public name for the client of its coordination service (jax 0.10).
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._process, self._timeout = process, timeout
        now = time.monotonic()
        # Process -> its last heartbeat, and when it was new.
        self._seen = {other: ("", now) for other in range(num_processes) if other != process}
        self._answered = now
        self._left = threading.Event()
        self._epilogue = _start_epilogue(str(distributed.global_state.coordinator_address)) if process else None
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def leave(self, how: str) -> None:
        """Tells the others that this process has ended or failed."""
        self._left.set()
        self._thread.join()
        self._dismiss_epilogue()
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_HEARTBEATS}/{self._process}", how, allow_overwrite=True)

    def await_verdict(self) -> None:
        """Gives the thread time to notice that a process is gone, in which case it ends this one."""
        self._thread.join(self._timeout + 2 * self._interval)

    @property
    def _interval(self) -> float:
        return min(self._timeout / 5, 10)

    def _run(self) -> None:
        number = 0
        while not self._left.wait(self._interval):
            number += 1
            problem = self._problem(str(number))
            if problem:
                self._dismiss_epilogue()
                _end(f"error: {problem}. {_RESUME}")

    def _dismiss_epilogue(self) -> None:
        if self._epilogue:
            self._epilogue.communicate(b"ended otherwise")

    def _problem(self, beat: str) -> str | None:
        """Writes a heartbeat; returns what is wrong with another process, if anything is."""
        now = time.monotonic()
        try:
            self._client.key_value_set(f"{_HEARTBEATS}/{self._process}", beat, allow_overwrite=True)
            found = {key.rsplit("/", 1)[1]: value for key, value in self._client.key_value_dir_get(_HEARTBEATS)}
            self._answered = time.monotonic()
        except Exception as error:
            logging.debug("heartbeats: %s", error)
            if now - self._answered > self._timeout:
                return f"process 0, which coordinates the others, is gone: no answer for {self._timeout:g} s"
            return None
        for other, (last, when) in self._seen.items():
            value = found.get(str(other), "")
            if value == _FAILED:
                return f"process {other} has failed, as its own output says"
            if value != last:
                self._seen[other] = (value, now)
            elif value != _ENDED and now - when > self._timeout:
                return f"process {other} is gone: no sign of life for {self._timeout:g} s"
        return None


def _start_epilogue(coordinator_address: str) -> subprocess.Popen:
    host, port = coordinator_address.rsplit(":", 1)
    message = f"error: process 0, which coordinates the others, is gone. {_RESUME}"
    command = [sys.executable, "-S", "-E", "-c", _EPILOGUE, host.strip("[]"), port, message]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _end(message: str) -> None:
    """Ends this process at once: a thread of it waits for a process that will not answer."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def wait_for_all(what: str) -> None:
    """Waits until every process of the run is here; `what` is the same in all of them."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
