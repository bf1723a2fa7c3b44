"""Accounts for a compiled program: the cost of each kernel, its layer, and its distance from the roofline."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from launch import hlo

# Steps of a name scope that say how JAX came to an operation, not where in the network it is.
_TRANSFORMATION = re.compile(
    r"(jit|pjit|jvp|transpose|vmap|shard_map|checkpoint|remat\d?|rematted_computation|closed_call|while|body|cond|branch_\d+_fun"
    r"|custom_(jvp|vjp)(_call)?)(\(.*\))?$"
)
_MOVES = {
    "copy",
    "transpose",
    "bitcast",
    "reshape",
    "parameter",
    "tuple",
    "get-tuple-element",
    "copy-start",
    "copy-done",
}
_UPDATE = "dynamic-update-slice"
_SLICES = ("slice", "dynamic-slice", "gather", _UPDATE)
_PREFETCHES = ("copy-start", "slice-start", "dynamic-slice-start")

KINDS = ("matmul", "attention", "norm", "conditioning", "elementwise", "optimizer", "layout change", "copy", "prefetch")
KINDS += ("collective",)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published rates of a device.

    Attributes:
        flops_per_sec: of products in bfloat16.
        bytes_per_sec: of its memory.
        hertz: from which a compiler's cycles become seconds; None where the compiler estimates no cycles.
    """

    flops_per_sec: float
    bytes_per_sec: float
    hertz: float | None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a program, all of its iterations together.

    Attributes:
        name: of the instruction, by which the program's text has it.
        kind: one of `KINDS`.
        layer: path in the network, such as "encoder/stack/blocks_0/attention"; empty for what has none.
        direction: "forward", "backward", "recomputation" or "update".
        iterations: how often a run of the program starts it.
        secs: that all iterations take, by the compiler's estimate; the roofline's where the compiler estimates none.
        flops: of its matrix products.
        bytes: that it reads from the device's memory and writes to it; what stays in on-chip memory does not count.
        roofline_secs: what its arithmetic or its bytes take at least, whichever is longer.
    """

    name: str
    kind: str
    layer: str
    direction: str
    iterations: int
    secs: float
    flops: float
    bytes: float
    roofline_secs: float


def kernels(text: str, chip: Chip) -> list[Kernel]:
    """The kernels of a compiled program, the longest first."""
    module = hlo.parse(text)
    trains = "jvp(" in text
    readers: dict[str, _Reader] = {}
    for name, instructions in module.computations.items():
        readers[name] = _Reader(readers, instructions)
    found = [
        _kernel(readers[computation], instruction, iterations, chip, trains)
        for computation, iterations in _executed(module, module.entry, 1)
        for instruction in module.computations[computation]
        if hlo.starts_kernel(instruction)
    ]
    return sorted(found, key=lambda kernel: -kernel.secs)


def _executed(module: hlo.Module, name: str, iterations: int) -> Iterator[tuple[str, int]]:
    """Yields computations whose instructions are kernels, and iterations; a loop whose data decides counts once."""
    yield name, iterations
    for instruction in module.computations[name]:
        for called, count in hlo.called(module, instruction):
            yield from _executed(module, called, iterations * (count or 1))


class _Reader:
    """Reads the instructions of one computation, with what they refer to.

    Attributes:
        instructions: by name.
        users: of each instruction, by its name.
    """

    def __init__(self, readers: dict[str, "_Reader"], instructions: tuple[hlo.Instruction, ...]):
        """Takes a computation's instructions, and the readers of all computations by name."""
        self._readers = readers
        self.instructions = {instruction.name: instruction for instruction in instructions}
        self.users: dict[str, list[hlo.Instruction]] = collections.defaultdict(list)
        for instruction in instructions:
            for operand in instruction.operands:
                self.users[operand].append(instruction)

    def scope_nearby(self, instruction: hlo.Instruction) -> str:
        """The name scope of what waits for it, else of what makes it."""
        seen, queue = {instruction.name}, collections.deque(self.users[instruction.name])
        while queue and len(seen) < 64:
            here = queue.popleft()
            if here.scope:
                return here.scope
            seen.add(here.name)
            queue += [user for user in self.users[here.name] if user.name not in seen]
        makers = [self.instructions[name] for name in instruction.operands if name in self.instructions]
        return next((maker.scope for maker in makers if maker.scope and maker.operation != "parameter"), "")

    def inside(self, instruction: hlo.Instruction) -> list[tuple[hlo.Instruction, dict[str, hlo.Instruction]]]:
        """The instructions that it fuses, each with those of its computation by name; itself where it fuses none."""
        if not instruction.fused:
            return [(instruction, self.instructions)]
        fused = self._readers[instruction.fused]
        return [found for inner in fused.instructions.values() for found in fused.inside(inner)]

    def products(self, instruction: hlo.Instruction) -> list[tuple[hlo.Instruction, float]]:
        """The matrix products of an instruction, with their operations, the largest first."""
        found = [(inner, _product_flops(inner, others)) for inner, others in self.inside(instruction)]
        return sorted((product for product in found if product[1]), key=lambda product: -product[1])

    def bytes(self, instruction: hlo.Instruction) -> float:
        """Bytes that cross the device's memory."""
        if instruction.operation in _PREFETCHES:
            # Its result repeats the operand, then has the copy: what one of them reads, the other writes.
            arrays = hlo.arrays(instruction.shape)
            copied = min((array.bytes for array in arrays[:2]), default=0)
            return copied * sum(not array.on_chip for array in arrays[:2])
        read = [self._bytes_read(instruction, index) for index in range(len(instruction.operands))]
        return sum(read) + self._bytes_written(instruction)

    def _bytes_read(self, instruction: hlo.Instruction, index: int) -> float:
        """Bytes of an operand; of one that is only sliced, of the slices."""
        operand = self.instructions.get(instruction.operands[index])
        whole = _device_bytes(operand.shape) if operand and operand.operation != "constant" else 0
        users, name = [instruction], instruction.operands[index]
        if whole and instruction.fused:
            fused = self._readers[instruction.fused]
            inner = fused.instructions.values()
            name = next((one.name for one in inner if f" parameter({index})" in one.text), "")
            users = fused.users[name]
        if not users or not all(user.operation in _SLICES for user in users):
            return whole
        # What is updated in place is not read.
        slices = [user for user in users if not (user.operation == _UPDATE and user.operands[0] == name)]
        return min(whole, sum(sum(array.bytes for array in hlo.arrays(user.shape)) for user in slices))

    def _bytes_written(self, instruction: hlo.Instruction) -> float:
        """Bytes of the result; of an update in place, of the part that changes."""
        inner, others = self.inside(instruction)[-1]
        if inner.operation == _UPDATE and inner.operands[1] in others:
            return _device_bytes(others[inner.operands[1]].shape)
        return _device_bytes(instruction.shape)

    def operations(self, instruction: hlo.Instruction) -> set[str]:
        """Names of what an instruction does."""
        return {inner.operation for inner, _ in self.inside(instruction)}

    def keeps_layout(self, instruction: hlo.Instruction) -> bool:
        """Returns whether an array is copied as it is."""
        operand = self.instructions.get(instruction.operands[0]) if len(instruction.operands) == 1 else None
        made, found = hlo.arrays(instruction.shape), hlo.arrays(operand.shape) if operand else ()
        return len(made) == len(found) == 1 and (made[0].sizes, made[0].order) == (found[0].sizes, found[0].order)


def _device_bytes(shape: str) -> int:
    return sum(array.bytes for array in hlo.arrays(shape) if not array.on_chip)


def _product_flops(instruction: hlo.Instruction, others: dict[str, hlo.Instruction]) -> float:
    """The operations of a matrix product, two for each pair that is multiplied and added; 0 for anything else.

    Args:
        instruction: perhaps a product.
        others: the instructions of its computation, by name.
    """
    operation = instruction.operation
    gemm = operation == "custom-call" and "gemm" in instruction.text
    if operation not in ("convolution", "dot") and not gemm:
        return 0
    left, right = (hlo.arrays(others[name].shape)[0].sizes for name in instruction.operands[:2])
    result = hlo.arrays(instruction.shape)[0].sizes
    if operation != "convolution":
        axes = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)', instruction.text)
        return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes.group(1)))
    return _convolution_flops(instruction.text, left, right, result)


def _convolution_flops(text: str, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...]) -> float:
    # As XLA counts: of each window only what meets the array, not its padding and not its holes.
    image, kernel, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
    found = re.search(r"window=\{([^}]*)\}", text)
    window = dict(field.split("=") for field in found.group(1).split()) if found else {}
    pairs = 1
    for index, axis in enumerate(sorted(sign for sign in kernel if sign.isdigit())):
        stride, dilation, holes = (
            int(window[name].split("x")[index]) if name in window else 1
            for name in ("stride", "rhs_dilate", "lhs_dilate")
        )
        before = int(window["pad"].split("x")[index].split("_")[0]) if "pad" in window else 0
        pairs *= _meetings(
            left[image.index(axis)], right[kernel.index(axis)], result[out.index(axis)], stride, dilation, holes, before
        )
    groups = re.search(r"batch_group_count=(\d+)", text)
    batch = left[image.index("b")] // (int(groups.group(1)) if groups else 1)
    return 2 * pairs * batch * right[kernel.index("i")] * right[kernel.index("o")]


@functools.cache
def _meetings(size: int, window: int, results: int, stride: int, dilation: int, holes: int, before: int) -> int:
    """Pairs of a result and a place of its window that meet an element of an axis, of which `holes` - 1 lie between."""
    places = (result * stride + place * dilation - before for result in range(results) for place in range(window))
    return sum(place % holes == 0 and 0 <= place // holes < size for place in places)


def _kernel(reader: _Reader, instruction: hlo.Instruction, iterations: int, chip: Chip, trains: bool) -> Kernel:
    products = reader.products(instruction)
    # A fusion belongs to its costliest product. The compiler's own copies have no name scope.
    scope = products[0][0].scope if products else ""
    scope = scope or instruction.scope or reader.scope_nearby(instruction)
    flops = sum(flops for _, flops in products) or instruction.pallas_flops
    moved = reader.bytes(instruction)
    direction = _direction(scope, trains)
    roofline = max(flops / chip.flops_per_sec, moved / chip.bytes_per_sec)
    kind = _kind(reader, instruction, scope, direction, bool(products))
    if kind == "prefetch":
        # The device goes on meanwhile.
        secs = 0.0
    elif chip.hertz and not instruction.pallas:
        secs = instruction.cycles / chip.hertz
    else:
        secs = roofline
    return Kernel(
        instruction.name,
        kind,
        _layer(scope),
        direction,
        iterations,
        iterations * secs,
        iterations * flops,
        iterations * moved,
        iterations * roofline,
    )


def _kind(reader: _Reader, instruction: hlo.Instruction, scope: str, direction: str, multiplies: bool) -> str:
    operation = instruction.operation.removesuffix("-start").removesuffix("-done")
    if operation in hlo.COLLECTIVES:
        return "collective"
    if instruction.operation in _PREFETCHES:
        return "prefetch"
    steps = scope.split("/")
    attention = any(step.partition(".")[0] == "attention" for step in steps)
    conditioning = any(".condition" in step or step in ("context", "projection") for step in steps)
    if multiplies or instruction.pallas:
        if conditioning:
            return "conditioning"
        projects = any("project" in step for step in steps)
        return "attention" if attention and not projects else "matmul"
    if reader.operations(instruction) <= _MOVES:
        return "copy" if reader.keeps_layout(instruction) else "layout change"
    if direction == "update":
        return "optimizer"
    if conditioning:
        return "conditioning"
    if any("norm" in step for step in steps[:-1]):
        return "norm"
    return "attention" if attention else "elementwise"


def _direction(scope: str, trains: bool) -> str:
    """The direction of an operation with this name scope; a program that does not train has only one."""
    if "rematted_computation" in scope:
        return "recomputation"
    if "transpose(" in scope:
        return "backward"
    return "forward" if "jvp(" in scope or not trains else "update"


@functools.cache
def _layer(scope: str) -> str:
    """The path in the network of a name scope, without methods, transformations and the operation itself."""
    steps = scope.split("/")[:-1]
    last = max((index for index, step in enumerate(steps) if "jvp(" in step), default=-1)
    path: list[str] = []
    for step in steps[last + 1 :]:
        module = step.partition(".")[0]
        # The method of a class belongs to the network itself, that of a module to the module.
        if _TRANSFORMATION.match(step) or "->" in step or module[:1].isupper():
            continue
        if not path or path[-1] != module:
            path.append(module)
    return "/".join(path)


def sums(found: list[Kernel], *keys: str) -> list[tuple[str, float, float, float, float]]:
    """Sums of kernels by one or several of "kind", "layer" and "direction"; the blocks of a stack are one layer.

    Returns:
        (name, seconds, operations, bytes, roofline seconds), the longest first.
    """
    total: dict[str, list[float]] = collections.defaultdict(lambda: [0.0] * 4)
    for kernel in found:
        name = ", ".join(filter(None, (re.sub(r"_\d+(?=/|$)", "_*", getattr(kernel, key)) for key in keys)))
        for index, value in enumerate((kernel.secs, kernel.flops, kernel.bytes, kernel.roofline_secs)):
            total[name][index] += value
    return sorted(((name, *values) for name, values in total.items()), key=lambda row: -row[1])
