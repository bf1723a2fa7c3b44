"""Optimizers through optax."""

import functools
from typing import Any

import jax
import optax

from coltran_jax.nn.parameters import Parameters, is_pretrained
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


def _decayed(weight_decay: float, updates: Parameters, params: Parameters) -> Parameters:
    """Weight decay of all that is trained: a pretrained part, whose gradient is zero, stays as it is."""

    def decayed(path: tuple[Any, ...], update: jax.Array, value: jax.Array) -> jax.Array:
        return update if is_pretrained(path) else update + weight_decay * value

    return jax.tree_util.tree_map_with_path(decayed, updates, params)


def build(config: OptimizerConfig, max_train_steps: int) -> optax.GradientTransformation:
    """The optimizer of a configuration."""
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.type == "rmsprop":
        # The release's: zero at the start, epsilon outside the square root.
        parts.append(optax.scale_by_rms(config.decay, config.epsilon, initial_scale=0.0, eps_in_sqrt=False))
    else:
        parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.epsilon))
    if config.type == "adamw":
        parts.append(optax.stateless(functools.partial(_decayed, config.weight_decay)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(config, max_train_steps)))
