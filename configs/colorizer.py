"""The paper's colorizer: gray 64x64 -> 512 coarse colours 64x64, autoregressive."""

from ml_collections import ConfigDict

from coltran_jax.config import ColorizerConfig, to_dict
from coltran_jax.training.config import TrainConfig


def get_config() -> ConfigDict:
    return ConfigDict(
        to_dict(TrainConfig(network="colorizer", model=ColorizerConfig(), batch_size=224, max_train_steps=450_000))
    )
