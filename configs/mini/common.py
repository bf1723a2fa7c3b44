"""Settings that the training runs of all three networks of `mini` share."""

from coltran_jax.config import NetworkConfig
from coltran_jax.data.config import DataConfig
from coltran_jax.training.config import OptimizerConfig, TrainConfig

# docs/mini.md says how the folder is made. Its file names begin with the name of the collection that they come from;
# small collections come more often in an epoch, as they have the streets, people and landscapes.
DATA = DataConfig(
    dataset="folder", flip=True, min_scale=0.4, num_threads=2, group_pattern="^[^_]+", balance=0.5, on_error="skip"
)


def adam(learning_rate: float) -> OptimizerConfig:
    """Adam with a short warm-up and a cosine down to zero."""
    return OptimizerConfig(
        type="adam", learning_rate=learning_rate, beta2=0.99, warmup_steps=50, schedule="cosine", clip_norm=1.0
    )


def run(network: str, model: NetworkConfig, **fields) -> TrainConfig:
    """A run on a folder of photographs, with other fields where given."""
    common = {
        "polyak_decay": 0.99,
        "eval_batch_size": 8,
        "eval_num_examples": 0,
        "log_every_steps": 50,
        "log_images_every_steps": 0,
        "optimizer": adam(1e-3),
        "data": DATA,
    }
    return TrainConfig(network, model, **{**common, **fields})
