"""Three stages that run at once: files are read, batches pass through the networks, results are written."""

import collections
import concurrent.futures as futures
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Job = TypeVar("Job")
Read = TypeVar("Read")
Drawn = TypeVar("Drawn")
Done = TypeVar("Done")


def usable_cores() -> set[int]:
    """Returns the cores that this thread may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclasses.dataclass
class Stages(Generic[Job, Read, Drawn, Done]):
    """The stages that each job passes through, and how many jobs are in them at once.

    Attributes:
        read: run by several threads, several jobs ahead of `draw`.
        draw: run by the caller's thread, on the results of up to `at_once` jobs.
        finish: run by several threads, while `draw` goes on.
        cost: memory that a job takes from its being read until it is finished, in any unit.
        at_once: jobs of a batch.
        limit: of the cost of all jobs between being read and finished. A job that costs more passes alone.
        num_threads: of `read`, and as many of `finish`.
        busy_secs: time spent in `draw` so far.
    """

    read: Callable[[Job], Read]
    draw: Callable[[list[Read]], list[Drawn]]
    finish: Callable[[Job, Read, Drawn], Done]
    cost: Callable[[Job], int]
    at_once: int
    limit: int
    num_threads: int
    busy_secs: float = 0.0

    def run(self, jobs: Iterable[Job], stopping: Callable[[], bool]) -> Iterator[tuple[Job, Done | Exception]]:
        """Runs all jobs.

        Args:
            jobs: in the order in which their results come.
            stopping: where it returns True, jobs that have not been drawn are dropped and those that have are finished.

        Yields:
            Each job with what `finish` returned, or with what `read` or `finish` raised.
        """
        pools = [futures.ThreadPoolExecutor(self.num_threads) for _ in range(2)]
        try:
            yield from self._run(jobs, stopping, *pools)
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)

    def _run(self, jobs, stopping, readers, finishers):
        waiting = iter(jobs)
        upcoming = _next(waiting, self.cost)
        # All jobs whose results have not been yielded; those of them being read; those to be drawn together.
        slots: collections.deque[_Slot] = collections.deque()
        unread: collections.deque[_Slot] = collections.deque()
        batch: list[_Slot] = []
        while True:
            if stopping():
                upcoming = None
                dropped = [*unread, *batch]
                slots = collections.deque(slot for slot in slots if slot not in dropped)
                unread.clear()
                batch = []
            used = sum(slot.cost for slot in slots)
            while upcoming and len(unread) + len(batch) < self.at_once + self.num_threads:
                if used and used + upcoming.cost > self.limit:
                    break
                used += upcoming.cost
                upcoming.future = readers.submit(self.read, upcoming.job)
                slots.append(upcoming)
                unread.append(upcoming)
                upcoming = _next(waiting, self.cost)
            while unread and unread[0].future.done() and len(batch) < self.at_once:
                slot = unread.popleft()
                if slot.future.exception():
                    slot.cost, slot.is_last = 0, True
                else:
                    batch.append(slot)
            # What is read would not fit beside the batch, and the batch is all that is read.
            full = upcoming and sum(slot.cost for slot in batch) + upcoming.cost > self.limit
            if len(batch) == self.at_once or (batch and not unread and (full or not upcoming)):
                self._draw(batch, finishers)
                batch = []
            while slots and slots[0].is_last and slots[0].future.done():
                slot = slots.popleft()
                yield slot.job, slot.future.exception() or slot.future.result()
            if not slots and not upcoming:
                return
            pending = [slot.future for slot in slots if not slot.future.done()]
            if pending and not (unread and unread[0].future.done()):
                futures.wait(pending, return_when=futures.FIRST_COMPLETED)

    def _draw(self, batch, finishers):
        started = time.monotonic()
        read = [slot.future.result() for slot in batch]
        drawn = self.draw(read)
        self.busy_secs += time.monotonic() - started
        for slot, one, result in zip(batch, read, drawn, strict=True):
            slot.future, slot.is_last = finishers.submit(self.finish, slot.job, one, result), True


@dataclasses.dataclass(eq=False)
class _Slot:
    """A job on its way: its cost, what is done with it now, and whether that is the last that is done with it."""

    job: object
    cost: int
    future: futures.Future | None = None
    is_last: bool = False


def _next(jobs: Iterator, cost: Callable) -> _Slot | None:
    for job in jobs:
        return _Slot(job, cost(job))
    return None
