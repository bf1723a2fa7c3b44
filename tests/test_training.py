"""The training step: against golden/train_*.npz, and on meshes of every shape."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import golden, golden_config, moved_parameters, tiny_colorizer, tiny_upsampler, variables

from coltran_jax import config as configs
from coltran_jax import partitioning
from coltran_jax.checkpoints import release
from coltran_jax.errors import ConfigError, MeshError
from coltran_jax.images import arrays
from coltran_jax.networks.base import coarser
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.networks.colorizer import replaced
from coltran_jax.networks.registry import NETWORKS
from coltran_jax.networks.upsampler import upsample
from coltran_jax.training import optimizers, reporting
from coltran_jax.training import state as states
from coltran_jax.training.config import OptimizerConfig, TrainConfig
from coltran_jax.training.loop import fresh_state, programs


def golden_run(name):
    values = golden(f"train_{name}")
    model = golden_config(values["config"])
    config = TrainConfig(name, model, batch_size=2, max_train_steps=100, resolution=64, downsample_res=16)
    params = release.parameters_from_variables(model, variables(values, "init"), ema=False)
    return values, config, params


def golden_batch(values, step):
    batch = {"images": values["batch/targets"][step], "mask": np.ones(2, np.float32)}
    if "batch/channel_index" in values:
        batch["channel"] = values["batch/channel_index"][step].astype(np.int32)
    return batch


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_short_run_equals_the_release(name):
    values, config, params = golden_run(name)
    state = states.create(config, params)
    step = jax.jit(functools.partial(states.train_step, config))
    for number, expected in enumerate(json.loads(str(values["losses"]))):
        state, metrics = step(state, golden_batch(values, number))
        np.testing.assert_allclose(metrics.loss_bits, expected["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics.total_loss_bits, expected["total_loss"], rtol=1e-5)
        if "encoder" in expected:
            np.testing.assert_allclose(metrics.encoder_loss_bits, expected["encoder"], rtol=1e-5)
    gradients = variables(values, "grad0")
    canonical = release.canonical_names(list(gradients))
    for prefix, tree in (("final", state.params), ("ema", state.ema_params)):
        found = release.variables_from_parameters(config.model, tree)
        for key, expected in variables(values, prefix).items():
            if key in canonical:
                counts = np.abs(gradients[key]) > 1e-4
                difference = np.abs(found[canonical[key]].reshape(expected.shape) - expected)
                assert difference[counts].max(initial=0) <= 2e-5, key


@pytest.mark.parametrize(
    ("name", "remat", "backend"),
    [(name, remat, "xla") for name in PUBLISHED for remat in ("none", "products", "block")]
    + [(name, "none", "pallas_interpreted") for name in ("colorizer", "spatial_upsampler")],
)
def test_gradients_equal_the_release(name, remat, backend):
    values, config, params = golden_run(name)
    config = dataclasses.replace(config, remat=remat, backend=backend)
    batch = jax.tree.map(jnp.asarray, golden_batch(values, 0))

    @jax.jit
    @jax.grad
    def gradient(params):
        loss, encoder_loss = NETWORKS[config.network].bits(
            config, states.network(config), params, batch["images"], batch.get("channel")
        )
        factors = (0.99, 0.01) if name == "colorizer" else (1, 0)
        return (factors[0] * loss + factors[1] * encoder_loss).mean()

    found = release.variables_from_parameters(config.model, gradient(params))
    expected = variables(values, "grad0")
    for key, canonical in release.canonical_names(list(expected)).items():
        norm = np.linalg.norm(expected[key])
        difference = np.linalg.norm(found[canonical].reshape(expected[key].shape) - expected[key])
        assert difference <= (1e-3 * norm if norm >= 1e-4 else 1e-6), key


def test_coarser_images_equal_the_release():
    values = golden("train_colorizer")
    for targets, expected in zip(values["batch/targets"], values["batch/targets_16"], strict=True):
        np.testing.assert_array_equal(coarser(jnp.asarray(targets), 16), expected)


def test_coarser_images_by_a_broken_factor_are_exact_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = np.asarray(coarser(jnp.asarray(images), 28))
    # 64 / 28 = 16 / 7: seven parts a source pixel, sixteen an output pixel.
    parts = images.astype(int).repeat(7, axis=1).repeat(7, axis=2)
    means = parts.reshape(2, 28, 16, 28, 16, 3).sum(axis=(2, 4)) / 256
    np.testing.assert_array_equal(found, np.rint(means))
    released = np.stack([arrays.area_resize(image, 28, 28) for image in images])
    differ = found != released
    assert np.isin(means[differ] % 1, 0.5).all(), "but for exact halves, as the release"


def test_rmsprop_equals_the_release():
    values = golden("rmsprop")
    optimizer = optimizers.build(OptimizerConfig(), 100)
    weights = jnp.asarray(values["initial"])
    average, state = weights, optimizer.init(weights)
    for step, gradient in enumerate(values["gradients"]):
        updates, state = optimizer.update(jnp.asarray(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        average = average - (1 - 0.999) * (average - weights)
        np.testing.assert_allclose(weights, values["weights"][step], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(average, values["averages"][step], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state[0].nu, values["mean_square"][step], rtol=1e-6)


def test_learning_rate_rises_and_falls():
    rate = optimizers.schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine"), 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["rmsprop", "adam", "adamw"])
def test_clipped_gradients_of_any_optimizer_lower_a_loss(kind):
    optimizer = optimizers.build(OptimizerConfig(type=kind, clip_norm=1.0, learning_rate=0.1, weight_decay=0.01), 50)
    weights = jnp.array([3.0, -2.0])
    state = optimizer.init(weights)
    for _ in range(50):
        updates, state = optimizer.update(2 * weights, state, weights)
        weights = optax.apply_updates(weights, updates)
    assert jnp.abs(weights).max() < 0.7


def tiny_run(network, **changes):
    model = {
        "colorizer": lambda: dataclasses.replace(tiny_colorizer((16, 16)), hidden_size=16, **_wider()),
        "color_upsampler": lambda: tiny_upsampler(configs.ColorUpsamplerConfig, (16, 16)),
        "spatial_upsampler": lambda: tiny_upsampler(configs.SpatialUpsamplerConfig, (32, 32)),
    }[network]()
    sizes = {"resolution": 32, "downsample_res": 16, "batch_size": 8, "eval_batch_size": 8, "max_train_steps": 10}
    return TrainConfig(network, model, **{**sizes, **changes})


def _wider():
    """Widths that every axis of the meshes below divides."""
    shape = {"hidden_size": 16, "ff_size": 16, "num_heads": 2}
    return {
        "encoder": configs.EncoderConfig(**shape, num_encoder_layers=1),
        "decoder": configs.DecoderConfig(**shape, num_outer_layers=1, num_inner_layers=1, resolution=(16, 16)),
    }


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)


def trained(config, shape):
    """Losses and weights after two steps on a mesh, and the program's text."""
    mesh = partitioning.make_mesh(dict(zip(partitioning.AXES, shape, strict=True)), jax.devices()[: np.prod(shape)])
    compiled = programs(config, mesh)
    state = fresh_state(config, compiled)
    losses, program = [], None
    for images in IMAGES:
        batch = partitioning.global_batch(mesh, {"images": images, "mask": np.ones(8, np.float32)})
        program = program or compiled.train.lower(state, batch).compile()
        state, metrics = program(state, batch)
        losses.append(float(metrics.loss_bits))
    return losses, jax.tree.map(np.asarray, (state.params, state.ema_params)), program.as_text()


@functools.cache
def alone(network):
    return trained(tiny_run(network), (1, 1, 1, 1))


MESHES = [(8, 1, 1, 1), (1, 1, 2, 4), (2, 1, 1, 4), (2, 2, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape", "changes"),
    [("colorizer", shape, {}) for shape in MESHES]
    + [(network, shape, {}) for network in ("color_upsampler", "spatial_upsampler") for shape in MESHES[2:]]
    # Attention alone, and whole blocks.
    + [("colorizer", (2, 1, 2, 2), {"backend": "pallas_interpreted"})]
    + [("colorizer", (2, 2, 1, 2), {"backend": "pallas_interpreted"})],
)
def test_every_mesh_gives_the_same_weights(network, shape, changes):
    losses, weights, _ = alone(network)
    found_losses, found_weights, text = trained(tiny_run(network, **changes), shape)
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found_weights, weights)
    # An image that is spread changes over between rows and columns.
    assert "all-to-all" in text or shape[3] == 1


@pytest.mark.slow
def test_a_convolutional_stem_gives_the_same_weights_on_a_mesh():
    config = tiny_run("colorizer")
    encoder = dataclasses.replace(config.model.encoder, conv_stem=(8, 12))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    losses, weights, _ = trained(config, (1, 1, 1, 1))
    found_losses, found_weights, _ = trained(config, (2, 2, 1, 2))
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found_weights, weights)
    assert "conv_stem" in weights[0]["encoder"]


def test_parts_of_a_batch_give_the_same_weights():
    losses, weights, _ = alone("color_upsampler")
    config = tiny_run("color_upsampler", optimizer=OptimizerConfig(accumulation_steps=4))
    found_losses, found_weights, _ = trained(config, (2, 1, 1, 1))
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found_weights, weights)


def test_a_loss_that_is_not_finite_changes_no_weight():
    config = tiny_run("color_upsampler")
    state = states.create(config, fresh_state(config, programs(config, one_device())).params)
    broken = dataclasses.replace(state, params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    batch = {"images": IMAGES[0], "mask": np.ones(8, np.float32)}
    after, metrics = jax.jit(functools.partial(states.train_step, config))(broken, batch)
    assert metrics.nonfinite == 1
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, state.ema_params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert after.step == 1


def one_device():
    return partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])


def test_images_that_could_not_be_read_count_for_nothing():
    config = tiny_run("colorizer")
    params = fresh_state(config, programs(config, one_device())).params
    step = jax.jit(functools.partial(states.train_step, config))
    mask = np.array([1, 1, 1, 1, 1, 0, 1, 0], np.float32)
    garbage = IMAGES[0].copy()
    garbage[[5, 7]] = 99
    results = [step(states.create(config, params), {"images": p, "mask": mask}) for p in (IMAGES[0], garbage)]
    jax.tree.map(np.testing.assert_array_equal, results[0][0].params, results[1][0].params)
    assert results[0][1].num_skipped == 2


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1, "spatial": 1}, 8, "the mesh data 3 x .* takes 3 devices, found 8"),
        ({"data": -1, "fsdp": 16, "tensor": 1, "spatial": 1}, 8, "takes 16 devices, found 8"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, devices, message):
    with pytest.raises(MeshError, match=message):
        partitioning.mesh_shape(sizes, devices)


def test_batches_heads_and_kernels_that_do_not_go_with_the_mesh_are_refused():
    mesh = partitioning.make_mesh({"data": 8, "fsdp": 1, "tensor": 1, "spatial": 1})
    with pytest.raises(ConfigError, match="backend is 'pallas', expected 'xla'"):
        programs(tiny_run("colorizer", backend="pallas"), mesh)
    with pytest.raises(ConfigError, match=r"overlap_all_reduces is True, expected False: it takes .* devices are cpu"):
        programs(tiny_run("colorizer", overlap_all_reduces=True), mesh)
    with pytest.raises(MeshError, match="batch_size is 12, expected a multiple"):
        programs(tiny_run("colorizer", batch_size=12), mesh)
    mesh = partitioning.make_mesh({"data": 1, "fsdp": 1, "tensor": 8, "spatial": 1})
    with pytest.raises(MeshError, match=r"cuts an axis of 2 into 8 \(tensor\)"):
        programs(tiny_run("colorizer"), mesh)


@pytest.mark.parametrize("name", ["color_upsampler", "spatial_upsampler"])
def test_an_upsamplers_errors_are_those_of_its_images(name):
    config = tiny_run(name)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    params = moved_parameters(config.model)
    mask = np.array([1, 0, 1], np.float32)
    sums, count = jax.jit(functools.partial(states.evaluation_step, config))(params, {"images": images, "mask": mask})
    assert count == 2
    inputs, truth = map(np.asarray, NETWORKS[config.network].inputs(config, jnp.asarray(images)))
    result = np.asarray(upsample(states.network(config), params, arrays.gray_from_rgb(truth), inputs, chunk=1))
    plain = inputs.astype(int) * 32 + 16 if name == "color_upsampler" else inputs
    for prefix, image in (("", result), ("plain_", plain)):
        difference = image.astype(float) - truth
        np.testing.assert_allclose(sums[f"{prefix}mae"], mask @ np.abs(difference).mean((1, 2, 3)), rtol=1e-5)
        psnr = 10 * np.log10(255**2 / (difference**2).mean((1, 2, 3)))
        np.testing.assert_allclose(sums[f"{prefix}psnr"], mask @ psnr, rtol=1e-5)


@pytest.mark.slow
def test_computing_blocks_again_saves_memory():
    model = dataclasses.replace(tiny_upsampler(configs.SpatialUpsamplerConfig, (32, 32)), num_encoder_layers=4)

    def temporary_bytes(remat):
        config = dataclasses.replace(tiny_run("spatial_upsampler"), model=model, remat=remat)
        mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
        compiled = programs(config, mesh)
        batch = {"images": np.zeros((8, 32, 32, 3), np.uint8), "mask": np.ones(8, np.float32)}
        return compiled.train.lower(compiled.abstract, batch).compile().memory_analysis().temp_size_in_bytes

    # Four layers of a row and a column block: one of eight is held at a time, and the inputs of all.
    block, products, none = (temporary_bytes(remat) for remat in ("block", "products", "none"))
    assert block < 0.5 * none
    # Kept of a block: seven numbers where "none" keeps those and, for each of two heads, two rows of 32 weights.
    assert block < products < 0.75 * none


def test_without_a_weight_of_their_own_the_decoders_are_not_trained():
    config = tiny_run("colorizer", loss_factor=0.0, encoder_loss_factor=1.0)
    state = states.create(config, moved_parameters(config.model))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    batch = {"images": images, "mask": np.ones(4, np.float32)}
    after, metrics = jax.jit(functools.partial(states.train_step, config))(state, batch)
    assert metrics.loss_bits == metrics.encoder_loss_bits == metrics.total_loss_bits
    moved = {
        key: bool(optax.global_norm(jax.tree.map(jnp.subtract, after.params[key], state.params[key])) > 0)
        for key in state.params
    }
    assert {key for key, value in moved.items() if value} == {"encoder", "parallel_head"}


def test_input_noise_replaces_colours_by_others_of_the_batch():
    colors = np.random.default_rng(0).integers(0, 4, (4, 32, 32)) * 100
    noisy = np.asarray(replaced(jnp.asarray(colors), 0.25, jax.random.key(0)))
    assert set(np.unique(noisy)) == {0, 100, 200, 300}
    # A quarter of those replaced get the colour that they had.
    assert abs((noisy != colors).mean() - 0.25 * 0.75) < 0.03
    assert replaced(colors, 0.0, jax.random.key(0)) is colors


def test_input_noise_is_for_inputs_alone():
    config = tiny_run("colorizer", input_noise=0.5)
    params = moved_parameters(config.model)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    network, model = NETWORKS[config.network], states.network(config)
    keys = (None, jax.random.key(0))
    clean, noisy = (network.bits(config, model, params, images, noise_key=key) for key in keys)
    assert (clean[0] != noisy[0]).all()
    np.testing.assert_array_equal(clean[1], noisy[1])


def test_mfu_counts_a_step_on_the_cpu_backend_or_says_why_not(tmp_path, monkeypatch, capsys):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (3, 4))]
    assert reporting.count_flops(jnp.matmul, *shapes) == 2 * 2 * 3 * 4
    config = TrainConfig("colorizer", tiny_colorizer((8, 8)), batch_size=2, resolution=8, downsample_res=8)
    mesh = partitioning.make_mesh(dict.fromkeys(partitioning.AXES, 1), jax.devices()[:1])
    state = fresh_state(config, programs(config, mesh))
    monkeypatch.setattr(reporting, "peak_flops", lambda kind: 1e12)

    def no_cpu(backend):
        raise RuntimeError("Unknown backend cpu")

    for devices, expected in (jax.local_devices, "mesh"), (no_cpu, "MFU is not reported: JAX_PLATFORMS is 'cpu'"):
        monkeypatch.setattr(jax, "local_devices", devices)
        reporting.Reporter(config, tmp_path, mesh, state).close()
        assert expected in capsys.readouterr().out
