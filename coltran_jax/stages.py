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
        draw: run by `in_flight` threads, each time on the results of up to `at_once` jobs.
        finish: run by several threads, while `draw` goes on.
        cost: memory that a job takes from its being read until it is finished, in any unit.
        at_once: jobs of a batch.
        limit: of the cost of all jobs between being read and finished. A job that costs more passes alone.
        num_threads: of `read`, and as many of `finish`.
        in_flight: batches in `draw` at once. With two, the second is sent to an accelerator before the results of the
            first are fetched, so that it need not wait. The first batch of all is alone: it compiles.
        busy_secs: time in which a batch was in `draw` so far.
    """

    read: Callable[[Job], Read]
    draw: Callable[[list[Read]], list[Drawn]]
    finish: Callable[[Job, Read, Drawn], Done]
    cost: Callable[[Job], int]
    at_once: int
    limit: int
    num_threads: int
    in_flight: int = 1
    busy_secs: float = 0.0

    def run(self, jobs: Iterable[Job], stopping: Callable[[], bool]) -> Iterator[tuple[Job, Done | Exception]]:
        """Runs all jobs.

        Args:
            jobs: in the order in which their results come.
            stopping: where it returns True, jobs that have not been drawn are dropped and those that have are finished.

        Yields:
            Each job with what `finish` returned, or with what `read` or `finish` raised. What `draw` raises ends all.
        """
        pools = [futures.ThreadPoolExecutor(count) for count in (self.num_threads, self.in_flight, self.num_threads)]
        try:
            yield from self._run(jobs, stopping, *pools)
        finally:
            for pool in pools:
                pool.shutdown(cancel_futures=True)

    def _run(self, jobs, stopping, readers, drawers, finishers):
        waiting = iter(jobs)
        upcoming = _next(waiting, self.cost)
        # All jobs whose results have not been yielded; those of them being read; those to be drawn together; batches
        # being drawn.
        slots: collections.deque[_Slot] = collections.deque()
        unread: collections.deque[_Slot] = collections.deque()
        batch: list[_Slot] = []
        drawing: collections.deque[tuple[list[_Slot], futures.Future]] = collections.deque()
        has_drawn, began = False, 0.0
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
            ready = len(batch) == self.at_once or (batch and not unread and (full or not upcoming))
            if ready and len(drawing) < (self.in_flight if has_drawn else 1):
                began = began if drawing else time.monotonic()
                drawing.append((batch, drawers.submit(self.draw, [slot.future.result() for slot in batch])))
                batch = []
            while drawing and drawing[0][1].done():
                drawn, future = drawing.popleft()
                has_drawn = True
                self.busy_secs += time.monotonic() - began
                began = time.monotonic()
                self._finish(drawn, future.result(), finishers)
            while slots and slots[0].is_last and slots[0].future.done():
                slot = slots.popleft()
                yield slot.job, slot.future.exception() or slot.future.result()
            if not slots and not upcoming:
                return
            self._wait(slots, unread, batch, drawing)

    def _finish(self, batch, results, finishers):
        for slot, result in zip(batch, results, strict=True):
            slot.future, slot.is_last = finishers.submit(self.finish, slot.job, slot.future.result(), result), True

    def _wait(self, slots, unread, batch, drawing):
        """Waits until something can go on."""
        takes = unread and unread[0].future.done() and len(batch) < self.at_once
        pending = {future for _, future in drawing} | {slot.future for slot in slots if not slot.future.done()}
        if pending and not takes:
            futures.wait(pending, return_when=futures.FIRST_COMPLETED)


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
