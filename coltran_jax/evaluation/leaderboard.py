"""A page that puts several evaluations of the same images beside each other."""

import html
import pathlib
from collections.abc import Sequence

import numpy as np

from coltran_jax.evaluation.metrics import METRICS, needing
from coltran_jax.evaluation.page import paragraphs, svg, table, write_page
from coltran_jax.evaluation.paired import Comparison, Difference, Entry, cells_of, title_of

_COLOR = "#0b6e8a"


def write(path: pathlib.Path, entries: Sequence[Entry], found: Comparison) -> None:
    """Writes the page.

    Args:
        path: of the page.
        entries: that are compared.
        found: their comparison.
    """
    rows, best = _ranking(entries)
    tables = (
        f"<h3>{html.escape(name)}</h3><div class=scroll>{table(cells_of(found.entries[0], own))}</div>"
        for name, own in zip(found.entries[1:], found.differences, strict=True)
    )
    reports = dict.fromkeys(entry.report for entry in entries)
    links = (
        f'<a href="{html.escape((report / "index.html").absolute().as_uri())}">{html.escape(str(report))}</a>'
        for report in reports
    )
    above = [
        f"Protocol {found.protocol}, {found.num_images:,} images. The best of each column is marked, where one "
        "direction is better."
    ]
    places = {
        "ABOVE": paragraphs(above),
        "TABLE": table(rows, best),
        "LINKS": f"<p>Reports: {', '.join(links)}</p>",
        "CURVES": "".join(f"<figure>{chart}</figure>" for chart in _charts(found)),
        "DIFFERENCES": "".join(tables),
    }
    write_page(path, "leaderboard.html", places)


def _ranking(entries: Sequence[Entry]) -> tuple[list[list[str]], set[tuple[int, int]]]:
    """Cells of the table, and those that are best."""
    metrics = [m for m in METRICS if any(m.name in own.values or m.name in own.distances for own in entries)]
    rows = [["", "samples", *(title_of(metric, entries) for metric in metrics)]]
    best = set()
    means = np.full((len(entries), len(metrics)), np.nan)
    for row, entry in enumerate(entries):
        for column, metric in enumerate(metrics):
            values = (
                entry.distances.get(metric.name) if metric in needing("features") else entry.values.get(metric.name)
            )
            if values is not None:
                means[row, column] = np.mean(values)
        cells = ("" if np.isnan(x) else format(x, metric.format) for x, metric in zip(means[row], metrics, strict=True))
        rows.append([entry.name, f"{entry.num_samples}", *cells])
    for column, metric in enumerate(metrics):
        own = means[:, column]
        if metric.better in ("lower", "higher") and not np.isnan(own).all():
            chosen = np.nanmin(own) if metric.better == "lower" else np.nanmax(own)
            best |= {(row, column + 2) for row in np.flatnonzero(own == chosen)}
    return rows, best


def _charts(found: Comparison) -> list[str]:
    """A chart for each metric, of the difference of every entry."""
    by_metric: dict[str, list[tuple[str, Difference]]] = {}
    for name, differences in zip(found.entries[1:], found.differences, strict=True):
        for own in differences:
            by_metric.setdefault(own.title, []).append((name, own))
    return [svg(title, _drawn(own), height=0.9 + 0.35 * len(own)) for title, own in by_metric.items()]


def _drawn(named: list[tuple[str, Difference]]):
    def draw(axes):
        places = np.arange(len(named))[::-1]
        values = np.array([[own.difference, own.low, own.high] for _, own in named])
        reach = np.abs(values[:, 1:] - values[:, :1]).T
        axes.errorbar(values[:, 0], places, xerr=reach, fmt="o", color=_COLOR, capsize=4)
        axes.axvline(0, color="#7a7a7a", linewidth=1)
        axes.set(yticks=places, yticklabels=[name for name, _ in named], ylim=(-0.6, len(named) - 0.4))

    return draw
