"""The color upsampler of the bundle `mini`: the real geometry, a small network."""

from ml_collections import ConfigDict

from coltran_jax.config import ColorUpsamplerConfig
from coltran_jax.training.variants import as_config_dict
from configs.mini.common import run


def get_config() -> ConfigDict:
    model = ColorUpsamplerConfig(hidden_size=128, ff_size=128, num_heads=2, num_encoder_layers=1)
    config = run("color_upsampler", model, max_train_steps=1600, save_every_steps=200, eval_every_steps=200)
    return as_config_dict(config)
