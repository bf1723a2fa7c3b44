"""The colorizer of the bundle `mini`: the real geometry, a small network, trained in stages.

Each stage starts from the weights of the one before it, by --init_from; docs/mini.md has the commands.
"""

from ml_collections import ConfigDict

from coltran_jax.config import ColorizerConfig, DecoderConfig, EncoderConfig
from coltran_jax.training.variants import choose
from configs.mini.common import adam, run

SMALL = {
    "resolution": 32,
    "downsample_res": 32,
    "model.resolution": (32, 32),
    "model.decoder.resolution": (32, 32),
    "batch_size": 32,
}

VARIANTS = {
    "content": (
        "the gray encoder and the parallel head alone, at 32x32",
        {**SMALL, "loss_factor": 0.0, "encoder_loss_factor": 1.0, "max_train_steps": 1000},
    ),
    "small": (
        "all of the network, at 32x32",
        {**SMALL, "max_train_steps": 600, "optimizer.learning_rate": 2e-3},
    ),
    "full": ("all of the network, at 64x64", {"optimizer.learning_rate": 1e-3}),
}


def get_config(variant: str = "full") -> ConfigDict:
    shape = {"hidden_size": 128, "ff_size": 128, "num_heads": 2}
    model = ColorizerConfig(
        hidden_size=128,
        encoder=EncoderConfig(
            **shape, num_encoder_layers=1, conv_stem=(64, 128, 224), pretrained_stem="efficientnet-lite0"
        ),
        # With the context of the grayscale image added to its input (skip), a small decoder learns to ignore the
        # colours before it.
        decoder=DecoderConfig(**shape, num_outer_layers=1, num_inner_layers=1, skip=False),
    )
    base = run(
        "colorizer",
        model,
        resolution=64,
        batch_size=4,
        loss_factor=0.7,
        encoder_loss_factor=0.3,
        input_noise=0.1,
        max_train_steps=700,
        save_every_steps=200,
        eval_every_steps=400,
        eval_num_examples=256,
        keep_checkpoints=1,
        optimizer=adam(2e-3),
    )
    return choose(base, VARIANTS, variant)
