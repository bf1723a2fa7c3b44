"""The paper's colorizer: gray 64x64 -> 512 coarse colours 64x64, autoregressive; and the ablations of its section 5."""

from ml_collections import ConfigDict

from coltran_jax.config import ColorizerConfig
from coltran_jax.training.config import TrainConfig
from coltran_jax.training.variants import choose

NO_ATTENTION = {f"model.decoder.cond_att_{z}": False for z in "qkv"}
NO_MLP = {"model.decoder.cond_mlp": ""}
NO_NORM = {"model.decoder.cond_ln": False}
BASELINE = {**NO_ATTENTION, **NO_MLP, **NO_NORM}

VARIANTS = {
    "coltran": ("every conditional layer", {}),
    "baseline": ("ColTran-B: no conditional layers, gray added at the decoders' inputs", BASELINE),
    "baseline_large": (
        "ColTran-B with MLPs four times as wide",
        {
            **BASELINE,
            "model.encoder.ff_size": lambda base: 4 * base.model.encoder.ff_size,
            "model.decoder.ff_size": lambda base: 4 * base.model.decoder.ff_size,
        },
    ),
    "coltran_s": (
        "ColTran-S: 28x28",
        {"downsample_res": 28, "model.resolution": (28, 28), "model.decoder.resolution": (28, 28)},
    ),
    "no_cln": ("no conditional layer norm", NO_NORM),
    "no_cmlp": ("no conditional MLP", NO_MLP),
    "no_catt": ("no conditional attention", NO_ATTENTION),
    "catt_v": (
        "of attention, only v is conditional",
        {"model.decoder.cond_att_q": False, "model.decoder.cond_att_k": False},
    ),
    "scale_only": (
        "contexts scale, never shift",
        {"model.decoder.cond_att_shift": False, "model.decoder.cond_mlp": "scale"},
    ),
    "shift_only": (
        "contexts shift, never scale",
        {"model.decoder.cond_att_scale": False, "model.decoder.cond_mlp": "shift"},
    ),
    "pretrained_stem": (
        "features of a classifier of ImageNet beside the gray embedding, which the paper does not have",
        {"model.encoder.pretrained_stem": "efficientnet-lite0"},
    ),
    "conv_stem": (
        "a convolutional pyramid beside the gray embedding, which the paper does not have",
        {"model.encoder.conv_stem": (128, 256, 384)},
    ),
    "cln_mean": ("conditional layer norm pools with a plain mean", {"model.decoder.cond_ln_sp_ave": "mean"}),
    **{
        f"parallel_{weight:g}": (
            f"the parallel head's loss weighs {weight:g}",
            {"loss_factor": 1.0 - weight, "encoder_loss_factor": weight},
        )
        for weight in (0.0, 0.001, 0.01, 0.1, 0.5)
    },
}


def get_config(variant: str = "coltran") -> ConfigDict:
    base = TrainConfig(network="colorizer", model=ColorizerConfig(), batch_size=224, max_train_steps=450_000)
    return choose(base, VARIANTS, variant)
