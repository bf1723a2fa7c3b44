"""The paper's spatial upsampler: gray 256x256 and RGB 64x64 -> RGB 256x256."""

from ml_collections import ConfigDict

from coltran_jax.config import SpatialUpsamplerConfig
from coltran_jax.training.config import TrainConfig
from coltran_jax.training.variants import choose

VARIANTS = {
    "coltran": ("from gray and the coarser image", {}),
    "no_gray": ("from the coarser image alone", {"model.use_gray": False}),
}


def get_config(variant: str = "coltran") -> ConfigDict:
    base = TrainConfig(
        network="spatial_upsampler",
        model=SpatialUpsamplerConfig(),
        batch_size=32,
        eval_batch_size=16,
        max_train_steps=300_000,
    )
    return choose(base, VARIANTS, variant)
