"""The spatial upsampler of the bundle `mini`: the real geometry, a small network."""

import dataclasses

from ml_collections import ConfigDict

from coltran_jax.config import SpatialUpsamplerConfig
from coltran_jax.training.variants import as_config_dict
from configs.mini.common import DATA, adam, run


def get_config() -> ConfigDict:
    config = run(
        "spatial_upsampler",
        SpatialUpsamplerConfig(hidden_size=64, ff_size=64, num_heads=2, num_encoder_layers=1),
        batch_size=1,
        eval_batch_size=4,
        eval_num_examples=32,
        polyak_decay=0.998,
        max_train_steps=4000,
        save_every_steps=200,
        eval_every_steps=400,
        log_every_steps=20,
        optimizer=dataclasses.replace(adam(1e-3), type="adamw", weight_decay=0.05),
        # Smaller squares would have to be enlarged to 256x256, and the network would learn to blur.
        data=dataclasses.replace(DATA, min_scale=0.7, jitter=0.2),
    )
    return as_config_dict(config)
