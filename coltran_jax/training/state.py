"""The training state and the step."""

import functools
import zlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from coltran_jax.networks.registry import NETWORKS, build, initialize
from coltran_jax.nn.compute import Compute, compute_for
from coltran_jax.nn.parameters import Parameters
from coltran_jax.training import optimizers
from coltran_jax.training.config import TrainConfig


@flax.struct.dataclass
class Bits:
    """Sums over images, from which means are taken once all are known.

    Attributes:
        loss: sum over images of the mean over their pixels (and channels), in bits.
        encoder_loss: the same of the colorizer's parallel head; 0 where there is none.
        count: images.
    """

    loss: jax.Array
    encoder_loss: jax.Array
    count: jax.Array

    def __add__(self, other: "Bits") -> "Bits":
        return jax.tree.map(jnp.add, self, other)


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: number of updates made.
        params: weights, float32.
        ema_params: their exponential moving average, which evaluation and sampling use.
        opt_state: of the optimizer.
    """

    step: jax.Array
    params: Parameters
    ema_params: Parameters
    opt_state: Any


@flax.struct.dataclass
class StepMetrics:
    """Metrics of one step, all float32 scalars.

    Attributes:
        loss_bits: per pixel (and channel), of the decoders or the upsampler.
        encoder_loss_bits: of the colorizer's parallel head.
        total_loss_bits: weighted sum, which is minimised.
        grad_norm: global norm of the gradient before clipping.
        nonfinite: 1 where the loss or the gradient was not finite and the update was left out.
        num_skipped: images that could not be read.
    """

    loss_bits: jax.Array
    encoder_loss_bits: jax.Array
    total_loss_bits: jax.Array
    grad_norm: jax.Array
    nonfinite: jax.Array
    num_skipped: jax.Array


Batch = dict[str, jax.Array]


def stream(seed: int, name: str) -> jax.Array:
    """The key of a named stream of random numbers."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def network(config: TrainConfig) -> nn.Module:
    """Returns the module to train, which computes as the run says."""
    return build(config.model, compute(config))


def compute(config: TrainConfig) -> Compute:
    """Returns how a run computes on the devices at hand."""
    return compute_for(jax.default_backend(), config.dtype, config.backend, config.remat)


def fresh_parameters(config: TrainConfig) -> Parameters:
    """Draws a run's initial parameters, boxed with the names of their axes."""
    return initialize(config.model, stream(config.seed, "initial weights"), boxed=True)


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    pretrained = NETWORKS[config.network].pretrained(config.model)
    return optimizers.build(config.optimizer, config.max_train_steps, pretrained)


def create(config: TrainConfig, params: Parameters | None = None) -> TrainState:
    """A state before the first step, with fresh weights or with those given.

    Under `jax.eval_shape` with boxed parameters it gives the axes' names; see `coltran_jax.partitioning`.
    """
    if params is None:
        params = fresh_parameters(config)
    optimizer = _optimizer(config)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def train_step(config: TrainConfig, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    """One update.

    Args:
        config: the run.
        state: before.
        batch: "images" (B, H, W, 3) uint8 squares; "mask" (B,) float32, 0 where an image could not be read;
            optionally "channel" (B,), which otherwise is drawn from seed and step.

    Returns:
        The state after, and metrics. A loss or gradient that is not finite leaves all but the step as it was.
    """
    kind, model = NETWORKS[config.network], network(config)
    channel = batch.get("channel")
    if channel is None:
        key = jax.random.fold_in(stream(config.seed, "channel"), state.step)
        channel = jax.random.randint(key, batch["mask"].shape, 0, 3)
    dropout = jax.random.fold_in(stream(config.seed, "dropout"), state.step)
    noise = jax.random.fold_in(stream(config.seed, "input noise"), state.step)

    def total_loss(params: Parameters, part: Batch, keys: dict[str, jax.Array]) -> tuple[jax.Array, Bits]:
        loss, encoder_loss = kind.bits(
            config,
            model,
            params,
            part["images"],
            part["channel"],
            noise_key=keys["noise"],
            deterministic=False,
            rngs={"dropout": keys["dropout"]},
        )
        total = kind.total(config, loss, encoder_loss) * part["mask"]
        bits = Bits((part["mask"] * loss).sum(), (part["mask"] * encoder_loss).sum(), part["mask"].sum())
        return total.sum(), bits

    keys = {"dropout": dropout, "noise": noise}
    whole = {"images": batch["images"], "mask": batch["mask"], "channel": channel}
    gradients, total, bits = _accumulated(total_loss, state.params, whole, keys, config.optimizer.accumulation_steps)
    count = jnp.maximum(bits.count, 1)
    gradients = jax.tree.map(lambda g: g / count, gradients)
    total = total / count
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

    optimizer = _optimizer(config)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = config.polyak_decay
    ema_params = jax.tree.map(lambda a, p: a - (1 - decay) * (a - p), state.ema_params, params)
    kept = functools.partial(jnp.where, finite)
    new = TrainState(
        state.step + 1,
        jax.tree.map(kept, params, state.params),
        jax.tree.map(kept, ema_params, state.ema_params),
        jax.tree.map(kept, opt_state, state.opt_state),
    )
    metrics = StepMetrics(
        loss_bits=bits.loss / count,
        encoder_loss_bits=bits.encoder_loss / count,
        total_loss_bits=total,
        grad_norm=grad_norm,
        nonfinite=1.0 - finite,
        num_skipped=(1 - batch["mask"]).sum(),
    )
    return new, metrics


def _accumulated(function, params, batch, keys, parts):
    """Gradients, value and bits of a sum over images, over `parts` parts of the batch, one after another."""
    grad = jax.value_and_grad(function, has_aux=True)
    if parts == 1:
        (total, bits), gradients = grad(params, batch, keys)
        return gradients, total, bits

    # Every part takes images from all over the batch, so that each device has its share of each.
    batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, part):
        index, part = part
        folded = jax.tree.map(lambda key: jax.random.fold_in(key, index), keys)
        (total, bits), gradients = grad(params, part, folded)
        return jax.tree.map(jnp.add, carry, (gradients, total, bits)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (zeros, jnp.zeros(()), Bits(*[jnp.zeros(())] * 3))
    return jax.lax.scan(add, start, (jnp.arange(parts), batch))[0]


def evaluation_step(
    config: TrainConfig, ema_params: Parameters, batch: Batch
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums of what the network reports (see `coltran_jax.networks.base.Network.metrics`), by the EMA parameters.

    Returns:
        Sums over the images of a batch where "mask" (B,) is one, and the number of these.
    """
    mask = batch["mask"]
    values = NETWORKS[config.network].metrics(config, network(config), ema_params, batch["images"])
    return {key: (mask * value).sum() for key, value in values.items()}, mask.sum()
