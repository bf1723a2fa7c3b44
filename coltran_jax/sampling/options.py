"""The options of the sampler, in one object that the command line, the Python API and the evaluation share."""

import dataclasses
import math
from typing import Any

# How a row is decoded; both decoders give the same colours.
DECODERS = ("sequential", "fixed_point")

# What the best of several draws is chosen by; see `coltran_jax.sampling.ranking`.
RANKS = ("bits", "colorfulness", "consensus")

# Fields that the metadata of a bundle may recommend for its networks.
RECOMMENDED = ("temperature", "min_p", "guidance")


# When a manifest has an option. Those that were added after the first manifests are there if they are not at their
# defaults; the decoders draw the same colours, and how many particles there are matters with known colours alone.
_ALWAYS, _CHANGED, _NEVER = "always", "changed", "never"


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, recorded: str = _ALWAYS) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "recorded": recorded})


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """A frozen set of sampling options. The help text of each field documents it on the command line, too.

    Raises:
        ValueError: a value that cannot be used; the message has the field and what was expected.
    """

    samples: int = _option(1, "different colorizations of each image")
    seed: int = _option(0, "random seed; an image gets the same colours for it, whatever else is in the batch")
    temperature: float = _option(1.0, "below 1, more probable colours")
    min_p: float = _option(0.0, "never draw colours less probable than this times the most probable one's")
    top_p: float = _option(
        1.0, "draw only from the most probable colours that together have this probability", recorded=_CHANGED
    )
    guidance: float = _option(
        0.0,
        "favour colours that the content makes more probable than their gray value does, by this power of the ratio",
        recorded=_CHANGED,
    )
    greedy: bool = _option(False, "the most probable colour of every pixel, no draws")
    best_of: int = _option(
        1, "draw this many and keep the best of them, as many as samples, the best first", recorded=_CHANGED
    )
    rank: str = _option("bits", "what is best: most likely, most colorful, or most like the others", RANKS, _CHANGED)
    shared_noise: bool = _option(
        False, "the same noise for all images, so that the frames of a film do not flicker", recorded=_CHANGED
    )
    particles: int = _option(
        16, "copies of each sample that are decoded together where colours are known", recorded=_NEVER
    )
    as_released: bool = _option(False, "sample as the published release does, not as trained")
    decoder: str = _option(
        "sequential",
        "pixel by pixel, or several in parallel until they converge (fixed_point): the same colours",
        DECODERS,
        _NEVER,
    )

    def __post_init__(self) -> None:
        if not self.samples > 0:
            raise ValueError(f"samples must be above 0, got {self.samples}")
        if not -(2**31) <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number from -2**31 to 2**32 - 1, got {self.seed}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 to 1, got {self.min_p}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be 0 or above, got {self.guidance}")
        if self.best_of != 1 and not self.best_of >= self.samples:
            raise ValueError(f"best_of must be at least the number of samples, {self.samples}, got {self.best_of}")
        if not self.particles > 0:
            raise ValueError(f"particles must be above 0, got {self.particles}")
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}, got {getattr(self, field.name)!r}")

    @property
    def deciding(self) -> dict[str, Any]:
        """Returns the options that decide which colours are drawn, by name, as manifests have them."""
        found = {}
        for field in dataclasses.fields(self):
            value, recorded = getattr(self, field.name), field.metadata["recorded"]
            if recorded == _ALWAYS or (recorded == _CHANGED and value != field.default):
                found[field.name] = value
        return found

    @property
    def num_draws(self) -> int:
        """Returns how many colorizations of each image are drawn, of which `samples` are kept."""
        return max(self.samples, self.best_of)

    @property
    def limits(self) -> tuple[float, float, float | None]:
        """Returns temperature, min_p and top_p, None for no limit, as the sampler takes them."""
        return self.temperature, self.min_p, None if self.top_p == 1 else self.top_p


def help_of(field: str, default: object = None) -> str:
    """Returns the help text of an option with its default, or with another default that a command has."""
    found = next(option for option in dataclasses.fields(SamplingOptions) if option.name == field)
    if isinstance(found.default, bool):
        return found.metadata["help"]
    return f"{found.metadata['help']} ({found.default if default is None else default})"
