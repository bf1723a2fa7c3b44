"""What the training of all three networks of the bundle `mini` has in common."""

from coltran_jax.config import NetworkConfig
from coltran_jax.training.config import DataConfig, OptimizerConfig, TrainConfig


def run(network: str, model: NetworkConfig, **fields) -> TrainConfig:
    """A run on a folder of photographs, with other fields where given."""
    common = {
        "polyak_decay": 0.99,
        "batch_size": 4,
        "eval_batch_size": 8,
        "eval_num_examples": 0,
        "log_every_steps": 20,
        "log_pictures_every_steps": 0,
        "optimizer": OptimizerConfig(
            type="adam", learning_rate=2e-3, warmup_steps=50, schedule="cosine", clip_norm=1.0
        ),
        "data": DataConfig(dataset="folder", flip=True, min_scale=0.5, num_threads=2),
    }
    return TrainConfig(network, model, **{**common, **fields})
