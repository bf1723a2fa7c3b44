"""Reads the text of a compiled program: its collectives, its loops, and the compiler's estimate of its time."""

import collections
import dataclasses
import math
import re

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(r"= (\(?.*?) (" + "|".join(_COLLECTIVES) + r")(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")

# Instructions that start nothing on a device: names for values, and ends of what was started before.
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_OPERATION = re.compile(r"(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_CALLED = re.compile(r"(?:to_apply|calls|called_computations)=\{?%?([\w.\-]+)")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (number, bytes of results)."""
    found = collections.defaultdict(lambda: [0, 0])
    for shapes, kind in _COLLECTIVE.findall(text):
        sizes = []
        for dtype, dims in _ARRAY.findall(shapes):
            size = _BYTES.get(dtype, 4)
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            sizes.append(size)
        found[kind][0] += 1
        found[kind][1] += sum(sizes)
    return {kind: (number, size) for kind, (number, size) in sorted(found.items())}


def gathered_batches(text: str, batch_per_device: int, pixels: int) -> list[str]:
    """All-gathers whose result has more images' activations than a device's share: there should be none."""
    suspicious = []
    for shapes, kind in _COLLECTIVE.findall(text):
        if kind != "all-gather":
            continue
        for _, dims in _ARRAY.findall(shapes):
            sizes = [int(dim) for dim in filter(None, dims.split(","))]
            # An activation has a batch axis and the pixels of an image; a weight has not.
            if len(sizes) >= 4 and sizes[0] > batch_per_device and math.prod(sizes[1:-1]) >= pixels:
                suspicious.append(f"{kind} to {sizes}")
    return suspicious


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, or the program itself as a loop of one turn.

    Attributes:
        turns: how often it runs, where that is fixed; None where data decides.
        kernels: what one turn starts on the device, without what inner loops start.
        cycles: of one turn with its inner loops, by the compiler's estimate; TPUs only, 0 elsewhere. A loop whose data
            decides counts once.
        pallas: kernels of Pallas among `kernels`, which the compiler's estimate leaves out.
        pallas_flops: what one turn's kernels of Pallas compute, with those of its inner loops, as they say themselves.
        inner: the loops within it.
    """

    turns: int | None
    kernels: int
    cycles: int
    pallas: int
    pallas_flops: int
    inner: tuple["Loop", ...]


def program(text: str) -> Loop:
    """The loops of a compiled program."""
    computations, entry = _computations(text)
    return _loop(computations, entry, 1)


def _loop(computations: dict[str, list[str]], name: str, turns: int | None) -> Loop:
    kernels, cycles, pallas, pallas_flops, inner = 0, 0, 0, 0, []
    for line in computations[name]:
        found = _OPERATION.match(line)
        operation = found.group(1) if found else "constant"
        if operation == "while":
            condition, body = _WHILE.search(line).groups()
            loop = _loop(computations, body, _turns(line, computations[condition]))
            inner.append(loop)
            cycles += (loop.turns or 1) * loop.cycles
            pallas_flops += (loop.turns or 1) * loop.pallas_flops
        elif operation in ("call", "conditional"):
            for called in _CALLED.findall(line):
                part = _loop(computations, called, 1)
                kernels, cycles = kernels + part.kernels, cycles + part.cycles
                pallas, pallas_flops = pallas + part.pallas, pallas_flops + part.pallas_flops
                inner += part.inner
        kernels += operation not in _NAMES and not operation.endswith("-done")
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        cycles += int(estimate.group(1)) if estimate else 0
        if 'custom_call_target="tpu_custom_call"' in line:
            pallas += 1
            said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', line)
            pallas_flops += int(said.group(1)) if said else 0
    return Loop(turns, kernels, cycles, pallas, pallas_flops, tuple(inner))


def _turns(line: str, condition: list[str]) -> int | None:
    """Returns a loop's turns: as the compiler says, or the number that its condition compares a counter with."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
    if said:
        return int(said.group(1))
    text = "\n".join(condition)
    compared = re.search(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", text)
    limit = compared and re.search(rf"%?{re.escape(compared.group(1))} = \S+ constant\((\d+)\)", text)
    return int(limit.group(1)) if limit else None


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines, and the name of the one that runs first."""
    found, entry, lines = {}, "", None
    for line in text.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head:
            lines = found[head.group(2)] = []
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line.strip())
    return found, entry
