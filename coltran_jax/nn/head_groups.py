"""Groups of heads, which the Pallas kernels of blocks compute one after the other, and what they keep in VMEM.

A loop over groups has the instructions of one, and compiles that much faster. Where a context conditions attention, a
head alone keeps the device busy; elsewhere all heads are one group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from coltran_jax.config import DecoderConfig
from coltran_jax.nn.attention_kernels import heads
from coltran_jax.nn.kernel_layers import Weights

# Features of a vector.
_LANES = 128


class Products(NamedTuple):
    """One thing for each product that is computed by groups of heads, such as its kernel; None where there is none.

    Attributes:
        qkv: of x, for queries, keys and values.
        conditions: of the context, for the scales and shifts of these.
        mlp: of the context, for those of the MLP's result.
    """

    qkv: Any
    conditions: Any
    mlp: Any


def kernels_of(weights: Weights) -> Products:
    """Returns the kernels of a block's products by groups of heads."""
    return Products(weights["qkv"], weights.get("context"), weights["mlp"].get("context", {}).get("kernel"))


@flax.struct.dataclass
class Room:
    """The part of VMEM in which a kernel keeps what becomes of a step's P positions.

    Attributes:
        attended: (G, P, D / G), of a group's heads side by side; or the gradient of that.
        products: (G, P, ...) each; of the MLP also the gradient. The others are kept for gradients only, as is what
            follows.
        softmax: (N, P, L) float32, weights.
        of_images: gradients of x and of the context, (P, ...) float32.
    """

    attended: Any
    products: Products
    softmax: Any = None
    of_images: list[Any] | None = None

    @property
    def groups(self) -> int:
        """Returns the number of groups, G."""
        return self.attended.shape[0]

    @classmethod
    def of(
        cls, weights: Weights, bias: jax.Array, images: list[jax.Array | None], positions: int, *, gradient: bool
    ) -> "Room":
        """Returns the shapes for a block, or for its gradient."""
        num_heads, length, _ = bias.shape
        features, dtype = weights["output"].shape[0], weights["output"].dtype
        whole_vectors = features // num_heads % _LANES == 0
        groups = num_heads if "context" in weights and whole_vectors else 1

        def by_group(features: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((groups, positions, features // groups), dtype)

        products = Products(
            *(kernel if kernel is None else by_group(kernel.shape[1]) for kernel in kernels_of(weights))
        )
        if not gradient:
            return cls(by_group(features), Products(None, None, products.mlp))
        return cls(
            attended=by_group(features),
            products=products,
            softmax=jax.ShapeDtypeStruct((num_heads, positions, length), jnp.float32),
            of_images=[
                None if x is None else jax.ShapeDtypeStruct((positions, x.shape[-1]), jnp.float32) for x in images
            ],
        )


def conditioned_letters(switches: DecoderConfig | None) -> str:
    """Returns those of "qkv", queries, keys and values, that a context scales or shifts."""
    return "" if switches is None else "".join(z for z in "qkv" if getattr(switches, f"cond_att_{z}"))


class HeadGroup(NamedTuple):
    """A group of heads.

    Attributes:
        index: of the group.
        groups: G.
        num_heads: in each.
    """

    index: Any
    groups: int
    num_heads: int

    @classmethod
    def each(cls, room: Room, bias: Any, function: Callable[["HeadGroup"], None]) -> None:
        """Applies a function to one group after the other."""

        def body(index, _):
            function(cls(index, room.groups, bias.shape[0] // room.groups))

        jax.lax.fori_loop(0, room.groups, body, None)

    def heads(self, features: int) -> list[tuple[Any, slice]]:
        """Returns each head's number among all, and its part of the group's features."""
        return [(self.index * self.num_heads + n, part) for n, part in heads(self.num_heads, features)]

    def kernels(self, weights: Weights, switches: DecoderConfig | None) -> Products:
        """Returns the group's columns of each kernel, references to parts: such as its queries, keys and values."""
        numbers = (3, len(conditioned_letters(switches)), num_scales_and_shifts(weights))
        parts = zip(kernels_of(weights), numbers, strict=True)
        return Products(*(None if kernel is None else self._columns(kernel, number) for kernel, number in parts))

    def _columns(self, kernel, number):
        if self.groups == 1:
            return [kernel]
        width = kernel.shape[1] // (number * self.groups)
        starts = (pl.multiple_of((part * self.groups + self.index) * width, width) for part in range(number))
        return [kernel.at[:, pl.ds(start, width)] for start in starts]


def num_scales_and_shifts(weights: Weights) -> int:
    """Returns how many arrays a context gives to the MLP's result: 2, scale and shift, 1 for one of them, or 0."""
    kernel = kernels_of(weights).mlp
    return 0 if kernel is None else kernel.shape[1] // weights["output"].shape[1]
