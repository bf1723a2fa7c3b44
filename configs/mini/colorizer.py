"""The colorizer of the bundle `mini`: the real geometry, a small network."""

from ml_collections import ConfigDict

from coltran_jax.config import ColorizerConfig, DecoderConfig, EncoderConfig
from coltran_jax.training.variants import choose
from configs.mini.common import run

VARIANTS = {
    "first": ("from nothing", {}),
    "further": (
        "from the first run's weights, by --init_from",
        {
            "batch_size": 2,
            "optimizer.learning_rate": 1e-3,
            "max_train_steps": 2800,
            "save_every_steps": 400,
            "eval_every_steps": 400,
        },
    ),
}


def get_config(variant: str = "first") -> ConfigDict:
    shape = {"hidden_size": 128, "ff_size": 128, "num_heads": 2}
    model = ColorizerConfig(
        hidden_size=128,
        encoder=EncoderConfig(**shape, num_encoder_layers=1),
        # With the gray picture's context added to its input (skip), 1,600 steps did not teach the decoder to look at
        # colours: 3.42 bits, where the parallel head alone had 3.43. docs/mini.md tells more.
        decoder=DecoderConfig(**shape, num_outer_layers=1, num_inner_layers=1, skip=False),
    )
    first = run("colorizer", model, max_train_steps=1000, save_every_steps=100, eval_every_steps=100)
    return choose(first, VARIANTS, variant)
