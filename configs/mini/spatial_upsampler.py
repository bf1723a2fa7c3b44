"""The spatial upsampler of the bundle `mini`: the real geometry, a small network."""

from ml_collections import ConfigDict

from coltran_jax.config import SpatialUpsamplerConfig
from coltran_jax.training.variants import as_config_dict
from configs.mini.common import run


def get_config() -> ConfigDict:
    config = run(
        "spatial_upsampler",
        SpatialUpsamplerConfig(hidden_size=64, ff_size=64, num_heads=2, num_encoder_layers=1),
        batch_size=1,
        eval_batch_size=2,
        polyak_decay=0.98,
        max_train_steps=500,
        save_every_steps=250,
        eval_every_steps=250,
    )
    return as_config_dict(config)
