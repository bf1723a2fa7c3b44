"""Fooling rates apart from who saw which images: a logistic model with random effects of raters and images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse, special
from scipy.sparse import linalg

from coltran_jax.errors import StudyError
from coltran_jax.human_study.scoring import NO_ANSWER, Results

# Standard deviation of the prior of a model's log-odds: a model that fools nobody has no infinite ones.
_PRIOR = 10.0
# Logarithms of the spreads that are searched.
_SPREADS = (-5.0, 2.0)
_MAX_STEPS, _NEAR = 100, 1e-8


@dataclasses.dataclass(frozen=True)
class TypicalRate:
    """The rate at which an average image of a model fools an average rater.

    Attributes:
        model: its name.
        percent: the rate.
        low: of its 95 % interval.
        high: of its 95 % interval.
    """

    model: str
    percent: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Effects:
    """Rates of models, and how much raters and images differ.

    Attributes:
        rates: one for each model.
        rater_spread: standard deviation of raters' effects, in log-odds.
        image_spread: standard deviation of images' effects, in log-odds.
    """

    rates: list[TypicalRate]
    rater_spread: float
    image_spread: float


def fit(results: Sequence[Results]) -> Effects:
    """Fits log-odds of an answer being fooled = model + rater + image, raters and images drawn from normal laws.

    Where the real image is one side of every pair, a model's log-odds are its Bradley-Terry strength less that of real
    images; the random effects are what that leaves out. The spreads are those of the largest marginal likelihood, by
    Laplace's approximation; the rates' intervals are those of normal laws around the mode.

    Args:
        results: of attentive raters.

    Raises:
        StudyError: no answer.
    """
    answers = [(model, result.rater, image, fooled) for result in results for image, model, _, fooled in result.judged]
    if not answers:
        raise StudyError(NO_ANSWER)
    models, raters, images, fooled = zip(*answers, strict=True)
    columns = [_indicators(values) for values in (models, raters, images)]
    names = columns[0][0]
    design = sparse.hstack([matrix for _, matrix in columns]).tocsc()
    laplace = _Laplace(design, np.array(fooled, float), [matrix.shape[1] for _, matrix in columns])
    found = optimize.minimize(laplace, np.zeros(2), method="Nelder-Mead", bounds=[_SPREADS] * 2)
    mode, factor = laplace.mode(found.x)
    rates = []
    for number, name in enumerate(names):
        unit = np.zeros(len(mode))
        unit[number] = 1
        reach = 1.96 * np.sqrt(factor.solve(unit)[number])
        rates.append(TypicalRate(name, *(100 * float(special.expit(mode[number] + x)) for x in (0, -reach, reach))))
    rater_spread, image_spread = np.exp(found.x)
    return Effects(rates, float(rater_spread), float(image_spread))


def _indicators(values: Sequence[str]) -> tuple[list[str], sparse.csc_array]:
    """Names in order, and (N, names) with a 1 where a value is that name."""
    names, places = np.unique(values, return_inverse=True)
    ones = (np.ones(len(values)), (np.arange(len(values)), places))
    return list(map(str, names)), sparse.csc_array(ones, shape=(len(values), len(names)))


class _Laplace:
    """Minus the logarithm of the answers' probability, given the logarithms of two spreads, effects integrated out."""

    def __init__(self, design: sparse.csc_array, fooled: np.ndarray, sizes: Sequence[int]):
        self._design, self._fooled, self._sizes = design, fooled, sizes
        self._start = np.zeros(design.shape[1])

    def __call__(self, log_spreads: np.ndarray) -> float:
        mode, factor = self.mode(log_spreads)
        precisions = self._precisions(log_spreads)
        # The signs of a pivoted factor's diagonal cancel: the determinant is positive.
        determinant = np.log(np.abs(factor.U.diagonal())).sum()
        value = self._fit(mode, precisions) + (np.log(precisions).sum() - determinant) / 2
        return -float(value)

    def mode(self, log_spreads: np.ndarray) -> tuple[np.ndarray, linalg.SuperLU]:
        """Returns the most probable effects by Newton's method, and the factor of the precision around them."""
        precisions, values = self._precisions(log_spreads), self._start
        for _ in range(_MAX_STEPS):
            shares = special.expit(self._design @ values)
            gradient = self._design.T @ (self._fooled - shares) - precisions * values
            weighted = self._design.multiply((shares * (1 - shares))[:, None])
            factor = linalg.splu((self._design.T @ weighted + sparse.diags_array(precisions)).tocsc())
            step, before = factor.solve(gradient), self._fit(values, precisions)
            while self._fit(values + step, precisions) < before and np.abs(step).max() > _NEAR:
                step = step / 2
            values = values + step
            if np.abs(step).max() < _NEAR:
                break
        self._start = values
        return values, factor

    def _fit(self, values: np.ndarray, precisions: np.ndarray) -> float:
        """Logarithm of the probability of answers and effects, but for a constant."""
        log_odds = self._design @ values
        likelihood = self._fooled @ log_odds - np.logaddexp(0, log_odds).sum()
        return float(likelihood - (precisions * values**2).sum() / 2)

    def _precisions(self, log_spreads: np.ndarray) -> np.ndarray:
        spreads = [_PRIOR, *np.exp(log_spreads)]
        return np.repeat([spread**-2.0 for spread in spreads], self._sizes)
