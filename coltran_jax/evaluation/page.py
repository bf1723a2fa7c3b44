"""The report: a page with table, curves, and images in order of their error; it needs neither server nor network."""

import base64
import dataclasses
import html
import importlib.resources
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from coltran_jax.evaluation import groups
from coltran_jax.evaluation.calibration import Calibration
from coltran_jax.evaluation.measures import GRAY, SAMPLED, Record
from coltran_jax.evaluation.parts import Parts, merged
from coltran_jax.evaluation.summary import Evaluation, cells, notes
from coltran_jax.files import replacing

MAX_IMAGES = 5000
# Of more, each is smaller: 15 KB with three samples, where it has 53 KB otherwise.
MANY_IMAGES = 500
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
    # Of more images than a browser holds, every so many.
    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_IMAGES)).round().astype(int))
    above, below = notes(evaluation)
    found = {
        "ABOVE": paragraphs(line.strip() for line in above),
        "TABLE": table(cells(evaluation)),
        "BELOW": paragraphs(below),
        "GROUPS": _groups(evaluation.groups),
        "CURVES": "".join(f"<figure>{chart}</figure>" for chart in _charts(evaluation, record)),
        "SHOWN": f"{len(shown):,} of {len(names):,}" if len(shown) < len(names) else "All",
        "IMAGES": "\n".join(_images(parts, names, record, shown)),
        "MOST": f"{_BRIGHT_BITS}",
    }
    write_page(folder / "index.html", "report.html", found)
    with replacing(folder / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(evaluation)), encoding="utf-8")


def write_page(path: pathlib.Path, template: str, found: Mapping[str, str]) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: of the page.
        template: file of this package, with places `<!-- NAME -->`.
        found: what stands there, by name; the style is added.
    """
    package = importlib.resources.files(__package__)
    text = package.joinpath(template).read_text(encoding="utf-8")
    for place, value in {"STYLE": package.joinpath("page.css").read_text(encoding="utf-8"), **found}.items():
        text = text.replace(f"<!-- {place} -->", value)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def paragraphs(lines: Iterable[str]) -> str:
    """Returns a paragraph a line."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def table(rows: Sequence[Sequence[str]], best: Collection[tuple[int, int]] = ()) -> str:
    """Returns a table of a line of titles and rows that begin with their name.

    Args:
        rows: cells as text.
        best: cells that are marked, by number of row below the titles and of column.
    """
    titles, *others = rows
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    body = []
    for number, row in enumerate(others):
        marked = (
            f"<td{' class=best' if (number, column) in best else ''}>{html.escape(cell)}</td>"
            for column, cell in enumerate(row[1:], 1)
        )
        body.append(f'<tr><th scope="row">{html.escape(row[0])}</th>{"".join(marked)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _groups(found: Sequence[groups.Group]) -> str:
    return f'<h2>By group, as trained</h2><div class="scroll">{table(groups.cells(found))}</div>' if found else ""


def _images(parts: Parts, names: Sequence[str], record: Record, shown: np.ndarray) -> Iterator[str]:
    """Sections of the page: gray, samples, truth and uncertainty in one strip."""
    small = len(shown) > MANY_IMAGES
    for part_number, numbers in itertools.groupby(shown, lambda number: number // parts.part_size):
        part = parts.get(part_number, only=("thumbnails", "entropy"))
        for number in numbers:
            at = number % parts.part_size
            samples = part[_TRAINED, "thumbnails"][at]
            bits = record[_TRAINED, "bits"][number]
            tiles = [
                ("gray", part[GRAY, "thumbnails"][at, 0]),
                *((f"{value:.2f} bits", sample) for sample, value in zip(samples, bits, strict=True)),
                ("truth", part["truth", "thumbnails"][at, 0]),
                ("uncertainty", _heat(part[_TRAINED, "entropy"][at], samples.shape[1:3])),
            ]
            strip = np.concatenate([image for _, image in tiles], axis=1)
            error = record[_TRAINED, "ab_error"][number].mean()
            name, captions = html.escape(names[number]), "".join(f"<span>{caption}</span>" for caption, _ in tiles)
            alt = f"{name}: gray, {len(samples)} samples, truth, uncertainty"
            height, width = strip.shape[:2]
            yield (
                f'<section tabindex="0" data-name="{name}" data-error="{error:.4f}" '
                f'data-bits="{record["truth", "bits"][number]:.4f}"><h3>{name} <small>ab error {error:.1f}</small></h3>'
                f'<div class="strip" style="--tiles:{len(tiles)}"><img loading="lazy" decoding="async" '
                f'width="{width}" height="{height}" alt="{alt}" src="{_data(strip, small)}"></div>'
                f'<div class="strip" style="--tiles:{len(tiles)}">{captions}</div></section>'
            )


def _heat(entropy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) bits -> an image of a size, from black, certain, to bright."""
    colors = matplotlib.colormaps["magma"](entropy.astype(np.float32) / _BRIGHT_BITS, bytes=True)[..., :3]
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.NEAREST))


def _data(strip: np.ndarray, small: bool) -> str:
    """An image as a part of a page; small where there are many."""
    image = Image.fromarray(strip)
    if small:
        image = image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70 if small else 88, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _charts(evaluation: Evaluation, record: Record) -> list[str]:
    charts = [_errors_by_rank(evaluation, record), _colorfulness(record), _error_by_bits(record)]
    if evaluation.num_samples > 1:
        charts.insert(1, _best_of(record))
    calibration = evaluation.calibration
    return [*charts, _ranks(calibration), _reliability(calibration), _coverage(calibration)]


def _errors_by_rank(evaluation: Evaluation, record: Record) -> str:
    def draw(axes):
        for row, color in zip(evaluation.rows, _COLORS * 9, strict=False):
            values = np.sort(record[row.name, "ab_error"].mean(axis=1))
            share = (np.arange(len(values)) + 0.5) / len(values) * 100
            axes.plot(share, values, color=color, label=row.name, linewidth=1.6)
        axes.set(xlabel="images, % in order", ylabel="ab error", xlim=(0, 100), ylim=(0, None))
        axes.legend(frameon=False)

    return svg("Error of each way", draw)


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

    return svg("Best of several samples", draw)


def _colorfulness(record: Record) -> str:
    truth, samples = record["truth", "colorfulness"], record[_TRAINED, "colorfulness"]

    def draw(axes):
        axes.scatter(
            np.repeat(truth, samples.shape[1]), samples.ravel(), s=9, alpha=0.6, color=_COLORS[0], linewidths=0
        )
        most = 1.05 * max(truth.max(), samples.max(), 1)
        axes.plot([0, most], [0, most], color="#7a7a7a", linewidth=1)
        axes.set(xlabel="of the truth", ylabel="of samples as trained", xlim=(0, most), ylim=(0, most))

    return svg("Colourfulness", draw)


def _error_by_bits(record: Record) -> str:
    def draw(axes):
        bits, errors = (record[_TRAINED, measure].ravel() for measure in ("bits", "ab_error"))
        axes.scatter(bits, errors, s=9, alpha=0.6, color=_COLORS[0], linewidths=0)
        axes.set(xlabel="bits/pixel of the sample", ylabel="ab error", xlim=(0, None), ylim=(0, None))

    return svg("Likelihood and error of samples", draw)


def _ranks(calibration: Calibration) -> str:
    def draw(axes):
        ranks = np.arange(len(calibration.ranks))
        axes.bar(ranks, [100 * share for share in calibration.ranks], color=_COLORS[0], width=0.8)
        axes.axhline(100 / len(ranks), color=_COLORS[2], linewidth=1, label="samples as the truth")
        axes.set(xlabel="samples that are more probable than the truth", ylabel="images, %", xticks=ranks)
        axes.legend(frameon=False)

    return svg("Rank of the truth's likelihood", draw)


def _reliability(calibration: Calibration) -> str:
    def draw(axes):
        some = [own for own in calibration.reliability if own.share]
        axes.plot([0, 1], [0, 1], color=_COLORS[2], linewidth=1)
        axes.scatter(
            [own.probability for own in some],
            [own.accuracy for own in some],
            s=[8 + 400 * own.share for own in some],
            color=_COLORS[0],
            linewidths=0,
        )
        axes.set(xlabel="probability of the most probable colour", ylabel="share where it is true")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    return svg(f"Pixels' probabilities, expected error {100 * calibration.expected_error:.1f} %", draw)


def _coverage(calibration: Calibration) -> str:
    def draw(axes):
        named = (("the truth's", calibration.coverage), ("another sample's", calibration.sample_coverage))
        for (label, shares), color in zip(named, _COLORS, strict=False):
            if shares:
                axes.plot(np.arange(1, len(shares) + 1), [100 * x for x in shares], "o-", color=color, label=label)
        ticks = np.arange(1, len(calibration.coverage) + 1)
        axes.set(xlabel="samples", ylabel="pixels, %", xticks=ticks, ylim=(0, 100))
        axes.legend(frameon=False)

    return svg("Colour is among the samples'", draw)


def svg(title: str, draw: Callable, height: float = 3.2) -> str:
    """Returns a chart that a function draws on its axes, for a page; its height in inches of a width of 4.6."""
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.grid(alpha=0.25)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
