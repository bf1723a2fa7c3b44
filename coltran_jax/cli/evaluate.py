"""Command line: bits per pixel of a run's averaged weights, or what a bundle makes of pictures, against the truth."""

import dataclasses
import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from coltran_jax.cli.runs import define_cluster_flags, read_config, run_face, start_cluster
from coltran_jax.cli.shared import use_huge_pages
from coltran_jax.evaluation import features as feature_networks
from coltran_jax.evaluation.protocols import PROTOCOLS, check_readable, select
from coltran_jax.sampling.options import SamplingOptions, help_of

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration of the run; data and mesh are taken from it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.")
_SPLIT = flags.DEFINE_enum("split", "holdout", ["holdout", "test"], "Pictures to evaluate on.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.")
_WATCH = flags.DEFINE_boolean("watch", False, "Evaluate each new checkpoint until the run's last step.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 0, "Pictures to evaluate on; 0 for all.", lower_bound=0)
_MARGINAL = flags.DEFINE_boolean("marginal", False, "First print the bits of two predictions that know no picture.")

_PICTURES = flags.DEFINE_multi_string("pictures", [], "Colour pictures and folders of them, to colorize and compare.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Bundle to colorize --pictures with; the package's own by default.")
_SAMPLES = flags.DEFINE_integer("samples", 3, "Colorizations of each of --pictures.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed of the draws for --pictures.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the draws; by default what the bundle recommends, or 1.")
_MIN_P = flags.DEFINE_float("min_p", None, help_of("min_p") + "; by default what the bundle recommends.")
_OWN_LUMINANCE = flags.DEFINE_boolean(
    "own_luminance", False, "Compare what colorize gives without --square: chroma on the image's own luminance."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "To colorize --pictures in.")
_KERNELS = flags.DEFINE_enum("kernels", "xla", ["xla", "pallas"], "That colorize --pictures; pallas on TPUs only.")
_COLORIZED = flags.DEFINE_multi_string(
    "colorized", [], "MODEL=DIR with another colorizer's NAME.png of all of --pictures, or NAME-1.png, NAME-2.png ..."
)
_PROTOCOL = flags.DEFINE_enum("protocol", "own", list(PROTOCOLS), "Which of --pictures, cut how, compared with which.")
_LIST = flags.DEFINE_string("list", None, "File with the names of the pictures to colorize, one a line.")
_REFERENCE_LIST = flags.DEFINE_string("reference_list", None, "The same of those to compare with.")
_FEATURES = flags.DEFINE_enum(
    "features", None, feature_networks.NAMES, "Network of the Fréchet distance; inception where one is asked for."
)
_FEATURES_WEIGHTS = flags.DEFINE_string("features_weights", None, "Its weights; downloaded where none are given.")
_STATISTICS = flags.DEFINE_string("statistics", None, "File with the real pictures' statistics; made if it is missing.")
_REPORT = flags.DEFINE_string("report", None, "Folder for a page with table, curves and pictures; continued if begun.")
_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "Share --pictures out among all processes and devices.")
_FOLDERS = flags.DEFINE_list("folders", None, "A,B: only the Fréchet distance of the pictures in A to those in B.")
define_cluster_flags()


def main() -> None:
    """Evaluates a run, pictures or folders, as the flags say."""
    run = {"--config": _CONFIG.value, "--workdir": _WORKDIR.value}
    given = {"--pictures": _PICTURES.value or None, "--folders": _FOLDERS.value, **run}
    given = [name for name, value in given.items() if value is not None]
    if len(given) > 1 and not set(given) <= run.keys():
        raise ValueError(f"{given[0]} and {given[1]}: evaluate pictures, two folders or a run; leave one out")
    if given == ["--pictures"]:
        _evaluate_pictures()
        return
    if given == ["--folders"]:
        _compare_folders()
        return
    if len(given) < len(run):
        missing = next(name for name in run if name not in given)
        raise ValueError(f"{missing} is missing; or give --pictures to evaluate a bundle on")
    _evaluate_run()


def _load_features() -> feature_networks.Features:
    name = _FEATURES.value or "inception"
    return feature_networks.load(name, _path(_FEATURES_WEIGHTS.value))


def _path(text: str | None) -> pathlib.Path | None:
    return None if text is None else pathlib.Path(text)


def _evaluate_pictures() -> None:
    """A table, and a line of JSON; with --report also a page."""
    given = {"samples": _SAMPLES.value, "seed": _SEED.value, "temperature": _TEMPERATURE.value, "min_p": _MIN_P.value}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        SamplingOptions(**given)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    protocol = PROTOCOLS[_PROTOCOL.value]
    selection = select(
        protocol, [pathlib.Path(path) for path in _PICTURES.value], _path(_LIST.value), _path(_REFERENCE_LIST.value)
    )
    check_readable([*selection.pictures.values(), *(selection.reference or {}).values()], colors=not protocol.count)
    wants_features = protocol.count or _FEATURES.value or _STATISTICS.value or _FEATURES_WEIGHTS.value
    if wants_features:
        feature_networks.check(_FEATURES.value or "inception", _path(_FEATURES_WEIGHTS.value))
    if _DISTRIBUTED.value:
        if not _REPORT.value:
            raise ValueError("--distributed takes --report=DIR, a folder that all processes share")
        start_cluster()
    from tqdm import tqdm

    from coltran_jax.evaluation.colorized import Source, fakes_of
    from coltran_jax.evaluation.measures import Draws
    from coltran_jax.evaluation.pictures import Inputs, evaluate
    from coltran_jax.evaluation.summary import as_text
    from coltran_jax.pipeline import MINI, load_pipeline

    colorized = fakes_of(selection.pictures, [Source.parse(text) for text in _COLORIZED.value])
    bundle = pathlib.Path(_WEIGHTS.value or MINI)
    pipeline = load_pipeline(bundle, dtype=_DTYPE.value, kernels=_KERNELS.value)
    result = evaluate(
        pipeline,
        Inputs(
            selection,
            colorized,
            _load_features() if wants_features else None,
            _path(_STATISTICS.value),
        ),
        Draws(dataclasses.replace(pipeline.options, **given), _OWN_LUMINANCE.value),
        bundle,
        _path(_REPORT.value),
        progress=lambda total: tqdm(total=total, unit="picture", disable=None).update,
    )
    if result:
        print(as_text(result), end="")
        print(json.dumps(dataclasses.asdict(result)))


def _compare_folders() -> None:
    """A line for people and one of JSON."""
    if len(_FOLDERS.value) != 2:
        raise ValueError(f"--folders={','.join(_FOLDERS.value)}: expected A,B")
    from coltran_jax.evaluation.pictures import compare_folders
    from coltran_jax.evaluation.summary import frechet_notes

    one, other = (pathlib.Path(folder) for folder in _FOLDERS.value)
    distance, frame = compare_folders(one, other, _load_features)
    print("protocol folders")
    print("\n".join(frechet_notes(frame)))
    print(f"{frame.label} of {one} to {other}: {distance:.2f}")
    print(json.dumps({"protocol": "folders", "distance": distance, "frechet": dataclasses.asdict(frame)}))


def _evaluate_run() -> None:
    """A line of JSON for each checkpoint."""
    config = read_config(_CONFIG.value)
    from coltran_jax.networks.chain import COLORIZER

    if _MARGINAL.value and config.network != COLORIZER:
        raise ValueError(f"--marginal is about predicting coarse colours, the configuration is of the {config.network}")
    start_cluster()
    from coltran_jax.training.evaluation import evaluate_checkpoints, simple_bits

    if _MARGINAL.value:
        print(json.dumps(simple_bits(config)), flush=True)
    results = evaluate_checkpoints(
        config,
        pathlib.Path(_WORKDIR.value),
        split=_SPLIT.value,
        step=_STEP.value,
        watch=_WATCH.value,
        num_examples=_NUM_EXAMPLES.value,
    )
    for result in results:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(run_face(main, required=()))
