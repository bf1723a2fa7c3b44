"""The page of the demo, made with Gradio.

Everything a visitor sends or gets lies in one temporary folder, which is removed with the server. Photographs and
samples are removed when the page is left, what was painted a quarter of an hour later.
"""

import dataclasses
import math
import os
import pathlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from typing import Any

from coltran_jax.demo.work import Work, canvas, opened, painted
from coltran_jax.errors import one_line
from coltran_jax.images.hints import KnownColors
from coltran_jax.pipeline import Pipeline
from coltran_jax.sampling.options import SamplingOptions, help_of

EXAMPLES = sorted((pathlib.Path(__file__).parent / "examples").glob("*.jpg"))
_MAX_SAMPLES = 8
_COLORS = ["#4f8fe0", "#3f8a2a", "#c0392b", "#e8c020", "#d8a070", "#8a5238", "#8a5fb0"]
# Seconds after which files of uploads are removed, and between two looks.
_KEPT, _LOOKS = 900, 60


class _Stopped(Exception):
    """The visitor does not want to wait."""


@dataclasses.dataclass(frozen=True)
class _Visit:
    """A page that is open in a browser.

    Attributes:
        stop: set when its visitor does not want to wait.
        folder: of its samples.
        uploads: files that Gradio has received from it.
    """

    stop: threading.Event
    folder: pathlib.Path
    uploads: list[pathlib.Path]

    def close(self) -> None:
        """Ends what is being drawn for it, and removes its files."""
        self.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)
        for file in self.uploads:
            file.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of uploads: megabytes of a file, and megapixels of an image."""

    max_megabytes: int = 30
    max_megapixels: float = 24.0


def folder_for_files() -> tempfile.TemporaryDirectory:
    """Makes the folder for all files of the server, before Gradio is imported, which reads where it is."""
    folder = tempfile.TemporaryDirectory(prefix="coltran-demo-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    # A demo on one's own machine tells nobody that it runs.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return folder


def build(pipeline: Pipeline, folder: pathlib.Path, limits: Limits) -> Any:
    """Builds the page.

    Args:
        pipeline: the networks.
        folder: of `folder_for_files`.
        limits: of uploads.

    Returns:
        The `gradio.Blocks`.
    """
    import gradio as gr

    visits: dict[str, _Visit] = {}
    following = gr.Progress()

    def plainly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function; what it finds wrong becomes a message on the page."""
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), print_exception=False) from None

    def visit_of(request: gr.Request) -> _Visit:
        # By its name a visit could choose a folder elsewhere.
        new = _Visit(threading.Event(), folder / f"visit-{uuid.uuid4().hex}", [])
        return visits.setdefault(request.session_hash, new)

    def open_upload(path: str, request: gr.Request) -> tuple[Any, ...]:
        visit_of(request).uploads.append(pathlib.Path(path))
        return shown_first(pathlib.Path(path), limits.max_megapixels, request)

    def open_example(event: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        return None, *shown_first(EXAMPLES[event.index], math.inf, request)

    def shown_first(path: pathlib.Path, max_megapixels: float, request: gr.Request) -> tuple[Any, ...]:
        work = plainly(opened, path, visit_of(request).folder, max_megapixels)
        return work, canvas(work.image, gray=True), *no_results()

    def no_results() -> tuple[Any, ...]:
        return [], None, None, None, gr.DownloadButton(interactive=False)

    def draw(work: Work, request: Any, progress: Any, **arguments: Any) -> tuple[Any, ...]:
        visit = visits.get(request.session_hash)
        if visit is None:
            return (gr.skip(),) * 6
        visit.stop.clear()

        def report(rows: int, total: int) -> None:
            if visit.stop.is_set():
                raise _Stopped
            progress((rows, total), desc="rows", unit="rows")

        try:
            (result,) = plainly(pipeline.colorize, progress=report, **arguments)
        except _Stopped:
            gr.Info("Stopped.")
            return (gr.skip(),) * 6
        # The page may have been left meanwhile, and nobody would remove the files.
        if visits.get(request.session_hash) is not visit:
            return (gr.skip(),) * 6
        # A sample of before may fill the gallery.
        shown = gr.Gallery(work.show(result), selected_index=None)
        note = ""
        if arguments.get("known"):
            bits, effective = -result.log_evidence_bits.max(), result.effective_particles.max()
            note = f"The known colours take {bits:.0f} bits; effective particles: {effective:.1f}."
        return work, shown, *details(work), note

    def details(work: Work) -> tuple[Any, ...]:
        file = gr.DownloadButton(value=str(work.file(work.chosen)), interactive=True)
        return work.entropy_map(), canvas(work.results[work.chosen], gray=False), file

    def options_of(samples, temperature, min_p, guidance, seed, particles) -> SamplingOptions:
        if seed is None:
            raise ValueError("seed: expected a whole number")
        numbers = {"samples": int(samples), "seed": int(seed), "particles": int(particles)}
        return dataclasses.replace(pipeline.options, temperature=temperature, min_p=min_p, guidance=guidance, **numbers)

    # Gradio gives what the last two name.
    def colorize(
        work, paint, samples, temperature, min_p, guidance, seed, particles, request: gr.Request, progress=following
    ):
        if work is None:
            raise gr.Error("No photograph yet: drop one, or choose an example.", print_exception=False)
        hints = painted(paint["layers"]) if paint else None
        known = None if hints is None else [KnownColors(hints=hints)]
        options = plainly(options_of, samples, temperature, min_p, guidance, seed, particles)
        return draw(work, request, progress, images=[work.image], options=options, known=known)

    # Gradio gives what the last two name.
    def redo(
        work, paint, samples, temperature, min_p, guidance, seed, particles, request: gr.Request, progress=following
    ):
        if work is None or not work.results:
            raise gr.Error("No colours yet: colorize the photograph first.", print_exception=False)
        region = painted(paint["layers"]) if paint else None
        if region is None:
            raise gr.Error("Paint over the region whose colours are to be redone.", print_exception=False)
        known = [KnownColors(redraw=region[..., 3])]
        options = plainly(options_of, samples, temperature, min_p, guidance, seed, particles)
        # By the seed of before the same colours would come again.
        options = dataclasses.replace(options, seed=(options.seed + 1) % 2**32)
        image = work.results[work.chosen]
        return draw(work, request, progress, images=[image], options=options, known=known)

    def stop_drawing(request: gr.Request) -> None:
        visit_of(request).stop.set()

    def choose(work: Work, event: gr.SelectData) -> tuple[Any, ...]:
        work.chosen = event.index
        return work, *details(work)

    def left(request: gr.Request) -> None:
        visit = visits.pop(request.session_hash, None)
        if visit is not None:
            visit.close()

    def editor(name: str, label: str, colors: list[str], size: int, **brush: Any) -> gr.ImageEditor:
        return gr.ImageEditor(
            label=label,
            elem_id=name,
            type="numpy",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(size, colors=colors, default_color=colors[0], **brush),
            height=420,
        )

    with gr.Blocks(title="coltran", delete_cache=(_LOOKS, _KEPT), analytics_enabled=False) as page:
        work = gr.State(None)
        gr.Markdown(
            "# Colorization Transformer\nDrop a photograph, and colorize it. Paint colours that you know on the "
            "grayscale image: the networks draw the others to fit them."
        )
        with gr.Row():
            with gr.Column():
                upload = gr.File(
                    label=f"Photograph, up to {limits.max_megabytes} MB and {limits.max_megapixels:g} megapixels",
                    elem_id="upload",
                    height=110,
                )
                examples = gr.Gallery(
                    [str(path) for path in EXAMPLES],
                    label="Or one of these",
                    allow_preview=False,
                    columns=len(EXAMPLES),
                    height=120,
                    object_fit="cover",
                    buttons=[],
                    elem_id="examples",
                )
                hints = editor("hints", "Known colours: paint them", _COLORS, 24)
                with gr.Row():
                    start = gr.Button("Colorize", variant="primary", elem_id="start")
                    stop = gr.Button("Stop", elem_id="stop")
                with gr.Row():
                    own = pipeline.options
                    samples = gr.Slider(1, _MAX_SAMPLES, 3, step=1, label="samples", info=help_of("samples", 3))
                    seed = gr.Number(own.seed, precision=0, label="seed", info="another seed, other colours")
                with gr.Row():
                    temperature = gr.Slider(
                        0.1, 1.5, own.temperature, step=0.05, label="temperature", info=help_of("temperature")
                    )
                    min_p = gr.Slider(0, 0.5, own.min_p, step=0.01, label="min_p", info=help_of("min_p", own.min_p))
                guidance = gr.Slider(
                    0,
                    2,
                    own.guidance,
                    step=0.05,
                    label="guidance",
                    info=help_of("guidance", own.guidance),
                    visible=pipeline.has_guidance,
                )
                particles = gr.Slider(1, 64, own.particles, step=1, label="particles", info=help_of("particles"))
            with gr.Column():
                gallery = gr.Gallery(
                    label="Samples: click on one to look at it",
                    elem_id="samples",
                    buttons=["download", "fullscreen"],
                    format="png",
                    columns=2,
                    height=420,
                    object_fit="contain",
                )
                download = gr.DownloadButton("Download at full size", interactive=False, elem_id="download")
                note = gr.Markdown(elem_id="note")
                with gr.Tab("Redo a region"):
                    region = editor("region", "Paint over what is to be redone", ["#ffffff"], 60, color_mode="fixed")
                    again = gr.Button("Redo the region", elem_id="again")
                with gr.Tab("Undecided where?"):
                    entropy = gr.Image(label="Entropy of the chosen sample", format="png", elem_id="entropy")
        photograph = [work, hints, gallery, entropy, region, note, download]
        upload.upload(open_upload, [upload], photograph)
        upload.clear(lambda: (None, None, *no_results()), None, photograph)
        examples.select(open_example, None, [upload, *photograph])
        values = [samples, temperature, min_p, guidance, seed, particles]
        drawn = [work, gallery, entropy, region, download, note]
        for button, function, paint in ((start, colorize, hints), (again, redo, region)):
            button.click(
                function,
                [work, paint, *values],
                drawn,
                concurrency_id="networks",
                concurrency_limit=1,
                show_progress_on=[gallery],
            )
        stop.click(stop_drawing, None, None, queue=False)
        gallery.select(choose, [work], [work, entropy, region, download])
        page.unload(left)
    return page


def launch(page: Any, limits: Limits, *, host: str, port: int, share: bool, wait: bool = True) -> None:
    """Serves the page, until it is interrupted if `wait`.

    Raises:
        OSError: the port is taken.
    """
    import gradio as gr

    page.queue(max_size=64).launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=f"{limits.max_megabytes}mb",
        footer_links=[],
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        prevent_thread_lock=not wait,
        quiet=True,
        pwa=False,
        enable_monitoring=False,
    )
