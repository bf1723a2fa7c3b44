"""The paper's spatial upsampler: gray 256x256 and RGB 64x64 -> RGB 256x256."""

from ml_collections import ConfigDict

from coltran_jax.config import SpatialUpsamplerConfig, to_dict
from coltran_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(
            TrainConfig(
                network="spatial_upsampler",
                model=SpatialUpsamplerConfig(),
                batch_size=32,
                eval_batch_size=16,
                max_train_steps=300_000,
            )
        )
    )
