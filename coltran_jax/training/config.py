"""The configuration of a training run: frozen, validated once, unknown fields refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.config import check, check_at_least, check_choice
from coltran_jax.data.config import DataConfig
from coltran_jax.errors import ConfigError
from coltran_jax.networks.registry import NETWORKS
from coltran_jax.nn.compute import compute_for


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; defaults are the paper's RMSprop.

    Attributes:
        type: "rmsprop", "adam" or "adamw".
        learning_rate: after warm-up.
        schedule: "constant", or "cosine" down to zero at the last step.
        warmup_steps: over which the learning rate rises from zero.
        decay: of RMSprop's mean square.
        epsilon: outside the square root.
        beta1, beta2: of Adam.
        weight_decay: of AdamW.
        clip_norm: largest global norm of the gradient; 0 for no limit.
        accumulation_steps: parts of a batch whose gradients are averaged, one after another.
    """

    type: str = "rmsprop"
    learning_rate: float = 3e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    decay: float = 0.9
    epsilon: float = 1e-7
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    accumulation_steps: int = 1

    def __post_init__(self):
        check_choice(self, "type", ("rmsprop", "adam", "adamw"))
        check_choice(self, "schedule", ("constant", "cosine"))
        check_at_least(self, 0, "learning_rate", "warmup_steps", "decay", "epsilon", "weight_decay", "clip_norm")
        check_at_least(self, 1, "accumulation_steps")


def _check_mesh(config: Any) -> None:
    sizes = [getattr(config, field.name) for field in dataclasses.fields(config)]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"mesh is {configs.to_dict(config)}, expected positive sizes and at most one -1")


# A field for each axis of `coltran_jax.partitioning.MESH`: the number of devices along it; -1, on at most one axis, for
# all that the others leave.
MeshConfig = dataclasses.make_dataclass(
    "MeshConfig",
    [(axis.name, int, axis.default) for axis in partitioning.MESH],
    namespace={"__post_init__": _check_mesh, "__module__": __name__},
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        network: "colorizer", "color_upsampler", "spatial_upsampler" or "joint_upsampler".
        model: its configuration.
        seed: of initial weights, order and crops of images, channels and dropout.
        batch_size: images a step, over all devices.
        max_train_steps: after which training ends.
        resolution: side of the squares that images are cropped and resized to.
        downsample_res: side of the coarse images.
        loss_factor: weight of the loss, of the colorizer's decoders; at 0 the gray encoder and the parallel head are
            trained alone, and their loss is the one that is reported.
        encoder_loss_factor: weight of the parallel head's loss.
        input_noise: probability with which each coarse colour that the colorizer's decoders read in training is
            replaced by that of another pixel of the batch.
        polyak_decay: decay of the exponential moving average of the parameters.
        dtype: "float32", "bfloat16", or "auto"; see `coltran_jax.nn.compute.compute_for`.
        remat: see `coltran_jax.nn.compute.Compute`.
        backend: "xla", "pallas", or "auto"; see `compute_for`.
        overlap_all_reduces: whether SparseCores, of TPU v5p and v6e, sum gradients over devices while the backward pass
            goes on.
        on_nonfinite: "stop" at a loss or gradient that is not finite, or "skip" its update.
        log_every_steps, save_every_steps, eval_every_steps, log_images_every_steps: intervals; 0 for never.
        keep_checkpoints: the latest so many; the best by holdout bits is kept beside them.
        eval_batch_size: images at once, over all devices.
        eval_num_examples: holdout images an evaluation during training; 0 for all.
        wandb_project: of Weights & Biases, to report to beside TensorBoard; "" for none.
    """

    network: str
    model: configs.NetworkConfig
    seed: int = 0
    batch_size: int = 224
    max_train_steps: int = 450_000
    resolution: int = 256
    downsample_res: int = 64
    loss_factor: float = 0.99
    encoder_loss_factor: float = 0.01
    input_noise: float = 0.0
    polyak_decay: float = 0.999
    dtype: str = "auto"
    remat: str = "none"
    backend: str = "auto"
    on_nonfinite: str = "stop"
    log_every_steps: int = 100
    save_every_steps: int = 1000
    eval_every_steps: int = 10_000
    log_images_every_steps: int = 10_000
    keep_checkpoints: int = 3
    eval_batch_size: int = 64
    eval_num_examples: int = 10_000
    wandb_project: str = configs.added("")
    overlap_all_reduces: bool = configs.added(False)
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def __post_init__(self):
        check_choice(self, "dtype", ("auto", "float32", "bfloat16"))
        check_choice(self, "remat", configs.REMAT)
        check_choice(self, "backend", ("auto", *configs.BACKENDS))
        check_choice(self, "on_nonfinite", ("stop", "skip"))
        check_at_least(
            self, 1, "batch_size", "max_train_steps", "keep_checkpoints", "eval_batch_size", "log_every_steps"
        )
        check_at_least(self, 0, "save_every_steps", "eval_every_steps", "log_images_every_steps", "eval_num_examples")
        check(0 <= self.input_noise < 1, "input_noise", self.input_noise, "a number in [0, 1)")
        check(0 <= self.polyak_decay < 1, "polyak_decay", self.polyak_decay, "a number in [0, 1)")
        if self.batch_size % self.optimizer.accumulation_steps:
            raise ConfigError(
                f"batch_size is {self.batch_size}, expected a multiple of optimizer.accumulation_steps "
                f"({self.optimizer.accumulation_steps})"
            )
        check(*NETWORKS[self.network].check(self))


def for_platform(config: TrainConfig, platform: str) -> TrainConfig:
    """Returns the run with what its dtype and backend "auto" are on devices of a platform, such as "cpu" or "tpu"."""
    compute = compute_for(platform, config.dtype, config.backend)
    return dataclasses.replace(config, dtype=compute.dtype.name, backend=compute.backend)


def from_dict(values: Mapping[str, Any], optional: frozenset[str] = frozenset()) -> TrainConfig:
    """A run from plain values, such as a `ConfigDict`'s; see `coltran_jax.config.from_dict`.

    Raises:
        ConfigError: an unknown, missing or impossible field.
    """
    network = values.get("network")
    if network not in NETWORKS:
        raise ConfigError(f"network is {network!r}, expected one of {', '.join(NETWORKS)}")
    model = {"model": NETWORKS[network].config_class}
    return configs.from_dict(TrainConfig, values, optional=optional, unions=model)


# Fields that were called otherwise when older checkpoints were written.
_RENAMED_FIELDS = {"kernels": "backend", "log_pictures_every_steps": "log_images_every_steps"}


def from_saved(values: Mapping[str, Any]) -> TrainConfig:
    """Returns the run that a checkpoint or a sweep has recorded, by this state of the code or an earlier one.

    Raises:
        ConfigError: fields that no state of the code wrote.
    """
    current = {_RENAMED_FIELDS.get(name, name): value for name, value in values.items()}
    return from_dict(current, configs.ADDED_FIELDS | configs.added_fields(DataConfig, TrainConfig))
