"""The report: a page with table, curves, and images in order of their error; it needs neither server nor network."""

import base64
import dataclasses
import html
import importlib.resources
import io
import json
import pathlib
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from coltran_jax.evaluation.measures import GRAY, SAMPLED, Record
from coltran_jax.evaluation.parts import Parts, merged
from coltran_jax.evaluation.summary import Evaluation, cells, notes
from coltran_jax.files import replacing

MAX_IMAGES = 100
# Entropy that is as bright as can be; few pixels are more uncertain.
_BRIGHT_BITS = 4
_TRAINED = SAMPLED[0]
# Distinguishable in print and by the colour-blind.
_COLORS = ("#0b6e8a", "#d1682c", "#7a7a7a", "#5b3f8c", "#3f8c4f", "#b0305c")


def write(folder: pathlib.Path, evaluation: Evaluation, parts: Parts, names: Sequence[str]) -> None:
    """Writes `index.html` and `evaluation.json`.

    Args:
        folder: made before.
        evaluation: the table.
        parts: of all images, with thumbnails.
        names: of the images, in the order of the parts.
    """
    measures = ("ab_error", "bits", "colorfulness")
    record = merged([parts.get(number, only=measures) for number in parts.numbers(len(names))])
    errors = record[_TRAINED, "ab_error"].mean(axis=1)
    order = np.argsort(errors, kind="stable")
    # Of many images every so many, the best and the worst among them.
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MAX_IMAGES)).round().astype(int))]
    above, below = notes(evaluation)
    template = importlib.resources.files(__package__).joinpath("report.html").read_text()
    found = {
        "ABOVE": "".join(f"<p>{html.escape(line.strip())}</p>" for line in above),
        "TABLE": _table(evaluation),
        "BELOW": "".join(f"<p>{html.escape(line)}</p>" for line in below),
        "CURVES": "".join(f"<figure>{chart}</figure>" for chart in _charts(evaluation, record)),
        "SHOWN": f"{len(shown)} of {len(names):,}" if len(shown) < len(names) else "All",
        "IMAGES": "".join(_image(parts, names, record, number) for number in shown),
        "MOST": f"{_BRIGHT_BITS}",
    }
    for place, text in found.items():
        template = template.replace(f"<!-- {place} -->", text)
    for name, text in (("index.html", template), ("evaluation.json", json.dumps(dataclasses.asdict(evaluation)))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _table(evaluation: Evaluation) -> str:
    titles, *rows = cells(evaluation)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _image(parts: Parts, names: Sequence[str], record: Record, number: int) -> str:
    """A line of the grid: gray, samples, truth, uncertainty."""
    part = parts.get(number // parts.part_size, only=("thumbnails", "entropy"))
    at = number % parts.part_size
    samples = part[_TRAINED, "thumbnails"][at]
    bits = record[_TRAINED, "bits"][number]
    images = [
        ("gray", _jpeg(part[GRAY, "thumbnails"][at, 0])),
        *((f"{value:.2f} bits", _jpeg(sample)) for sample, value in zip(samples, bits, strict=True)),
        ("truth", _jpeg(part["truth", "thumbnails"][at, 0])),
        ("uncertainty", _heat(part[_TRAINED, "entropy"][at])),
    ]
    inside = "".join(
        f'<div><img loading="lazy" alt="{caption}" src="{data}"><span>{caption}</span></div>'
        for caption, data in images
    )
    error = record[_TRAINED, "ab_error"][number].mean()
    return f"<section><h3>{html.escape(names[number])} <small>ab error {error:.1f}</small></h3>{inside}</section>"


def _jpeg(image: np.ndarray) -> str:
    return _data(image, "JPEG", quality=88, subsampling=0)


def _heat(entropy: np.ndarray) -> str:
    """(h, w) bits -> an image from black, certain, to bright."""
    colors = matplotlib.colormaps["magma"](entropy.astype(np.float32) / _BRIGHT_BITS, bytes=True)
    return _data(colors[..., :3], "PNG")


def _data(image: np.ndarray, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _charts(evaluation: Evaluation, record: Record) -> list[str]:
    charts = [_errors_by_rank(evaluation, record), _colorfulness(record), _error_by_bits(record)]
    if evaluation.num_samples > 1:
        charts.insert(1, _best_of(record))
    return charts


def _errors_by_rank(evaluation: Evaluation, record: Record) -> str:
    def draw(axes):
        for row, color in zip(evaluation.rows, _COLORS * 9, strict=False):
            values = np.sort(record[row.name, "ab_error"].mean(axis=1))
            share = (np.arange(len(values)) + 0.5) / len(values) * 100
            axes.plot(share, values, color=color, label=row.name, linewidth=1.6)
        axes.set(xlabel="images, % in order", ylabel="ab error", xlim=(0, 100), ylim=(0, None))
        axes.legend(frameon=False)

    return _svg("Error of each way", draw)


def _best_of(record: Record) -> str:
    bits, errors = record[_TRAINED, "bits"], record[_TRAINED, "ab_error"]
    counts = np.arange(1, bits.shape[1] + 1)
    probable = [np.take_along_axis(errors, bits[:, :n].argmin(axis=1)[:, None], 1).mean() for n in counts]
    nearest = [errors[:, :n].min(axis=1).mean() for n in counts]

    def draw(axes):
        axes.plot(counts, probable, "o-", color=_COLORS[0], label="the most probable")
        axes.plot(counts, nearest, "o-", color=_COLORS[1], label="the one nearest to the truth")
        axes.set(xlabel="samples", ylabel="ab error", xticks=counts, ylim=(0, 1.1 * max(probable)))
        axes.legend(frameon=False)

    return _svg("Best of several samples", draw)


def _colorfulness(record: Record) -> str:
    truth, samples = record["truth", "colorfulness"], record[_TRAINED, "colorfulness"]

    def draw(axes):
        axes.scatter(
            np.repeat(truth, samples.shape[1]), samples.ravel(), s=9, alpha=0.6, color=_COLORS[0], linewidths=0
        )
        most = 1.05 * max(truth.max(), samples.max(), 1)
        axes.plot([0, most], [0, most], color="#7a7a7a", linewidth=1)
        axes.set(xlabel="of the truth", ylabel="of samples as trained", xlim=(0, most), ylim=(0, most))

    return _svg("Colourfulness", draw)


def _error_by_bits(record: Record) -> str:
    def draw(axes):
        bits, errors = (record[_TRAINED, measure].ravel() for measure in ("bits", "ab_error"))
        axes.scatter(bits, errors, s=9, alpha=0.6, color=_COLORS[0], linewidths=0)
        axes.set(xlabel="bits/pixel of the sample", ylabel="ab error", xlim=(0, None), ylim=(0, None))

    return _svg("Likelihood and error of samples", draw)


def _svg(title: str, draw: Callable) -> str:
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
