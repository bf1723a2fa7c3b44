"""Optimizers through optax."""

import functools
from collections.abc import Collection
from typing import Any

import jax
import optax

from coltran_jax.nn.parameters import Parameters
from coltran_jax.training.config import OptimizerConfig


def schedule(config: OptimizerConfig, max_train_steps: int) -> optax.Schedule:
    """Step -> learning rate."""
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(config.learning_rate, max(1, max_train_steps - config.warmup_steps))
    else:
        rest = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, rest], [config.warmup_steps])


def _decayed(
    weight_decay: float, pretrained: Collection[tuple[str, ...]], updates: Parameters, params: Parameters
) -> Parameters:
    """Weight decay of all that is trained: a pretrained part, whose gradient is zero, stays as it is."""

    def decayed(path: tuple[Any, ...], update: jax.Array, value: jax.Array) -> jax.Array:
        names = tuple(key.key for key in path)
        return update if any(names[: len(part)] == part for part in pretrained) else update + weight_decay * value

    return jax.tree_util.tree_map_with_path(decayed, updates, params)


def build(
    config: OptimizerConfig, max_train_steps: int, pretrained: Collection[tuple[str, ...]] = ()
) -> optax.GradientTransformation:
    """Returns the optimizer of a configuration.

    Args:
        config: the configuration.
        max_train_steps: after which training ends.
        pretrained: paths in the parameters of the parts that training leaves as they are.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.type == "rmsprop":
        # The release's: zero at the start, epsilon outside the square root.
        parts.append(optax.scale_by_rms(config.decay, config.epsilon, initial_scale=0.0, eps_in_sqrt=False))
    else:
        parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    if config.type == "adamw":
        parts.append(optax.stateless(functools.partial(_decayed, config.weight_decay, pretrained)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(config, max_train_steps)))
