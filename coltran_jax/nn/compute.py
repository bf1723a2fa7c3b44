"""Compute options of the networks: precision, rematerialization, backend."""

import dataclasses

import jax.numpy as jnp

from coltran_jax.config import BACKENDS, REMAT, check, check_choice


@dataclasses.dataclass(frozen=True)
class Compute:
    """Says how a network computes. Every choice gives the same results, up to rounding.

    Attributes:
        dtype: of matrix products and activations. Parameters, softmax, norms and logits are float32 anyway.
        remat: what the backward pass computes again instead of keeping it from the forward pass: "none"; "products",
            everything but products with weights, which are most of the arithmetic; "block", everything but the input of
            each axial block.
        backend: what computes attention, whole blocks, and the sampler's inner decoder. "xla" runs on any device;
            "pallas", kernels for TPUs; "pallas_interpreted", the same kernels step by step on any device, for tests.

    Raises:
        ConfigError: an unknown `remat` or `backend`.
    """

    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    backend: str = "xla"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        check_choice(self, "remat", REMAT)
        check_choice(self, "backend", BACKENDS)

    @property
    def uses_pallas(self) -> bool:
        """Returns whether Pallas kernels compute."""
        return self.backend != "xla"

    @property
    def interpret(self) -> bool:
        """Returns whether Pallas kernels are interpreted step by step."""
        return self.backend == "pallas_interpreted"

    def check_platform(self, platform: str) -> None:
        """Raises ConfigError unless devices of a platform, such as "cpu" or "tpu", run the backend."""
        if self.backend == "pallas":
            check(
                platform == "tpu", "backend", self.backend, f"'xla': Pallas is for TPUs, and the devices are {platform}"
            )


# What is taken where nothing else is said.
DEFAULT = Compute()


def compute_for(platform: str, dtype: str = "auto", backend: str = "auto", remat: str = "none") -> Compute:
    """Returns how networks compute on devices of a platform.

    Args:
        platform: of the devices, such as "cpu" or "tpu".
        dtype: see `Compute`, or "auto": float32 on a CPU and bfloat16 elsewhere.
        backend: see `Compute`, or "auto": Pallas kernels on TPUs in bfloat16, and XLA elsewhere.
        remat: see `Compute`.

    Raises:
        ConfigError: as `Compute` does.
    """
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if backend == "auto":
        # Products of float32 take many bfloat16 ones, and kernels of them minutes to compile.
        backend = "pallas" if (platform, dtype) == ("tpu", "bfloat16") else "xla"
    return Compute(jnp.dtype(dtype), remat, backend)
