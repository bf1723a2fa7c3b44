"""Command line: bits per pixel of a run's averaged weights, or what a bundle makes of pictures, against the truth."""

import dataclasses
import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from coltran_jax.faces import use_huge_pages
from coltran_jax.runs import define_cluster_flags, read_config, run_face, start_cluster

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
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws for --pictures.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the draws for --pictures.")
define_cluster_flags()


def main() -> None:
    """Evaluates a run or pictures, as the flags say."""
    run = {"--config": _CONFIG.value, "--workdir": _WORKDIR.value}
    given = [name for name, value in run.items() if value is not None]
    if _PICTURES.value and given:
        raise ValueError(f"--pictures and {given[0]}: evaluate either a bundle on pictures or a run; leave one out")
    if _PICTURES.value:
        _evaluate_pictures()
        return
    if len(given) < len(run):
        missing = next(name for name in run if name not in given)
        raise ValueError(f"{missing} is missing; or give --pictures to evaluate a bundle on")
    _evaluate_run()


def _evaluate_pictures() -> None:
    """A table, and a line of JSON."""
    if _TEMPERATURE.value <= 0:
        raise ValueError(f"--temperature is {_TEMPERATURE.value}, expected a positive number")
    from coltran_jax.picture_files import find_pictures

    found = find_pictures([pathlib.Path(path) for path in _PICTURES.value])
    paths = [path for path, _ in found.pictures]
    from tqdm import tqdm

    from coltran_jax.evaluation.pictures import as_text, evaluate, read_truths
    from coltran_jax.pipeline import MINI, load_pipeline

    pipeline = load_pipeline(_WEIGHTS.value or MINI)
    truths = read_truths(pipeline, paths)
    result = evaluate(
        pipeline,
        truths,
        samples=_SAMPLES.value,
        seed=_SEED.value,
        temperature=_TEMPERATURE.value,
        progress=lambda batches: tqdm(batches, unit="batch", disable=None),
    )
    print(as_text(result), end="")
    print(json.dumps(dataclasses.asdict(result)))


def _evaluate_run() -> None:
    """A line of JSON for each checkpoint."""
    config = read_config(_CONFIG.value)
    if _MARGINAL.value and config.network != "colorizer":
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
