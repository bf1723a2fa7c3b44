"""A small colorizer at the real geometry, which two CPU cores train on a folder of photographs in minutes."""

import dataclasses

from ml_collections import ConfigDict

from coltran_jax.config import ColorizerConfig, DecoderConfig, EncoderConfig
from coltran_jax.data.config import DataConfig
from coltran_jax.training.config import OptimizerConfig, TrainConfig
from coltran_jax.training.variants import choose
from configs.colorizer import VARIANTS


def small_run(side: int = 64, **fields) -> TrainConfig:
    """A run of a small colorizer of coarse images `side` by `side`, with other fields where given."""
    shape = {"hidden_size": 64, "ff_size": 64, "num_heads": 2}
    model = ColorizerConfig(
        hidden_size=64,
        resolution=(side, side),
        encoder=EncoderConfig(**shape, num_encoder_layers=1),
        decoder=DecoderConfig(**shape, resolution=(side, side), num_outer_layers=1, num_inner_layers=1),
    )
    common = TrainConfig(
        network="colorizer",
        model=model,
        downsample_res=side,
        batch_size=8,
        max_train_steps=200,
        polyak_decay=0.98,
        log_every_steps=10,
        save_every_steps=100,
        eval_every_steps=50,
        log_images_every_steps=0,
        eval_batch_size=8,
        eval_num_examples=0,
        optimizer=OptimizerConfig(type="adam", learning_rate=3e-3, warmup_steps=20, schedule="cosine"),
        data=DataConfig(dataset="folder", flip=True, min_scale=0.5, num_threads=2),
    )
    return dataclasses.replace(common, **fields)


def get_config(variant: str = "coltran") -> ConfigDict:
    return choose(small_run(), VARIANTS, variant)
