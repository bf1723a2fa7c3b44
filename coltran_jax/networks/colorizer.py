"""The colorizer: grayscale image -> coarse colours, autoregressive (Section 4.1 of the paper)."""

import dataclasses

import jax
import jax.numpy as jnp

from coltran_jax.config import ColorizerConfig
from coltran_jax.images import arrays
from coltran_jax.networks.base import Network, coarser, cross_entropy_bits
from coltran_jax.nn.colorizer import Colorizer
from coltran_jax.sampling import noise as noises
from coltran_jax.sampling import sampler


class ColorizerNetwork(Network):
    """Trained on true coarse colours; sampled row by row."""

    name = "colorizer"
    config_class = ColorizerConfig

    def build(self, config, compute):
        return Colorizer(config, compute)

    def example(self, config):
        height, width = config.resolution
        return jnp.zeros((1, height, width, 1), jnp.uint8), jnp.zeros((1, height, width), jnp.int32)

    def pretrained(self, config):
        name = config.encoder.pretrained_stem
        return {("encoder", "pretrained_stem", "trunk"): name} if name else {}

    def without_pretrained(self, config):
        return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, pretrained_stem=""))

    def check(self, run):
        if run.loss_factor == 0 and run.model.stage != "encoder_decoder":
            return False, "loss_factor", 0.0, "above 0 where there is no parallel head"
        side = run.downsample_res
        fits = run.model.resolution == (side, side)
        return fits, "model.resolution", run.model.resolution, f"downsample_res, {side}, twice"

    def bits(self, run, model, params, images, channel=None, noise_key=None, **apply_kwargs):
        del channel
        small = coarser(images, run.downsample_res)
        targets = arrays.coarse_from_rgb(small)
        gray = arrays.gray_from_rgb(small)
        if run.loss_factor == 0:
            loss = cross_entropy_bits(_parallel_logits(model, params, gray, **apply_kwargs), targets)
            return loss, loss
        inputs = targets if noise_key is None else replaced(targets, run.input_noise, noise_key)
        logits, parallel = model.apply({"params": params}, gray, inputs, **apply_kwargs)
        loss = cross_entropy_bits(logits, targets)
        return loss, jnp.zeros_like(loss) if parallel is None else cross_entropy_bits(parallel, targets)

    def total(self, run, loss, encoder_loss):
        return run.loss_factor * loss + run.encoder_loss_factor * encoder_loss

    def metrics(self, run, model, params, images):
        """The bits of the decoders and, as "encoder_bits", those of the parallel head."""
        bits, encoder_bits = self.bits(run, model, params, images)
        return {"bits": bits, "encoder_bits": encoder_bits}

    def draw(self, run, model, params, images, keys):
        small = coarser(images, run.downsample_res)
        noise = noises.SeededNoise(keys, jnp.zeros((len(images), 1), jnp.int32))
        z = sampler.encode(model, params, arrays.gray_from_rgb(small))
        return arrays.rgb_from_coarse(sampler.sample(model, params, z, noise).coarse[:, 0]), small


def _parallel_logits(model, params, gray, **apply_kwargs):
    def encode(model, gray):
        return model.parallel_logits(model.encode(gray, deterministic=apply_kwargs.get("deterministic", True)))

    return model.apply({"params": params}, gray, method=encode, rngs=apply_kwargs.get("rngs"))


def replaced(colors: jax.Array, probability: float, key: jax.Array) -> jax.Array:
    """Replaces some pixels' coarse colours by those of random other pixels: (B, H, W) integers -> (B, H, W)."""
    if not probability:
        return colors
    which, where = jax.random.split(key)
    others = jnp.take(colors.ravel(), jax.random.randint(where, colors.shape, 0, colors.size))
    return jnp.where(jax.random.bernoulli(which, probability, colors.shape), others, colors)
