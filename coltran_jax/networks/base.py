"""The interface of a network to training, evaluation and the pipeline."""

import abc
import math
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Integer, UInt8

from coltran_jax.config import NetworkConfig
from coltran_jax.nn.compute import Compute
from coltran_jax.nn.parameters import Parameters


@runtime_checkable
class Run(Protocol):
    """The fields of a training run that a network's loss depends on; see `coltran_jax.training.config.TrainConfig`."""

    @property
    def model(self) -> NetworkConfig: ...
    @property
    def resolution(self) -> int: ...
    @property
    def downsample_res(self) -> int: ...
    @property
    def loss_factor(self) -> float: ...
    @property
    def encoder_loss_factor(self) -> float: ...
    @property
    def input_noise(self) -> float: ...


class Network(abc.ABC):
    """One kind of network. `docs/extending.md` adds one.

    Attributes:
        name: in configurations, bundles, flags and messages.
        config_class: its configuration, one of `coltran_jax.config`.
        enlarges: whether its result has a higher resolution than what it reads.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    enlarges: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, config: NetworkConfig, compute: Compute) -> nn.Module:
        """The module of a configuration; see `coltran_jax.networks.registry.build`."""

    @abc.abstractmethod
    def example(self, config: NetworkConfig) -> tuple[jax.Array, ...]:
        """Arguments of the module for one image, to make its parameters with."""

    @abc.abstractmethod
    def check(self, run: Run) -> tuple[bool, str, Any, str]:
        """Checks a run's fields; returns a condition, a field, its value and what was expected."""

    def pretrained(self, config: NetworkConfig) -> Mapping[tuple[str, ...], str]:
        """The parts that training takes ready and leaves as they are: path in the parameters -> name of the weights.

        None, unless a network has some; see `coltran_jax.checkpoints.trunks`.
        """
        del config
        return types.MappingProxyType({})

    def without_pretrained(self, config: NetworkConfig) -> NetworkConfig:
        """The configuration of the same network without these parts."""
        return config

    @abc.abstractmethod
    def bits(
        self,
        run: Run,
        model: nn.Module,
        params: Parameters,
        images: UInt8[Array, "B H H 3"],
        channel: Int[Array, " B"] | None = None,
        noise_key: jax.Array | None = None,
        **apply_kwargs: Any,
    ) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
        """Bits per pixel of each image.

        Args:
            run: the run.
            model: the module.
            params: its parameters.
            images: squares.
            channel: which channel of each image an upsampler is trained on.
            noise_key: key of the colorizer's `input_noise`; None for no noise.
            apply_kwargs: `deterministic` and `rngs`.

        Returns:
            Those of the loss, and those of the parallel head; the latter is zero where there is none.
        """

    @abc.abstractmethod
    def total(self, run: Run, loss: jax.Array, encoder_loss: jax.Array) -> jax.Array:
        """Combines the results of `bits` into the loss that training minimizes."""

    @abc.abstractmethod
    def metrics(
        self, run: Run, model: nn.Module, params: Parameters, images: UInt8[Array, "B H H 3"]
    ) -> dict[str, Float32[Array, " B"]]:
        """Computes the validation metrics of each image, by name; "bits" is among them."""

    @abc.abstractmethod
    def draw(
        self, run: Run, model: nn.Module, params: Parameters, images: UInt8[Array, "B H H 3"], keys: jax.Array
    ) -> tuple[UInt8[Array, "B h h 3"], UInt8[Array, "B h h 3"]]:
        """Runs the network on true images, for reports during training.

        Args:
            run: the run.
            model: the module.
            params: its parameters.
            images: squares.
            keys: (B,) typed keys.

        Returns:
            Results and the truth.
        """


def coarser(images: UInt8[Array, "B H H C"], size: int) -> UInt8[Array, "B {size} {size} C"]:
    """Resizes squares down by area, on the device.

    In integers, so that every device agrees: bit for bit `arrays.area_resize` where H is a multiple of `size`;
    elsewhere, means exactly half way between two values go to the even one, which the release's float32 sums
    can miss.
    """
    length = images.shape[1]
    if length == size:
        return images
    # An axis is first cut into parts that both source and output pixels are made of.
    unit = math.gcd(length, size)
    parts, each = size // unit, length // unit

    def narrowed(x: jax.Array, axis: int) -> jax.Array:
        shape = (*x.shape[:axis], size, each, *x.shape[axis + 1 :])
        return x.repeat(parts, axis=axis).reshape(shape).sum(axis=axis + 1)

    total = narrowed(narrowed(images.astype(jnp.int32), 1), 2)
    area = each * each
    low, rest = total // area, total % area
    # Half to even.
    up = (2 * rest > area) | ((2 * rest == area) & (low % 2 == 1))
    return (low + up).astype(jnp.uint8)


def cross_entropy_bits(logits: Float32[Array, "B H W V"], targets: Integer[Array, "B H W"]) -> Float32[Array, " B"]:
    """Returns the mean over pixels of the cross entropy in bits."""
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, targets[..., None].astype(jnp.int32), axis=-1)
    return -chosen.mean(axis=(1, 2, 3)) / np.log(2)
