"""The small colorizer at 32x32, a quarter of the pixels: for sweeps that two CPU cores finish in minutes."""

from ml_collections import ConfigDict

from coltran_jax.training.variants import choose
from configs.colorizer import VARIANTS
from configs.photos_small import small_run


def get_config(variant: str = "coltran") -> ConfigDict:
    return choose(small_run(side=32, max_train_steps=300, save_every_steps=300), VARIANTS, variant)
