"""The paper's color upsampler: gray and coarse colours 64x64 -> RGB 64x64."""

from ml_collections import ConfigDict

from coltran_jax.config import ColorUpsamplerConfig, to_dict
from coltran_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(
            TrainConfig(
                network="color_upsampler", model=ColorUpsamplerConfig(), batch_size=768, max_train_steps=300_000
            )
        )
    )
