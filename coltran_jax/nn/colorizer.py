"""The colorizer: gray encoder, parallel head, outer and inner decoder (Section 4.1 of the paper).

Training and sampling run the same modules with the same parameters, by two paths: a whole image at once (`__call__`),
or row by row (outer decoder) and pixel by pixel (inner decoder) against explicit caches.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Integer, UInt8

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
from coltran_jax.nn.pretrained_stem import PretrainedStem

Caches = tuple[KeyValueCache | LinesCache, ...]


def look_up(table: Float[Array, "V D"], symbols: Integer[Array, "*shape"]) -> Float[Array, "*shape D"]:
    """Returns rows of a table."""
    # A whole table on every device: a cut one would scatter the images' vectors over the devices.
    return jnp.take(nn.with_logical_constraint(table, (None, None)), symbols, axis=0, mode="clip")


class Embedding(nn.Module):
    """One vector a symbol, the same as a one-hot product."""

    num_symbols: int
    features: int
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.kernel = self.param("kernel", initializers.kernel(("symbols", "embed")), (self.num_symbols, self.features))
        if self.use_bias:
            self.bias = self.param("bias", initializers.zeros(("embed",)), (self.features,))

    def __call__(self, symbols: Integer[Array, "*shape"]) -> Float[Array, "*shape D"]:
        x = look_up(self.kernel, symbols)
        return (x + self.bias if self.use_bias else x).astype(self.dtype)


class GrayEncoder(nn.Module):
    """The encoder of the grayscale image, an axial stack, whose result z conditions the decoders."""

    config: ColorizerConfig
    compute: Compute = DEFAULT

    def setup(self):
        encoder, dtype = self.config.encoder, self.compute.dtype
        self.embedding = Embedding(256, encoder.hidden_size, use_bias=True, dtype=dtype)
        if encoder.conv_stem:
            self.conv_stem = ConvStem(encoder.conv_stem, encoder.hidden_size, dtype)
        if encoder.pretrained_stem:
            self.pretrained_stem = PretrainedStem(encoder.hidden_size, encoder.stem_dropout, dtype)
        self.stack = AxialStack(BlockSpec.of(encoder, self.config.resolution, self.compute), encoder.num_encoder_layers)

    def __call__(self, gray: UInt8[Array, "B H W 1"], *, deterministic: bool = True) -> Float[Array, "B H W D"]:
        x = self.embedding(gray[..., 0])
        if self.config.encoder.conv_stem:
            x = x + self.conv_stem(gray)
        if self.config.encoder.pretrained_stem:
            x = x + self.pretrained_stem(gray, deterministic=deterministic)
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

    def condition(self, z: Float[Array, "B H W D"]) -> tuple[SublayerCondition, ...]:
        """Projects z of an image, or of some of its rows, for the blocks in order."""
        return tuple(block.condition(z) for block in self.blocks)

    def condition_norms(self, z: Float[Array, "B H W D"]) -> tuple[NormCondition, ...]:
        """Projects z of a whole image for the norms of the blocks in order."""
        return tuple(block.condition_norms(z) for block in self.blocks)

    def __call__(
        self, embedded: Float[Array, "B H W D"], z: Float[Array, "B H W D"], *, deterministic: bool = True
    ) -> Float[Array, "B H W D"]:
        """Returns the context of embedded pixels and z; that of row r comes from rows above r."""
        x = embedded + self.position()
        if self.config.skip:
            x = x + z
        for block, norm_condition in zip(self.blocks, self.condition_norms(z), strict=True):
            x = block.whole(x, z, norm_condition, deterministic=deterministic)
        return constrain(jnp.pad(constrain(x), ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1])

    def empty_caches(self, batch: int) -> Caches:
        """Caches for `step`, one a column block."""
        return tuple(block.attention.empty_cache(batch, self.config.resolution[1]) for block in self.column_blocks)

    def step(
        self,
        embedded: Float[Array, "B 1 W D"],
        z: Float[Array, "B 1 W D"],
        row: Int[Array, ""] | int,
        caches: Caches,
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
    ) -> tuple[Float[Array, "B 1 W D"], Caches]:
        """Returns the context of the row below a finished row, of its embedded pixels and z, and the new caches."""
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

    def condition(self, z: Float[Array, "B H W D"], context: Float[Array, "B H W D"]) -> tuple[SublayerCondition, ...]:
        """Projects z and the outer context of an image, or of some of its rows, for the blocks in order."""
        both = self._both(z, context)
        return tuple(block.condition(both) for block in self.blocks)

    def _both(self, z, context):
        return jnp.concatenate([z, context], axis=-1)

    def condition_norms(self, z: Float[Array, "B H W D"], *, per_row: bool = False) -> tuple[NormCondition, ...]:
        """Projects z of a whole image for the norms. Never the context: that would leak the future."""
        return tuple(block.condition_norms(z, per_row=per_row) for block in self.blocks)

    def base(
        self, position: Float[Array, "#H W D"], z: Float[Array, "B H W D"], context: Float[Array, "B H W D"]
    ) -> Float[Array, "B H W D"]:
        """Returns what is added to the embedded pixels: position and, with `skip`, z and the outer context."""
        return position + z + context if self.config.skip else jnp.broadcast_to(position, z.shape)

    def __call__(
        self,
        embedded: Float[Array, "B H W D"],
        z: Float[Array, "B H W D"],
        context: Float[Array, "B H W D"],
        *,
        per_row_norms: bool = False,
        deterministic: bool = True,
    ) -> Float[Array, "B H W D"]:
        """Computes each pixel's features from the embedded pixels before it, z and the outer context."""
        x = self._shifted(embedded) + self.base(self.position(), z, context)
        both, norm_conditions = self._both(z, context), self.condition_norms(z, per_row=per_row_norms)
        for block, norm_condition in zip(self.blocks, norm_conditions, strict=True):
            x = block.whole(x, both, norm_condition, deterministic=deterministic)
        return x

    def _shifted(self, embedded):
        """Returns each pixel's left neighbour; zeros at the left edge."""
        return jnp.pad(embedded, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]

    def rows(
        self,
        embedded: Float[Array, "B H W D"],
        base: Float[Array, "B H W D"],
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
    ) -> Float[Array, "B H W D"]:
        """Computes whole rows at once, each pixel's features from the embedded pixels before it and `base`."""
        x = self._shifted(embedded) + base
        for block, condition, norm in zip(self.blocks, conditions, norm_conditions, strict=True):
            x = block(x, condition, norm)
        return x

    def empty_caches(self, batch: int) -> Caches:
        """Caches for `step`, one a block."""
        return tuple(block.attention.empty_cache(batch, 1) for block in self.blocks)

    def step(
        self,
        x: Float[Array, "B 1 Q D"],
        column: Int[Array, ""] | int,
        caches: Caches,
        conditions: tuple[SublayerCondition, ...],
        norm_conditions: tuple[NormCondition, ...],
    ) -> tuple[Float[Array, "B 1 Q D"], Caches]:
        """Computes Q pixels from a column on, from their embedded left neighbours plus `base`."""
        new_caches = []
        for i, block in enumerate(self.blocks):
            x, cache = block.step(x, caches[i], column, conditions[i], norm_conditions[i])
            new_caches.append(cache)
        return x, tuple(new_caches)


class Colorizer(nn.Module):
    """A distribution over coarse images, given a grayscale image.

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
        self,
        gray: UInt8[Array, "B H W 1"],
        coarse: Int[Array, "B H W"],
        *,
        per_row_norms: bool = False,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B H W V"], Float[Array, "B H W V"] | None]:
        """Logits of every pixel given those before it (teacher forcing).

        Args:
            gray: the grayscale image.
            coarse: coarse colours, 0..511.
            per_row_norms: condition the inner decoder's norms row by row, as the release samples; see docs/paper.md.
            deterministic: no dropout; otherwise a "dropout" key is needed.

        Returns:
            Logits of the 512 coarse colours, float32, and those of the parallel head, None where there is no such head.
        """
        z = constrain(self.encode(gray, deterministic=deterministic))
        embedded = constrain(self.pixel_embedding(coarse))
        context = self.outer_decoder(embedded, z, deterministic=deterministic)
        x = self.inner_decoder(embedded, z, context, per_row_norms=per_row_norms, deterministic=deterministic)
        parallel = constrain(self.parallel_logits(z)) if self.config.stage == "encoder_decoder" else None
        return constrain(self.logits(x)), parallel

    def encode(self, gray: UInt8[Array, "B H W 1"], *, deterministic: bool = True) -> Float[Array, "B H W D"]:
        """Returns z, what the decoders know of the grayscale image."""
        return self.encoder(gray, deterministic=deterministic)

    def parallel_logits(self, z: Float[Array, "*shape D"]) -> Float32[Array, "*shape V"]:
        """Returns logits of each pixel on its own."""
        return self.parallel_head(z).astype(jnp.float32)

    def logits(self, x: Float[Array, "*shape D"]) -> Float32[Array, "*shape V"]:
        """Returns the logits of what the inner decoder computed."""
        return self.head(self.final_norm(x)).astype(jnp.float32)

    # The parts of the sampler's loop, whose order and carry are in `coltran_jax.sampling`.

    def begin(
        self, z: Float[Array, "B H W D"], per_row_norms: bool
    ) -> tuple[tuple[NormCondition, ...], tuple[NormCondition, ...]]:
        """Computes the norms' conditions of outer and inner decoder, which depend on z alone."""
        outer = self.outer_decoder.condition_norms(z)
        return outer, self.inner_decoder.condition_norms(z, per_row=per_row_norms)

    def empty_caches(self, batch: int) -> tuple[Caches, Caches]:
        """Caches of outer and inner decoder."""
        return self.outer_decoder.empty_caches(batch), self.inner_decoder.empty_caches(batch)

    def condition_outer(self, z: Float[Array, "B 1 W D"]) -> tuple[SublayerCondition, ...]:
        """Projects z of one row for the outer decoder's blocks."""
        return self.outer_decoder.condition(z)

    def begin_row(
        self, row: Int[Array, ""] | int, z: Float[Array, "B 1 W D"], context: Float[Array, "B 1 W D"]
    ) -> tuple[Float[Array, "B 1 W D"], tuple[SublayerCondition, ...]]:
        """Computes a row's `base` and conditions of the inner decoder from its z and outer context."""
        base = self.inner_decoder.base(self.inner_decoder.position.row(row), z, context)
        return base, self.inner_decoder.condition(z, context)

    def embed(self, coarse: Int[Array, "*shape"]) -> Float[Array, "*shape D"]:
        """Embeds coarse colours, 0..511."""
        return self.pixel_embedding(coarse)

    def decode_pixels(
        self, x: Float[Array, "B 1 Q D"], column, caches: Caches, conditions, norm_conditions
    ) -> tuple[Float32[Array, "B 1 Q V"], Caches]:
        """Returns the logits of Q pixels from a column on, and the new caches; see `InnerDecoder.step`."""
        x, caches = self.inner_decoder.step(x, column, caches, conditions, norm_conditions)
        return self.logits(x), caches

    def guess(self, z: Float[Array, "B 1 W D"]) -> Float32[Array, "B 1 W V"]:
        """Returns the logits of a row's pixels from z alone; zeros where there is no parallel head."""
        if self.config.stage == "encoder_decoder":
            return self.parallel_logits(z)
        return jnp.zeros((*z.shape[:-1], NUM_COARSE_COLORS), jnp.float32)

    def decode_row(
        self, coarse: Int[Array, "B 1 W"], base: Float[Array, "B 1 W D"], conditions, norm_conditions
    ) -> Float32[Array, "B 1 W V"]:
        """Returns the logits of all pixels of a row at once, each from the colours before it."""
        return self.logits(self.inner_decoder.rows(self.embed(coarse), base, conditions, norm_conditions))

    def finish_row(
        self, coarse: Int[Array, "B 1 W"], z: Float[Array, "B 1 W D"], row, caches: Caches, conditions, norm_conditions
    ) -> tuple[Float[Array, "B 1 W D"], Caches]:
        """Returns the outer context of the row below a finished row, and the new caches; see `OuterDecoder.step`."""
        return self.outer_decoder.step(self.embed(coarse), z, row, caches, conditions, norm_conditions)
