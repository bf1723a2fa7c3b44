"""Command line: a page in the browser that colorizes photographs and takes colours that are painted on them."""

import argparse
import importlib.util
import pathlib
import signal
import sys

from coltran_jax.cli.shared import (
    add_compute_options,
    compute_options,
    enable_compilation_cache,
    failing_in_one_line,
    local_path,
    parser_for,
    positive,
)
from coltran_jax.errors import UsageError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_for("coltran demo", __doc__)
    add = parser.add_argument
    add("--weights", type=local_path, metavar="BUNDLE", help="of convert or export (mini, of the package)")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1, this machine alone; 0.0.0.0, all)")
    add("--port", type=positive(int), default=7860, metavar="N", help="(7860)")
    add("--share", choices=("no", "yes"), default="no", help="through a public address of Gradio's, too (no)")
    add("--max_megapixels", type=positive(float), default=24.0, metavar="X", help="of an upload (24)")
    add("--max_megabytes", type=positive(int), default=30, metavar="N", help="of an upload (30)")
    add_compute_options(parser)
    return parser.parse_args(argv)


@failing_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Serves the page until it is interrupted; returns the exit status."""
    args = parse_args(argv)
    for module in ("gradio", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"the demo needs {module}: pip install 'coltran_jax[demo]'")
    enable_compilation_cache()
    from coltran_jax.demo import page
    from coltran_jax.pipeline import MINI, load_pipeline

    limits = page.Limits(args.max_megabytes, args.max_megapixels)
    # Ended by SIGTERM, as containers are, it removes its files, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with page.folder_for_files() as folder:
        pipeline = load_pipeline(args.weights or MINI, compute=compute_options(args))
        built = page.build(pipeline, pathlib.Path(folder), limits)
        print(f"http://{args.host}:{args.port}", flush=True)
        page.launch(built, limits, host=args.host, port=args.port, share=args.share == "yes")
    return 0
