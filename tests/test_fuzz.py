"""Damaged files of every kind are refused in one line, whatever the damage."""

import io
import json

import numpy as np
import pytest
import safetensors.numpy
from helpers import moved_parameters, tiny_upsampler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, load_bundle, save_bundle
from coltran_jax.errors import ImageError, WeightsError
from coltran_jax.images.decoding import read_image

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")


def encoded(kind):
    file = io.BytesIO()
    colors = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(colors).save(file, format=kind)
    return file.getvalue()


def outcome(function, expected):
    """What a function returns, or the exception of the expected kind that it raises."""
    try:
        return function()
    except expected as error:
        return error


ENCODED = {kind: encoded(kind) for kind in FORMATS}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(1, 600),
)
# Hostile sizes are Pillow's to warn of; what is read must be an image, or be refused.
@pytest.mark.filterwarnings("ignore")
def test_headers_of_images(tmp_path, kind, damage, end):
    content = bytearray(ENCODED[kind])
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path / "image"
    path.write_bytes(content[:end])
    found = outcome(lambda: read_image(path), ImageError)
    if isinstance(found, ImageError):
        assert str(path) in str(found)
        assert "\n" not in str(found)
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert 1 <= found.shape[2] <= 4


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "one.safetensors"
    config = tiny_upsampler(configs.ColorUpsamplerConfig, (8, 6))
    save_bundle(path, Bundle({"color_upsampler": config}, {"color_upsampler": moved_parameters(config)}))
    with safetensors.safe_open(path, "numpy") as file:
        return path, safetensors.numpy.load_file(path), json.loads(file.metadata()["coltran_jax"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["version", "networks", "recommended", "checksum"]
MODEL_FIELDS = list(configs.to_dict(configs.ColorUpsamplerConfig()))


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(FIELDS + MODEL_FIELDS), value=JSON)
def test_metadata_of_bundles(stored, field, value):
    path, tensors, description = stored
    changed = json.loads(json.dumps(description))
    part = changed if field in FIELDS else changed["networks"]["color_upsampler"]
    before, part[field] = part.get(field), value
    damaged = path.with_name("damaged.safetensors")
    safetensors.numpy.save_file(tensors, damaged, metadata={"coltran_jax": json.dumps(changed)})
    found = outcome(lambda: load_bundle(damaged), WeightsError)
    if isinstance(found, WeightsError):
        assert str(damaged) in str(found)
    else:
        # Fields that no weight depends on may have other values, and a bundle need not recommend or be checked.
        assert field in ("num_heads", "dropout", "use_gray", "recommended", "checksum") or value == before
