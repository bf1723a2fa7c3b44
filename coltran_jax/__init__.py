"""The Colorization Transformer (Kumar et al., ICLR 2021) in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "coltran_jax.pipeline": ("Colorization", "Pipeline", "load_pipeline"),
    "coltran_jax.images.hints": ("KnownColors",),
    "coltran_jax.nn.compute": ("Compute",),
    "coltran_jax.sampling.options": ("SamplingOptions",),
    "coltran_jax.errors": ("ConfigError", "ImageError", "TruncatedError", "WeightsError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    # Imported on first use: a command line that only prints an error need not wait for JAX.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
