"""Position embedding, the axial block and the axial stack (Section 3 of the paper)."""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coltran_jax.config import ColorUpsamplerConfig, DecoderConfig, EncoderConfig
from coltran_jax.nn import initializers
from coltran_jax.nn.attention import AxialAttention, KeyValueCache, over_mesh
from coltran_jax.nn.attention_kernels import LinesCache
from coltran_jax.nn.block_kernel import Given, apply_block, has_room
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.nn.conditioning import Affine, LayerNorm, Mlp


class PositionEmbedding(nn.Module):
    """The sum of a learned vector per row and one per column."""

    features: int
    resolution: tuple[int, int]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        height, width = self.resolution
        init = initializers.normal(self.features**-0.5, (None, None))
        self.rows = self.param("rows", init, (height, self.features))
        self.columns = self.param("columns", init, (width, self.features))

    def __call__(self) -> Float[Array, "H W D"]:
        """Returns the embedding of all positions."""
        return (self.rows[:, None] + self.columns).astype(self.dtype)

    def row(self, index: Int[Array, ""] | int) -> Float[Array, "1 W D"]:
        """Returns the embedding of one row."""
        row = jax.lax.dynamic_index_in_dim(self.rows, index, keepdims=True)
        return (row[:, None] + self.columns).astype(self.dtype)


def constrain(x: Float[Array, "B H W D"], axis: str = "row") -> Float[Array, "B H W D"]:
    """Constrains x to be sharded along the axis that attention does not run along."""
    return nn.with_logical_constraint(x, _cut(axis))


def _cut(axis: str) -> tuple[str | None, ...]:
    return ("batch", "rows", None, None) if axis == "row" else ("batch", None, "columns", None)


@flax.struct.dataclass
class SublayerCondition:
    """Scales and shifts of an `AxialBlock`'s attention and MLP for each position: (B, H, W, ...)."""

    attention: dict[str, Affine]
    mlp: Affine | None


@flax.struct.dataclass
class NormCondition:
    """Scales and shifts of an `AxialBlock`'s two norms, from the averaged context: (B, 1 or H, 1, D)."""

    attention: Affine | None
    mlp: Affine | None


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The shape that all axial blocks of a stack or of a decoder share.

    Attributes:
        features: D, the model width.
        hidden_features: F, the width of the MLP.
        num_heads: N.
        resolution: (H, W).
        dropout: rate.
        compute: how they compute.
    """

    features: int
    hidden_features: int
    num_heads: int
    resolution: tuple[int, int]
    dropout: float = 0.0
    compute: Compute = DEFAULT

    @classmethod
    def of(
        cls, config: EncoderConfig | DecoderConfig | ColorUpsamplerConfig, resolution: tuple[int, ...], compute: Compute
    ) -> "BlockSpec":
        """Returns the specification that a configuration describes."""
        rows, columns = resolution
        shape = (config.hidden_size, config.ff_size, config.num_heads)
        return cls(*shape, (rows, columns), config.dropout, compute)


class AxialBlock(nn.Module):
    """Attention along one axis and an MLP, each x <- norm(x + dropout(sublayer(x))).

    Attributes:
        spec: what it shares with other blocks.
        axis: "row" or "column".
        causal: whether attention sees earlier positions only.
        conditioning: the switches of conditional layers; None for none.
        context_features: C of the sublayers' context.
    """

    spec: BlockSpec
    axis: str
    causal: bool = False
    conditioning: DecoderConfig | None = None
    context_features: int = 0

    def setup(self):
        spec, switches = self.spec, self.conditioning
        attention, mlp, norm = {}, {}, {}
        if switches is not None:
            attention = {
                "conditional": "".join(z for z in "qkv" if getattr(switches, f"cond_att_{z}")),
                "context_features": self.context_features,
                "scale": switches.cond_att_scale,
                "shift": switches.cond_att_shift,
                "activation": switches.cond_att_act,
                "condition_init": switches.cond_att_init,
            }
            mlp = {"conditional": switches.cond_mlp, "activation": switches.cond_mlp_act}
        if switches is not None and switches.cond_ln:
            norm = {
                "resolution": spec.resolution,
                "spatial_average": switches.cond_ln_sp_ave,
                "sequence": switches.cond_ln_seq,
                "activation": switches.cond_ln_act,
                "kernel_init": switches.cond_ln_init,
            }
        length = spec.resolution[1] if self.axis == "row" else spec.resolution[0]
        self.attention = AxialAttention(
            spec.features, spec.num_heads, length, self.axis, self.causal, compute=spec.compute, **attention
        )
        dtype = spec.compute.dtype
        self.attention_norm = LayerNorm(spec.features, dtype=dtype, **norm)
        self.mlp = Mlp(spec.features, spec.hidden_features, dtype=dtype, **mlp)
        self.mlp_norm = LayerNorm(spec.features, dtype=dtype, **norm)
        self.drop = nn.Dropout(spec.dropout)

    def condition(self, context: Float[Array, "B H W C"]) -> SublayerCondition:
        """Projects the context of an image, or of some of its rows or pixels."""
        # Context and activations must be cut alike. XLA's partitioner has been seen to lose parts of the gradient of a
        # projection whose input is cut along rows and whose output along columns (jax 0.10.2, data x spatial).
        context = self._constrain(context)
        return SublayerCondition(self.attention.condition(context), self.mlp.condition(context))

    def condition_norms(self, context: Float[Array, "B H W D"], *, per_row: bool = False) -> NormCondition:
        """Projects the context of a whole image for the norms; see `LayerNorm.condition`."""
        return NormCondition(
            self.attention_norm.condition(context, per_row=per_row), self.mlp_norm.condition(context, per_row=per_row)
        )

    def whole(
        self,
        x: Float[Array, "B H W D"],
        context: Float[Array, "B H W C"] | None = None,
        norm_condition: NormCondition | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B H W D"]:
        """Computes the whole image from the context of its sublayers, by one kernel where the backend has it."""
        if self._is_one_kernel(x.shape, norm_condition, deterministic):
            return self._in_one_kernel(x, context, norm_condition)
        return self(x, None if context is None else self.condition(context), norm_condition, deterministic)

    def _is_one_kernel(self, shape: tuple[int, ...], norm_condition: NormCondition | None, deterministic: bool) -> bool:
        dropping = self.spec.dropout and not deterministic
        compute = self.spec.compute
        if not compute.uses_pallas or self.is_initializing() or dropping:
            return False
        params = self.variables["params"]
        if not has_room(params, shape, self.axis, compute.dtype, compute.interpret, gradient=not deterministic):
            return False
        # Conditions of norms that differ from row to row are for evaluation, as the release samples.
        if any(part.shape[1] > 1 for part in jax.tree.leaves(norm_condition)):
            return False
        if not nn.get_logical_axis_rules():
            return True
        # A kernel on a mesh sees its device's lines, and sums over all features.
        (heads,) = nn.logical_to_mesh_axes(("heads",))
        return jax.sharding.get_abstract_mesh().shape[heads] == 1

    def _in_one_kernel(self, x, context, norm_condition):
        compute, cut = self.spec.compute, _cut(self.axis)
        norms = [None, None] if norm_condition is None else [norm_condition.attention, norm_condition.mlp]
        context = context.astype(compute.dtype) if self.attention.conditional or self.mlp.conditional else None
        apply = functools.partial(
            apply_block, axis=self.axis, switches=self.conditioning, dtype=compute.dtype, interpret=compute.interpret
        )
        apply = over_mesh(apply, (Given(cut, cut, ("batch",)), (), ()), cut)
        given = Given(x, context, jax.tree.map(lambda part: part[:, 0], norms))
        return apply(given, self.variables["params"], self.attention.bias())

    def __call__(
        self,
        x: Float[Array, "B H W D"],
        condition: SublayerCondition | None = None,
        norm_condition: NormCondition | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B H W D"]:
        """Computes the whole image from its conditions."""
        x = self._constrain(x)
        attended = self.attention(x, condition and condition.attention)
        return self._finish(x, attended, condition, norm_condition, deterministic)

    def step(
        self,
        x: Float[Array, "B H W D"],
        cache: KeyValueCache | LinesCache,
        index: Int[Array, ""] | int,
        condition: SublayerCondition | None = None,
        norm_condition: NormCondition | None = None,
    ) -> tuple[Float[Array, "B H W D"], KeyValueCache | LinesCache]:
        """Some positions of the attended axis; see `AxialAttention.step`."""
        attended, cache = self.attention.step(x, cache, index, condition and condition.attention)
        return self._finish(x, attended, condition, norm_condition, True), cache

    def _finish(self, x, attended, condition, norm_condition, deterministic):
        x = self._add_and_norm(
            x, attended, self.attention_norm, norm_condition and norm_condition.attention, deterministic
        )
        y = self.mlp(x, condition and condition.mlp)
        return self._add_and_norm(x, y, self.mlp_norm, norm_condition and norm_condition.mlp, deterministic)

    def _add_and_norm(self, x, y, norm, affine, deterministic):
        x = norm(x + self.drop(y, deterministic=deterministic), affine)
        return self._constrain(x)

    def _constrain(self, x: jax.Array) -> jax.Array:
        return constrain(x, self.axis)


def block_class(compute: Compute) -> type[AxialBlock]:
    """Returns the block whose gradients are computed as `Compute.remat` says."""
    if compute.remat == "none":
        return AxialBlock
    policies = {"block": None, "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    return nn.remat(AxialBlock, static_argnums=(4,), methods=["__call__"], policy=policies[compute.remat])


class AxialStack(nn.Module):
    """Position embedding, then per layer a row block and a column block: the body of encoder and upsamplers.

    Attributes:
        spec: of the blocks.
        num_layers: pairs of blocks.
    """

    spec: BlockSpec
    num_layers: int

    def setup(self):
        spec = self.spec
        self.position = PositionEmbedding(spec.features, spec.resolution, spec.compute.dtype)
        block = block_class(spec.compute)
        self.blocks = [block(spec, axis) for _ in range(self.num_layers) for axis in ("row", "column")]

    def __call__(self, x: Float[Array, "B H W D"], *, deterministic: bool = True) -> Float[Array, "B H W D"]:
        """Applies all blocks."""
        x = x + self.position()
        for block in self.blocks:
            x = block.whole(x, deterministic=deterministic)
        return x
