"""The Colorization Transformer (Kumar et al., ICLR 2021) in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_pipeline"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a command line that only prints an error need not wait for JAX.
    if name == "load_pipeline":
        from coltran_jax.pipeline import load_pipeline

        return load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
