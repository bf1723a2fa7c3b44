"""The colorizer: gray encoder, parallel head, outer and inner decoder (Section 4.1 of the paper).

Training and sampling run the same modules with the same parameters, by two paths: a whole image at once (`__call__`),
or row by row (outer decoder) and pixel by pixel (inner decoder) against explicit caches.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from coltran_jax.config import ColorizerConfig, DecoderConfig
from coltran_jax.images.arrays import NUM_COARSE_COLORS
from coltran_jax.nn import initializers
from coltran_jax.nn.attention import KeyValueCache
from coltran_jax.nn.attention_kernels import LinesCache
from coltran_jax.nn.axial import (
    AxialBlock,
    AxialStack,
    BlockSpec,
    NormCondition,
    PositionEmbedding,
    SublayerCondition,
    block_class,
    constrain,
)
from coltran_jax.nn.compute import DEFAULT, Compute
from coltran_jax.nn.conditioning import Dense, LayerNorm
from coltran_jax.nn.conv_stem import ConvStem

Caches = tuple[KeyValueCache | LinesCache, ...]


def look_up(table: jax.Array, symbols: jax.Array) -> jax.Array:
    """Rows of a table: (V, D), (...) integers -> (..., D)."""
    # A whole table on every device: a cut one would scatter the images' vectors over the devices.
    return jnp.take(nn.with_logical_constraint(table, (None, None)), symbols, axis=0, mode="clip")


class Embedding(nn.Module):
    """One vector a symbol, the same as a one-hot product: (...) integers -> (..., D)."""

    num_symbols: int
    features: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.kernel = self.param("kernel", initializers.kernel(("symbols", "embed")), (self.num_symbols, self.features))
        if self.use_bias:
            self.bias = self.param("bias", initializers.zeros(("embed",)), (self.features,))

    def __call__(self, symbols: jax.Array) -> jax.Array:
        x = look_up(self.kernel, symbols)
        return (x + self.bias if self.use_bias else x).astype(self.dtype)


class GrayEncoder(nn.Module):
    """gray (B, H, W, 1) uint8 -> z (B, H, W, D), by an axial stack."""

    config: ColorizerConfig
    compute: Compute = DEFAULT

    def setup(self):
        encoder, dtype = self.config.encoder, self.compute.dtype
        self.embedding = Embedding(256, encoder.hidden_size, use_bias=True, dtype=dtype)
        if encoder.conv_stem:
            self.conv_stem = ConvStem(encoder.conv_stem, encoder.hidden_size, dtype)
        self.stack = AxialStack(BlockSpec.of(encoder, self.config.resolution, self.compute), encoder.num_encoder_layers)

    def __call__(self, gray: jax.Array, *, deterministic: bool = True) -> jax.Array:
        x = self.embedding(gray[..., 0])
        if self.config.encoder.conv_stem:
            x = x + self.conv_stem(gray)
        return self.stack(x, deterministic=deterministic)


def _block(decoder: "OuterDecoder | InnerDecoder", axis: str, causal: bool, context_features: int) -> AxialBlock:
    config = decoder.config
    spec = BlockSpec.of(config, config.resolution, decoder.compute)
    return block_class(decoder.compute)(spec, axis, causal, config, context_features)


class OuterDecoder(nn.Module):
    """Context of all rows above: a whole row sees itself and the rows above, then all is shifted down by one."""

    config: DecoderConfig
    compute: Compute = DEFAULT

    def setup(self):
        config = self.config
        self.position = PositionEmbedding(config.hidden_size, config.resolution, self.compute.dtype)
        layers = range(config.num_outer_layers)
        features = config.hidden_size
        self.row_blocks = [_block(self, "row", False, features) for _ in layers]
        self.column_blocks = [_block(self, "column", True, features) for _ in layers]

    @property
    def blocks(self) -> list[AxialBlock]:
        """Row and column blocks in the order in which they are applied."""
        return [block for pair in zip(self.row_blocks, self.column_blocks, strict=True) for block in pair]

    def condition(self, z: jax.Array) -> tuple[SublayerCondition, ...]:
        """Z of an image or some of its rows (B, H, W, D) -> what the blocks take, in order."""
        return tuple(block.condition(z) for block in self.blocks)

    def condition_norms(self, z: jax.Array) -> tuple[NormCondition, ...]:
        """Z of a whole image (B, H, W, D) -> what the blocks' norms take, in order."""
        return tuple(block.condition_norms(z) for block in self.blocks)

    def __call__(self, embedded: jax.Array, z: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Embedded pixels and z, (B, H, W, D) each -> context (B, H, W, D); that of row r comes from rows above r."""
        x = embedded + self.position()
        if self.config.skip:
            x = x + z
        conditions = zip(self.blocks, self.condition(z), self.condition_norms(z), strict=True)
        for block, condition, norm_condition in conditions:
            x = block(x, condition, norm_condition, deterministic)
        return constrain(jnp.pad(constrain(x), ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1])

    def empty_caches(self, batch: int) -> Caches:
        """Caches for `step`, one a column block."""
        return tuple(block.attention.empty_cache(batch, self.config.resolution[1]) for block in self.column_blocks)

    def step(
        self,
        embedded: jax.Array,
        z: jax.Array,
        row: jax.Array,
        caches: Caches,
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
    ) -> tuple[jax.Array, Caches]:
        """A finished row: embedded pixels and z of the row (B, 1, W, D) -> context of the row below it, caches."""
        x = embedded + self.position.row(row)
        if self.config.skip:
            x = x + z
        new_caches = []
        for i, (row_block, column_block) in enumerate(zip(self.row_blocks, self.column_blocks, strict=True)):
            x = row_block(x, conditions[2 * i], norm_conditions[2 * i])
            x, cache = column_block.step(x, caches[i], row, conditions[2 * i + 1], norm_conditions[2 * i + 1])
            new_caches.append(cache)
        return x, tuple(new_caches)


class InnerDecoder(nn.Module):
    """Pixels of a row, each from those before it, z, and the outer context."""

    config: DecoderConfig
    compute: Compute = DEFAULT

    def setup(self):
        config = self.config
        self.position = PositionEmbedding(config.hidden_size, config.resolution, self.compute.dtype)
        self.blocks = [_block(self, "row", True, 2 * config.hidden_size) for _ in range(config.num_inner_layers)]

    def condition(self, z: jax.Array, context: jax.Array) -> tuple[SublayerCondition, ...]:
        """Z and outer context of an image or some of its rows (B, H, W, D) -> what the blocks take, in order."""
        both = jnp.concatenate([z, context], axis=-1)
        return tuple(block.condition(both) for block in self.blocks)

    def condition_norms(self, z: jax.Array, *, per_row: bool = False) -> tuple[NormCondition, ...]:
        """Z of a whole image (B, H, W, D) -> what the norms take. Never the context: that would leak the future."""
        return tuple(block.condition_norms(z, per_row=per_row) for block in self.blocks)

    def base(self, position: jax.Array, z: jax.Array, context: jax.Array) -> jax.Array:
        """Returns what is added to the embedded pixels: position and, with `skip`, z and the outer context."""
        return position + z + context if self.config.skip else jnp.broadcast_to(position, z.shape)

    def __call__(
        self,
        embedded: jax.Array,
        z: jax.Array,
        context: jax.Array,
        *,
        per_row_norms: bool = False,
        deterministic: bool = True,
    ) -> jax.Array:
        """Embedded pixels, z and outer context, (B, H, W, D) each -> (B, H, W, D), each from the pixels before it."""
        base, conditions = self.base(self.position(), z, context), self.condition(z, context)
        return self.rows(embedded, base, conditions, self.condition_norms(z, per_row=per_row_norms), deterministic)

    def rows(
        self,
        embedded: jax.Array,
        base: jax.Array,
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
        deterministic: bool = True,
    ) -> jax.Array:
        """Whole rows at once: embedded pixels and `base` (B, H, W, D) -> (B, H, W, D), each from those before it."""
        shifted = jnp.pad(embedded, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        x = shifted + base
        for block, condition, norm in zip(self.blocks, conditions, norm_conditions, strict=True):
            x = block(x, condition, norm, deterministic)
        return x

    def empty_caches(self, batch: int) -> Caches:
        """Caches for `step`, one a block."""
        return tuple(block.attention.empty_cache(batch, 1) for block in self.blocks)

    def step(
        self,
        x: jax.Array,
        column: jax.Array,
        caches: Caches,
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
    ) -> tuple[jax.Array, Caches]:
        """Q pixels from a column on: embedded left neighbours plus `base`, (B, 1, Q, D) -> (B, 1, Q, D), caches."""
        new_caches = []
        for i, block in enumerate(self.blocks):
            x, cache = block.step(x, caches[i], column, conditions[i], norm_conditions[i])
            new_caches.append(cache)
        return x, tuple(new_caches)


class Colorizer(nn.Module):
    """Gray image -> distribution over coarse images.

    Attributes:
        config: shape and switches.
        compute: how it computes.
    """

    config: ColorizerConfig
    compute: Compute = DEFAULT

    def setup(self):
        config, dtype = self.config, self.compute.dtype
        self.encoder = GrayEncoder(config, self.compute)
        if config.stage == "encoder_decoder":
            self.parallel_head = Dense(NUM_COARSE_COLORS, ("embed", "symbols"), use_bias=False, dtype=dtype)
        self.pixel_embedding = Embedding(NUM_COARSE_COLORS, config.hidden_size, dtype=dtype)
        self.outer_decoder = OuterDecoder(config.decoder, self.compute)
        self.inner_decoder = InnerDecoder(config.decoder, self.compute)
        self.final_norm = LayerNorm(config.hidden_size, dtype=dtype)
        self.head = Dense(NUM_COARSE_COLORS, ("embed", "symbols"), dtype=dtype)

    def __call__(
        self, gray: jax.Array, coarse: jax.Array, *, per_row_norms: bool = False, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array | None]:
        """Logits of every pixel given those before it (teacher forcing).

        Args:
            gray: (B, H, W, 1) uint8.
            coarse: (B, H, W) integers in 0..511.
            per_row_norms: condition the inner decoder's norms row by row, as the release samples; see docs/paper.md.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Returns:
            Logits (B, H, W, 512) float32, and those of the parallel head, None where there is no such head.
        """
        z = constrain(self.encode(gray, deterministic=deterministic))
        embedded = constrain(self.pixel_embedding(coarse))
        context = self.outer_decoder(embedded, z, deterministic=deterministic)
        x = self.inner_decoder(embedded, z, context, per_row_norms=per_row_norms, deterministic=deterministic)
        parallel = constrain(self.parallel_logits(z)) if self.config.stage == "encoder_decoder" else None
        return constrain(self.logits(x)), parallel

    def encode(self, gray: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """(B, H, W, 1) uint8 -> z (B, H, W, D)."""
        return self.encoder(gray, deterministic=deterministic)

    def parallel_logits(self, z: jax.Array) -> jax.Array:
        """Z (..., D) -> logits (..., 512) float32 of each pixel on its own."""
        return self.parallel_head(z).astype(jnp.float32)

    def logits(self, x: jax.Array) -> jax.Array:
        """Result of the inner decoder (..., D) -> logits (..., 512) float32."""
        return self.head(self.final_norm(x)).astype(jnp.float32)

    # The parts of the sampler's loop, whose order and carry are in `coltran_jax.sampling`.

    def begin(self, z: jax.Array, per_row_norms: bool):
        """Computes the norms' conditions of outer and inner decoder, which depend on z (B, H, W, D) alone."""
        outer = self.outer_decoder.condition_norms(z)
        return outer, self.inner_decoder.condition_norms(z, per_row=per_row_norms)

    def empty_caches(self, batch: int) -> tuple[Caches, Caches]:
        """Caches of outer and inner decoder."""
        return self.outer_decoder.empty_caches(batch), self.inner_decoder.empty_caches(batch)

    def condition_outer(self, z: jax.Array) -> tuple[SublayerCondition, ...]:
        """Projects z of one row (B, 1, W, D) for the outer decoder's blocks."""
        return self.outer_decoder.condition(z)

    def begin_row(self, row: jax.Array, z: jax.Array, context: jax.Array):
        """Z and context of a row (B, 1, W, D) -> its inner decoder's base (B, 1, W, D) and conditions."""
        base = self.inner_decoder.base(self.inner_decoder.position.row(row), z, context)
        return base, self.inner_decoder.condition(z, context)

    def embed(self, coarse: jax.Array) -> jax.Array:
        """(...) integers in 0..511 -> (..., D)."""
        return self.pixel_embedding(coarse)

    def decode_pixels(self, x, column, caches, conditions, norm_conditions) -> tuple[jax.Array, Caches]:
        """Q pixels from a column on, (B, 1, Q, D) -> their logits (B, 1, Q, 512), caches."""
        x, caches = self.inner_decoder.step(x, column, caches, conditions, norm_conditions)
        return self.logits(x), caches

    def guess(self, z: jax.Array) -> jax.Array:
        """Logits (B, 1, W, 512) of a row's pixels from z (B, 1, W, D) alone; zeros where there is no parallel head."""
        if self.config.stage == "encoder_decoder":
            return self.parallel_logits(z)
        return jnp.zeros((*z.shape[:-1], NUM_COARSE_COLORS), jnp.float32)

    def decode_row(self, coarse, base, conditions, norm_conditions) -> jax.Array:
        """All pixels of a row at once, each from the colours before it: (B, 1, W) -> logits (B, 1, W, 512)."""
        return self.logits(self.inner_decoder.rows(self.embed(coarse), base, conditions, norm_conditions))

    def finish_row(self, coarse, z, row, caches, conditions, norm_conditions) -> tuple[jax.Array, Caches]:
        """The colours (B, 1, W) of a finished row -> outer context of the row below it (B, 1, W, D), caches."""
        return self.outer_decoder.step(self.embed(coarse), z, row, caches, conditions, norm_conditions)
