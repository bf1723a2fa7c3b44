"""Reads the text of a compiled program: instructions, collectives, loops, and the compiler's estimates of time."""

import collections
import dataclasses
import functools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(r"= (\(?.*?) (" + "|".join(COLLECTIVES) + r")(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")

# Instructions that start nothing on a device: names for values, and ends of what was started before.
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional"}
_CHANNEL = re.compile(r"channel_id=(\d+)")
_STEPS = ("while", "call", "conditional")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# A name, perhaps after its shape and before a comma.
_OPERAND = re.compile(r"%?([\w.\-]+)(?:,|$)")
_CALLED = re.compile(r"(?:to_apply|calls|called_computations)=\{?%?([\w.\-]+)")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (number, bytes of results).

    A TPU's compiler may spread one collective over many fusions, each of which has it, of the same channel.
    """
    found = collections.defaultdict(lambda: [0, 0])
    spread, computation = set(), ""
    for line in text.splitlines():
        header, match = _COMPUTATION.match(line), _COLLECTIVE.search(line)
        computation = header[2] if header else computation
        if not match:
            continue
        results, kind, channel = arrays(match[1]), match[2], _CHANNEL.search(line)
        if channel and "fus" in computation:
            one = (kind, channel[1], *((array.dtype, array.sizes) for array in results))
            if one in spread:
                continue
            spread.add(one)
        found[kind][0] += 1
        found[kind][1] += sum(array.bytes for array in results)
    return {kind: (number, size) for kind, (number, size) in sorted(found.items())}


def gathered_batches(text: str, batch_per_device: int, pixels: int) -> list[str]:
    """All-gathers whose result has more images' activations than a device's share: there should be none."""
    suspicious = []
    for shapes, kind in _COLLECTIVE.findall(text):
        if kind != "all-gather":
            continue
        for array in arrays(shapes):
            # An activation has a batch axis and the pixels of an image; a weight has not.
            sizes = array.sizes
            if len(sizes) >= 4 and sizes[0] > batch_per_device and math.prod(sizes[1:-1]) >= pixels:
                suspicious.append(f"{kind} to {list(sizes)}")
    return suspicious


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
        dtype: as XLA writes it.
        sizes: of its axes.
        order: axes from minor to major, as its layout has them.
        on_chip: whether it is in a TPU's on-chip memory, not in the device's memory.
    """

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        return math.prod(self.sizes) * _BYTES.get(self.dtype, 4)


@functools.cache
def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays that a shape names, a tuple's in their order."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        order = tuple(int(axis) for axis in layout.partition(":")[0].split(",") if axis)
        found.append(Array(dtype, tuple(int(size) for size in sizes.split(",") if size), order, "S(1)" in layout))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a program.

    Attributes:
        name: of its result.
        shape: of its result, as text; see `arrays`.
        operation: such as "fusion" or "copy".
        operands: names of what it takes.
        text: its line.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    text: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found.group(1)) if found else 0

    @property
    def pallas(self) -> bool:
        """Returns whether it is a kernel of Pallas, whose time the compiler does not estimate."""
        return 'custom_call_target="tpu_custom_call"' in self.text

    @property
    def pallas_flops(self) -> int:
        """Operations of a kernel of Pallas, as it says itself."""
        found = re.search(r'"cost_estimate":\{"flops":"(\d+)"', self.text) if self.pallas else None
        return int(found.group(1)) if found else 0

    @property
    def scope(self) -> str:
        """JAX's name scope; empty where the compiler made the instruction itself."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found.group(1) if found else ""

    @property
    def fused(self) -> str | None:
        """The computation of which it makes one kernel."""
        found = re.search(r"calls=%?([\w.\-]+)", self.text) if self.operation not in _STEPS else None
        return found.group(1) if found else None


def starts_kernel(instruction: Instruction) -> bool:
    """Returns whether a device starts something for it."""
    return instruction.operation not in _NAMES and not instruction.operation.endswith("-done")


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: its computations by name, and the one that runs first."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str


def parse(text: str) -> Module:
    """Reads a program's text."""
    found: dict[str, list[Instruction]] = {}
    entry, instructions = "", None
    for line in text.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head:
            instructions = found[head.group(2)] = []
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            instructions = None
        elif instructions is not None:
            parts = _INSTRUCTION.match(line.strip())
            if parts:
                name, shape, operation, rest = parts.groups()
                operands = tuple(_OPERAND.findall(rest[: _closing(rest)]))
                instructions.append(Instruction(name, shape, operation, operands, line.strip()))
    return Module({name: tuple(lines) for name, lines in found.items()}, entry)


def _closing(text: str) -> int:
    """The place of the parenthesis that closes what was opened before the text."""
    depth = 1
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return place
    return len(text)


def called(module: Module, instruction: Instruction) -> list[tuple[str, int | None]]:
    """The computations that an instruction runs kernel by kernel, with their iterations; None where data decides."""
    if instruction.operation == "while":
        condition, body = _WHILE.search(instruction.text).groups()
        return [(body, _turns(instruction, module.computations.get(condition, ())))]
    if instruction.operation in _STEPS:
        return [(name, 1) for name in _CALLED.findall(instruction.text)]
    return []


def _turns(loop: Instruction, condition: tuple[Instruction, ...]) -> int | None:
    """Returns a loop's iterations: as the compiler says, or the number that its condition compares a counter with."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if said:
        return int(said.group(1))
    for last in condition[-1:]:
        if last.operation == "compare" and "direction=LT" in last.text:
            for limit in condition:
                constant = re.search(r"constant\((\d+)\)", limit.text)
                if limit.name == last.operands[1] and constant:
                    return int(constant.group(1))
    return None


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, or the program itself as a loop of one iteration.

    Attributes:
        iterations: how often it runs, where that is fixed; None where data decides.
        kernels: what one iteration starts on the device, without what inner loops start.
        cycles: of one iteration with its inner loops, by the compiler's estimate; TPUs only, 0 elsewhere. A loop whose
            data decides counts once.
        pallas: kernels of Pallas among `kernels`, which the compiler's estimate leaves out.
        pallas_flops: what kernels of Pallas compute in one iteration, with its inner loops, as they say themselves.
        inner: the loops within it.
    """

    iterations: int | None
    kernels: int
    cycles: int
    pallas: int
    pallas_flops: int
    inner: tuple["Loop", ...]


def program(text: str) -> Loop:
    """The loops of a compiled program."""
    module = parse(text)
    return _loop(module, module.entry, 1)


def _loop(module: Module, name: str, iterations: int | None) -> Loop:
    kernels, cycles, pallas, pallas_flops, inner = 0, 0, 0, 0, []
    for instruction in module.computations[name]:
        for computation, count in called(module, instruction):
            part = _loop(module, computation, count)
            cycles += (count or 1) * part.cycles
            pallas_flops += (count or 1) * part.pallas_flops
            if instruction.operation == "while":
                inner.append(part)
            else:
                kernels, pallas, inner = kernels + part.kernels, pallas + part.pallas, [*inner, *part.inner]
        kernels += starts_kernel(instruction)
        cycles += instruction.cycles
        pallas += instruction.pallas
        pallas_flops += instruction.pallas_flops
    return Loop(iterations, kernels, cycles, pallas, pallas_flops, tuple(inner))
