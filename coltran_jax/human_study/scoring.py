"""Fooling rates from the answers to a study: how often raters took the real image for the fake."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from coltran_jax.errors import StudyError
from coltran_jax.evaluation.bootstrap import bootstrap_means

ORACLE = "oracle"
NO_ANSWER = "no answer to score: none was given, or no rater passed the checks"
# Share of the checks that a rater must get right, where a study does not say.
MIN_CHECKS = 0.8
_SIDES = ("left", "right")
_ANSWER = {"kind", "image", "model", "seed", "fake_side", "picked_side", "shown_ms", "answer_ms"}


@dataclasses.dataclass(frozen=True)
class Results:
    """One rater's answers.

    Attributes:
        path: the file.
        study: number of the study.
        rater: name.
        judged: (image, model, seed, whether the real one was taken for the fake).
        checks: how many of the checks were right, of how many.
        min_checks: share of the checks that a rater must get right, as the study was built with.
    """

    path: pathlib.Path
    study: str
    rater: str
    judged: list[tuple[str, str, str, bool]]
    checks: tuple[int, int]
    min_checks: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """A line of the table.

    Attributes:
        model: its name.
        seed: of the samples, "" where there is one, or `ORACLE`: of each image the seed that fooled most.
        percent: of answers that were fooled, the mean over images.
        error: standard error of that, in percent, by bootstrap over images.
        images: with an answer.
        answers: in all.
    """

    model: str
    seed: str
    percent: float
    error: float
    images: int
    answers: int


def read_results(path: pathlib.Path) -> Results:
    """A file that the study's page gave.

    Raises:
        StudyError: not such a file, or a damaged one.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise StudyError(f"{path}: not answers to a study ({error})") from None
    return results_of(path, values)


def results_of(path: pathlib.Path, values: Any) -> Results:
    """Answers as the study's page gives them, of a file or of a part of one.

    Raises:
        StudyError: something else, or damaged answers.
    """
    if not isinstance(values, dict) or not {"study", "rater", "answers"} <= values.keys():
        raise StudyError(f"{path}: not answers to a study; expected the file that its page downloads")
    judged, right, checks = [], 0, 0
    for number, answer in enumerate(values["answers"], 1):
        if not _is_answer(answer):
            raise StudyError(f"{path}: answer {number} is damaged; ask {values['rater']!r} to download it again")
        found = answer["picked_side"] == answer["fake_side"]
        if answer["kind"] == "judged":
            judged.append((answer["image"], answer["model"], answer["seed"], not found))
        elif answer["kind"] == "check":
            checks += 1
            right += found
    return Results(
        path, values["study"], values["rater"], judged, (right, checks), values.get("min_checks", MIN_CHECKS)
    )


def _is_answer(answer: Any) -> bool:
    return (
        isinstance(answer, dict)
        and answer.keys() >= _ANSWER
        and answer["kind"] in ("practice", "check", "judged")
        and answer["fake_side"] in _SIDES
        and answer["picked_side"] in _SIDES
        and all(isinstance(answer[name], str) for name in ("image", "model", "seed"))
    )


def attentive(results: Sequence[Results], min_checks: float | None = None) -> tuple[list[Results], list[Results]]:
    """Raters who got at least this share of their checks right, and the others.

    Args:
        results: one for each rater.
        min_checks: the share; by default what the study was built with.

    Raises:
        StudyError: results of two studies, or one rater twice.
    """
    raters: dict[str, pathlib.Path] = {}
    for result in results:
        if result.study != results[0].study:
            raise StudyError(f"{result.path}: of another study than {results[0].path}; score them apart")
        if result.rater in raters:
            raise StudyError(f"{result.path} and {raters[result.rater]}: both of the rater {result.rater!r}; leave one")
        raters[result.rater] = result.path
    shares = {result.rater: result.min_checks if min_checks is None else min_checks for result in results}
    kept = [result for result in results if result.checks[0] >= shares[result.rater] * result.checks[1]]
    return kept, [result for result in results if result not in kept]


def fooling_rates(results: Sequence[Results], resamples: int = 10_000, seed: int = 0) -> list[Rate]:
    """Rates of each model and seed, and of the oracle where a model has several seeds (the paper's Table 2).

    An image's rate is the share of its raters who were fooled; a seed's is the mean over images, the oracle's the
    mean over images of the best seed's. Few raters an image flatter the oracle: the best of several noisy shares is
    above the best of the true ones.

    Args:
        results: at least one answer in all.
        resamples: of the images, with replacement, for the standard error.
        seed: of the resampling.

    Raises:
        StudyError: no answer to score.
    """
    counts: dict[str, dict[str, dict[str, list[bool]]]] = {}
    for result in results:
        for image, model, sample, fooled in result.judged:
            counts.setdefault(model, {}).setdefault(sample, {}).setdefault(image, []).append(fooled)
    if not counts:
        raise StudyError(NO_ANSWER)
    rates = []
    for model, samples in counts.items():
        means = {sample: {name: np.mean(x) for name, x in own.items()} for sample, own in samples.items()}
        answers = {sample: sum(map(len, own.values())) for sample, own in samples.items()}
        for sample in sorted(means):
            rates.append(_rate(model, sample, list(means[sample].values()), answers[sample], resamples, seed))
        if len(means) > 1:
            images = {name for own in means.values() for name in own}
            best = [max(own[name] for own in means.values() if name in own) for name in sorted(images)]
            rates.append(_rate(model, ORACLE, best, sum(answers.values()), resamples, seed))
    return rates


def _rate(model: str, sample: str, shares: list[float], answers: int, resamples: int, seed: int) -> Rate:
    error = np.std(bootstrap_means(shares, resamples, seed), ddof=1)
    return Rate(model, sample, 100 * float(np.mean(shares)), 100 * float(error), len(shares), answers)
