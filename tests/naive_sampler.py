"""The plainest sampler: one teacher-forced pass over the whole image for every pixel, no cache."""

import jax
import jax.numpy as jnp
import numpy as np

from coltran_jax.networks.registry import build


def naive_sample(config, params, gray, noise, temperature=1.0, per_row_norms=False):
    """(B, H, W, 1) uint8 and noise (B, H, W, 512) -> coarse (B, H, W), log-probabilities in bits (B, H, W)."""
    model = build(config)

    @jax.jit
    def logits_at(coarse, row, column):
        apply_kwargs = {"per_row_norms": per_row_norms}
        logits, _ = model.apply({"params": params}, jnp.asarray(gray), coarse, **apply_kwargs)
        return logits[:, row, column]

    height, width = config.resolution
    coarse = np.zeros((len(gray), height, width), np.int32)
    bits = np.zeros(coarse.shape, np.float32)
    for row in range(height):
        for column in range(width):
            logits = logits_at(jnp.asarray(coarse), row, column)
            color = np.asarray(jnp.argmax(logits / temperature + noise[:, row, column], axis=-1))
            coarse[:, row, column] = color
            bits[:, row, column] = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(gray)), color] / np.log(2)
    return coarse, bits
