"""Set before JAX starts: the CPU, eight of it; programs that compile in a third of the time, as most here run once."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # XLA's emitters by MLIR take longer than all that they make. A flag that XLA does not know ends the process.
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    if subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True).returncode:
        os.environ["XLA_FLAGS"] = ""
    # Those of the processes that tests start; see `helpers.start`.
    os.environ["FLAGS_OF_ONE_DEVICE"] = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Nobody reads from which lines of Python the operations of these programs come.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # What one process compiled serves the others of this run of the tests, those that they start, and other runs if
    # the folder is given.
    _COMPILED = tempfile.TemporaryDirectory(prefix="coltran_jax-tests-")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED.name)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest
from helpers import GOLDEN, moved_parameters, tiny_colorizer, tiny_upsampler
from selenium import webdriver

from coltran_jax import config as configs
from coltran_jax.checkpoints.bundles import Bundle, save_bundle
from coltran_jax.checkpoints.release import convert

# Tracing makes many objects, of which few are garbage: collections took a tenth of the time.
gc.set_threshold(200_000, 20, 1000)


def pytest_collection_modifyitems(items):
    """Marks what runs Pallas kernels by interpretation as slow: they take long to compile."""
    for item in items:
        if "pallas_interpreted" in item.name:
            item.add_marker("slow")


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """Leaves what earlier files made out of garbage collections: they took seconds, and servers answered late."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def optimized(monkeypatch):
    """Programs, also those of other processes, are compiled as users' are: for large ones that run for long."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory):
    """Three networks of a few thousand weights: gray 16x16 to RGB 32x32."""
    path = tmp_path_factory.mktemp("bundle") / "tiny.safetensors"
    networks = {
        "colorizer": tiny_colorizer((16, 16)),
        "color_upsampler": tiny_upsampler(configs.ColorUpsamplerConfig, (16, 16)),
        "spatial_upsampler": tiny_upsampler(configs.SpatialUpsamplerConfig, (32, 32)),
    }
    params = {name: moved_parameters(config) for name, config in networks.items()}
    save_bundle(path, Bundle(networks, params))
    return path


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    """The small networks of golden/pipeline, converted."""
    path = tmp_path_factory.mktemp("bundle") / "small.safetensors"
    list(convert([GOLDEN / "pipeline" / "checkpoints"], path))
    return path


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium that downloads to `downloads` in `tmp_path`."""
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1700"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", "disable-sync", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    (tmp_path / "downloads").mkdir()
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()
