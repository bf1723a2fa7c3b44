"""Explains where a compiled program's time goes: tables for a terminal, JSON, and a flame plot."""

import dataclasses
import io
import json
import pathlib

from coltran_jax.files import replacing
from launch import account
from launch.account import Kernel

_WIDEST_LAYER = 56
_COLORS = dict(
    zip(
        account.KINDS,
        ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d", "#bab0ac", "#e45756", "#ff9da6", "#d6d6d6", "#72b7b2"),
        strict=True,
    )
)


def explain(text: str, chip: account.Chip, folder: pathlib.Path, title: str, top: int = 20) -> None:
    """Prints where a program's time goes, and writes `program.txt`, `kernels.json` and `flame.png` into a folder.

    Args:
        text: of the compiled program.
        chip: rates of the device that it was compiled for.
        folder: made if need be.
        title: of the plot.
        top: how many kernels to print.
    """
    found = account.kernels(text, chip)
    print("\n".join(tables(found, top)))
    files = {
        "program.txt": text.encode(),
        "kernels.json": json.dumps([dataclasses.asdict(kernel) for kernel in found], indent=1).encode(),
    }
    if any(kernel.secs for kernel in found):
        files["flame.png"] = flame(found, title)
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write_bytes(content)
    print(f"\n{folder}: {', '.join(files)}")


def tables(found: list[Kernel], top: int) -> list[str]:
    """Lines of the sums by direction, by kind and by layer, and of the longest kernels."""
    total = sum(kernel.secs for kernel in found)
    lines = []
    for name, keys in (("direction", ("direction",)), ("kind", ("kind",)), ("layer and kind", ("layer", "kind"))):
        lines += ["", _row(name, ("ms", "of all", "TFLOP", "GB", "roofline ms", "times it"))]
        for group, secs, flops, moved, roofline in account.sums(found, *keys):
            if secs >= total / 200:
                lines.append(_row(group, _figures(secs, total, flops, moved, roofline)))
    lines += ["", _row(f"the longest {top} kernels", ("ms", "of all", "TFLOP", "GB", "roofline ms", "times it"))]
    for kernel in found[:top]:
        figures = _figures(kernel.secs, total, kernel.flops, kernel.bytes, kernel.roofline_secs)
        lines.append(_row(f"{kernel.name} ({kernel.direction}, {kernel.kind})", figures))
        lines.append(f"    {kernel.layer}" + (f", {kernel.iterations} iterations" if kernel.iterations > 1 else ""))
    return lines


def _figures(secs: float, total: float, flops: float, moved: float, roofline: float) -> tuple[str, ...]:
    # What stays in on-chip memory has hardly a roofline.
    times = f"{secs / roofline:.1f}" if secs < 1000 * roofline else ""
    share = f"{100 * secs / total:.1f} %" if total else ""
    return f"{1e3 * secs:.2f}", share, f"{flops / 1e12:.3f}", f"{moved / 1e9:.2f}", f"{1e3 * roofline:.2f}", times


def _row(name: str, figures: tuple[str, ...]) -> str:
    shown = name if len(name) <= _WIDEST_LAYER else "…" + name[1 - _WIDEST_LAYER :]
    return f"{shown:<{_WIDEST_LAYER}}" + "".join(f"{figure:>12}" for figure in figures)


@dataclasses.dataclass
class _Box:
    """A part of the flame plot: seconds, and what they consist of."""

    secs: float = 0.0
    kind: str | None = None
    parts: dict[str, "_Box"] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> "_Box":
        return self.parts.setdefault(name, _Box())


def _boxes(found: list[Kernel]) -> _Box:
    whole = _Box()
    for kernel in found:
        path = [kernel.direction, *filter(None, kernel.layer.split("/")), kernel.kind]
        whole.secs += kernel.secs
        box = whole
        for name in path:
            box = box.part(name)
            box.secs += kernel.secs
        box.kind = kernel.kind
    return whole


def flame(found: list[Kernel], title: str) -> bytes:
    """A PNG in which each kernel's time lies over its layer's, that over its stack's, and so on to the program's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    whole = _boxes(found)
    figure = Figure(figsize=(18, 7), layout="constrained")
    axes = figure.add_subplot()
    deepest = 0

    def draw(box: _Box, name: str, left: float, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        color = _COLORS[box.kind] if box.kind else ("#eeeeee" if depth % 2 else "#e2e2e2")
        axes.add_patch(Rectangle((left, depth), box.secs, 1, facecolor=color, edgecolor="white", linewidth=0.4))
        letters = int(150 * box.secs / whole.secs)
        if letters >= 3:
            shown = name if len(name) <= letters else name[: letters - 1] + "…"
            dark = box.kind is None or box.kind in ("prefetch", "optimizer", "copy")
            axes.text(
                left + box.secs / 2,
                depth + 0.5,
                shown,
                ha="center",
                va="center",
                fontsize=7.5,
                clip_on=True,
                color="black" if dark else "white",
            )
        for part_name, part in sorted(box.parts.items(), key=lambda item: -item[1].secs):
            draw(part, part_name, left, depth + 1)
            left += part.secs

    draw(whole, f"{1e3 * whole.secs:.1f} ms", 0.0, 0)
    axes.set(xlim=(0, whole.secs), ylim=(0, deepest + 1), yticks=[], title=title)
    axes.xaxis.set_major_formatter(lambda secs, _: f"{1e3 * secs:.0f} ms")
    kinds = [kind for kind in _COLORS if any(kernel.kind == kind and kernel.secs for kernel in found)]
    patches = [Rectangle((0, 0), 1, 1, facecolor=_COLORS[kind]) for kind in kinds]
    figure.legend(patches, kinds, loc="outside lower center", ncols=len(kinds), frameon=False)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    FigureCanvasAgg(figure)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()
