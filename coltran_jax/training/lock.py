"""One run a folder: a second run on the same working directory is refused while the first one lives."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

from coltran_jax.errors import CheckpointError

NAME = "lock.json"
# A run on another host is taken for dead when its lock has not been renewed for so long.
_RENEW_SECS = 15
_STALE_SECS = 120


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a working directory, a file with host, process and start, which is renewed meanwhile.

    The lock of a process that has ended, or of another host that renews it no longer, is taken over.

    Raises:
        CheckpointError: another run holds it.
    """
    path = workdir / NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        while not _created(path):
            _check_stale(path)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{workdir}: cannot be written to ({error.strerror})") from None
    ended = threading.Event()
    threading.Thread(target=_renew, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _created(path: pathlib.Path) -> bool:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_started(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        with open(path, "x") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    return True


def _check_stale(path: pathlib.Path) -> None:
    """Raises CheckpointError unless whoever wrote the lock has ended."""
    try:
        owner = json.loads(path.read_text())
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: damaged; remove it if no run uses {path.parent}") from None
    if host == socket.gethostname():
        alive = pid != os.getpid() and _process_started(pid) == owner.get("process_started")
    else:
        alive = age < _STALE_SECS
    if alive:
        raise CheckpointError(
            f"{path.parent}: another run uses it (process {pid} on {host}, since {started}); end that one, take "
            f"another --workdir, or remove {path} if it has ended"
        )


def _process_started(pid: int) -> str | None:
    """When a process of this host started, in the kernel's own count; None where there is no such process."""
    try:
        # The second field, the program's name, may have spaces; it ends with the last parenthesis.
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # Systems without /proc do not tell; the process lives.
    return "unknown"


def _renew(path: pathlib.Path, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECS):
        with contextlib.suppress(OSError):
            os.utime(path)
