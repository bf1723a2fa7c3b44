"""Layers against golden/layers.npz, and kernels against layers."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import golden, variables

from coltran_jax.config import DecoderConfig
from coltran_jax.nn import attention_kernels, conditioning, head_groups, initializers, kernel_steps
from coltran_jax.nn.attention import AxialAttention, attend
from coltran_jax.nn.axial import AxialBlock, AxialStack, BlockSpec, PositionEmbedding
from coltran_jax.nn.compute import Compute
from coltran_jax.nn.conditioning import Dense, LayerNorm, Mlp
from coltran_jax.nn.linear import broadcast, project

VALUES = {key: jnp.asarray(v) if v.dtype.kind in "fiu" else v for key, v in golden("layers").items()}
CONFIGS = [json.loads(str(VALUES[f"attention/{i}/config"])) for i in range(17)]
HEIGHT, WIDTH, FEATURES = VALUES["x"].shape[1:]


def by_suffix(values):
    """Without the scopes of the layer: "self_attention_nd/q/kernel:0" -> "q/kernel"."""
    return {key.split("/", 1)[1].removesuffix(":0"): value for key, value in values.items()}


def stack_of(values, names):
    return jnp.stack([values[f"{name}/kernel"] for name in names], axis=1)


def attention_of(config, values):
    """A layer and its parameters."""
    conditional = "".join(z for z in "qkv" if config.get(f"cond_{z}"))
    context = VALUES["context2" if config.get("wide") else "context"]
    scale = config.get("cond_scale", True)
    layer = AxialAttention(
        FEATURES,
        values["q/kernel"].shape[1],
        WIDTH if config["axis"] == "row" else HEIGHT,
        config["axis"],
        causal=config["mask"] == "future",
        conditional=conditional,
        context_features=context.shape[-1],
        scale=scale,
        activation=config.get("cond_act", "identity"),
    )
    params = {"qkv": stack_of(values, "qkv"), "output": values["output/kernel"]}
    params["relative_bias"] = next(v for k, v in values.items() if k.startswith("relative_attention_bias"))
    if conditional:
        params["context"] = stack_of(values, [f"cond_{z}" for z in conditional])
    return layer, params, context


BACKENDS = ("xla", "pallas_interpreted")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("i", range(len(CONFIGS)), ids=lambda i: json.dumps(CONFIGS[i]))
def test_attention(i, backend):
    values = by_suffix(variables(VALUES, f"attention/{i}/var"))
    layer, params, context = attention_of(CONFIGS[i], values)
    layer = layer.clone(compute=Compute(backend=backend))

    def whole(layer, x, context):
        return layer(x, layer.condition(context))

    out = layer.apply({"params": params}, VALUES["x"], context, method=whole)
    np.testing.assert_allclose(out, VALUES[f"attention/{i}/out"], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("i", [i for i, c in enumerate(CONFIGS) if c["mask"]], ids=lambda i: json.dumps(CONFIGS[i]))
def test_attention_step_by_step(i, backend):
    values = by_suffix(variables(VALUES, f"attention/{i}/var"))
    layer, params, context = attention_of(CONFIGS[i], values)
    layer = layer.clone(compute=Compute(backend=backend))
    axis = 2 if layer.axis == "row" else 1
    others = HEIGHT if layer.axis == "row" else WIDTH

    def step(layer, x, context, cache, index):
        return layer.step(x, cache, index, layer.condition(context))

    cache = layer.apply({"params": params}, len(VALUES["x"]), others, method="empty_cache")
    outs = []
    for index in range(layer.length):
        x, c = (jnp.take(array, jnp.array([index]), axis) for array in (VALUES["x"], context))
        out, cache = layer.apply({"params": params}, x, c, cache, index, method=step)
        outs.append(out)
    np.testing.assert_allclose(np.concatenate(outs, axis), VALUES[f"attention/{i}/out"], atol=1e-5)


@pytest.mark.parametrize("i", range(8))
def test_conditional_layer_norm(i):
    config = json.loads(str(VALUES[f"cond_layer_norm/{i}/config"]))
    values = variables(VALUES, f"cond_layer_norm/{i}/var")
    layer = LayerNorm(
        FEATURES,
        (HEIGHT, WIDTH),
        spatial_average=config["spatial_average"],
        sequence=config["sequence"],
        activation=config["out_act"],
    )
    named = {key.split("/")[-1].removesuffix(":0"): value for key, value in values.items()}
    params = {"projection": {"kernel": named["kernel"], "bias": named["bias"]}}
    if "spatial_average" in named:
        params["spatial_average"] = named["spatial_average"][0, :, :, 0]

    def apply(layer, x, context):
        return layer(x, layer.condition(context))

    out = layer.apply({"params": params}, VALUES["x"], VALUES["context"], method=apply)
    np.testing.assert_allclose(out, VALUES[f"cond_layer_norm/{i}/out"], atol=1e-5)


def test_position_embedding():
    rows, columns = variables(VALUES, "position_embed/var").values()
    params = {"rows": rows[:, 0], "columns": columns}
    layer = PositionEmbedding(FEATURES, (HEIGHT, WIDTH))
    position = layer.apply({"params": params})
    np.testing.assert_allclose(VALUES["x"] + position, VALUES["position_embed/out"], atol=1e-5)
    for row in range(HEIGHT):
        np.testing.assert_array_equal(layer.apply({"params": params}, row, method="row")[0], position[row])


def test_axial_stack():
    config = json.loads(str(VALUES["factorized_attention/config"]))
    values = variables(VALUES, "factorized_attention/var")
    spec = BlockSpec(FEATURES, config["ff_size"], config["num_heads"], (HEIGHT, WIDTH))
    layer = AxialStack(spec, config["num_encoder_layers"])
    scope = "factorized_attention/"
    params = {
        "position": {
            "rows": values[f"{scope}position_embed_1/position_embedding_0:0"][:, 0],
            "columns": values[f"{scope}position_embed_1/position_embedding_1:0"],
        }
    }

    def dense(number):
        return {part: values[f"dense_{number}/{part}:0"] for part in ("kernel", "bias")}

    def norm(number):
        name = f"{scope}layer_normalization_{number}" if number else f"{scope}layer_normalization"
        return {"scale": values[f"{name}/gamma:0"], "bias": values[f"{name}/beta:0"]}

    for block in range(4):
        name = f"{scope}self_attention_nd_{block + 1}/"
        own = {key.removeprefix(name).removesuffix(":0"): v for key, v in values.items() if key.startswith(name)}
        params[f"blocks_{block}"] = {
            "attention": {
                "qkv": stack_of(own, "qkv"),
                "output": own["output/kernel"],
                "relative_bias": own[f"relative_attention_bias_{(block + 1) % 2}"],
            },
            "attention_norm": norm(2 * block),
            "mlp": {"hidden": dense(8 + 2 * block), "output": dense(9 + 2 * block)},
            "mlp_norm": norm(2 * block + 1),
        }
    out = layer.apply({"params": params}, VALUES["x"])
    np.testing.assert_allclose(out, VALUES["factorized_attention/out"], atol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(True, True), (True, False), (False, True)])
def test_attention_applies_just_the_conditioning_asked_for(scale, shift):
    layer = AxialAttention(12, 3, WIDTH, "row", conditional="q", context_features=12, scale=scale, shift=shift)
    params = layer.init(jax.random.key(0), VALUES["x"])["params"]
    params = jax.tree.map(lambda x: x.unbox(), params, is_leaf=lambda x: hasattr(x, "unbox"))
    pair = layer.apply({"params": params}, VALUES["context"], method="condition")["q"]
    projected = jnp.einsum("bhwc,cnk->bhwnk", VALUES["context"], params["context"][:, 0])
    halves = iter(jnp.split(projected, scale + shift, axis=-1))
    for wanted, found in ((scale, pair.scale), (shift, pair.shift)):
        if wanted:
            np.testing.assert_allclose(found, next(halves), atol=1e-5)
        else:
            assert found is None


def test_scale_only_mlp_multiplies():
    layer = Mlp(12, 8, conditional="scale")

    def parts(layer, x, context):
        pair = layer.condition(context)
        return layer(x, pair), layer(x), layer.context(context), pair.shift

    params = layer.init(jax.random.key(0), VALUES["x"], VALUES["context"], method=parts)
    out, plain, scale, shift = layer.apply(params, VALUES["x"], VALUES["context"], method=parts)
    assert shift is None
    np.testing.assert_allclose(out, plain * scale, atol=1e-6)


def test_fans_count_as_keras_counts_them():
    # (D, N, K): the receptive field D multiplies both fans, N and K.
    shape = (64, 4, 16)
    kernel = initializers.kernel(("embed", "heads", None))(jax.random.key(0), shape).unbox()
    limit = np.sqrt(6 / (64 * (4 + 16)))
    assert 0.95 * limit < jnp.abs(kernel).max() <= limit
    stacked = initializers.kernel((None,) * 4, shape=shape)(jax.random.key(0), (64, 3, 4, 16)).unbox()
    assert 0.95 * limit < jnp.abs(stacked).max() <= limit


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    x = jnp.asarray(VALUES["x"], jnp.bfloat16)
    layer = Dense(8, ("embed", None), dtype=jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert layer.apply(params, x).dtype == jnp.bfloat16
    norm = LayerNorm(FEATURES, dtype=jnp.bfloat16)
    # A mean far from zero would swallow the differences if it were taken in bfloat16.
    shifted = norm.apply(norm.init(jax.random.key(0), x), x.astype(jnp.float32) + 1000)
    plain = LayerNorm(FEATURES).apply(norm.init(jax.random.key(0), x), x.astype(jnp.float32))
    np.testing.assert_allclose(shifted.astype(jnp.float32), plain, atol=0.02)


@pytest.mark.parametrize("own", [(5,), (2, 1, 1, 5), (2, 3, 1, 5), (2, 3, 4, 5)])
def test_gradient_of_broadcast_is_that_of_jax(own):
    x, weights = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([own, (2, 3, 4, 5)]))
    found, expected = (
        jax.grad(lambda x, way=way: (weights * jnp.sin(way(x, weights.shape))).sum())(x)
        for way in (broadcast, jnp.broadcast_to)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_projecting_is_that_of_products():
    shapes = [(2, 3, 4, 5), (5, 6), (5, 2, 7)]
    x, *kernels = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    def total(way):
        return lambda x, kernels: sum(jnp.sin(y).sum() for y in way(x, kernels))

    products = total(lambda x, kernels: [jnp.tensordot(x, kernel, axes=1) for kernel in kernels])
    found, expected = (jax.grad(way, argnums=(0, 1))(x, tuple(kernels)) for way in (total(project), products))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_gradient_of_norms_in_one_pass_is_that_of_jax():
    keys = jax.random.split(jax.random.key(0), 2)
    x, gradient = 30 + 3 * jax.random.normal(keys[0], (2, 5, 16)), jax.random.normal(keys[1], (2, 5, 16))
    _, mean, scale = conditioning._normalized(x)
    found, expected = (
        jax.jit(of_x)(x, mean, scale, gradient)
        for of_x in (conditioning._gradient_in_one_pass, conditioning._gradient_by_jax)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Without a GPU or a TPU, this is what is taken.
    np.testing.assert_allclose(jax.vjp(conditioning.normalized, x)[1](gradient)[0], expected, atol=1e-6)


def test_gradient_of_attention_is_that_of_jax():
    keys = jax.random.split(jax.random.key(0), 5)
    queries, keys_, values = (jax.random.normal(key, (2, 3, 2, 5, 4)) for key in keys[:3])
    bias, gradient = jax.random.normal(keys[3], (2, 5, 5)), jax.random.normal(keys[4], (2, 3, 2, 5, 4))
    # The last key is masked for all queries but one.
    bias = bias.at[:, :-1, -1].add(-1e6)

    def plain(queries, keys, values, bias):
        weights = jax.nn.softmax(jnp.einsum("banlk,banmk->banlm", queries, keys) + bias)
        return jnp.einsum("banlm,banmk->banlk", weights, values)

    arguments = (queries, keys_, values, bias)
    (y, found), (expected_y, expected) = (
        (vjp[0], vjp[1](gradient)) for vjp in (jax.vjp(function, *arguments) for function in (attend, plain))
    )
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


SHAPE = (2, 4, 16, 8)
SWITCHES = {
    "none": None,
    "all": {},
    "attention scaled": {"cond_att_shift": False, "cond_att_act": "sigmoid", "cond_mlp": "scale", "cond_ln": False},
    "v shifted": {"cond_att_q": False, "cond_att_k": False, "cond_att_scale": False, "cond_mlp": "shift"},
    "norms alone": {**dict.fromkeys(("cond_att_q", "cond_att_k", "cond_att_v"), False), "cond_mlp": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axis", "cores", "groups"),
    [
        ("none", "row", 1, 1),
        ("none", "column", 2, 1),
        ("all", "column", 1, 2),
        ("all", "row", 2, 1),
        ("attention scaled", "row", 1, 2),
        ("v shifted", "column", 1, 2),
        ("norms alone", "row", 1, 1),
    ],
)
def test_a_block_as_one_kernel_has_the_same_gradients(name, axis, cores, groups, monkeypatch):
    monkeypatch.setattr(kernel_steps, "_num_cores", lambda interpret: cores)
    # Each of the two heads has four features: whole vectors, or less.
    monkeypatch.setattr(head_groups, "_LANES", 4 if groups == 2 else 128)
    # Several steps for rows; for columns several, each of which takes its eight columns two at a time.
    monkeypatch.setattr(attention_kernels, "POSITIONS", 8)
    switches = None if SWITCHES[name] is None else DecoderConfig(resolution=SHAPE[1:3], **SWITCHES[name])
    x, z, weights = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    found = []
    for backend in BACKENDS:
        spec = BlockSpec(8, 12, 2, SHAPE[1:3], 0.0, Compute(backend=backend))
        block = AxialBlock(spec, axis, axis == "column", switches, 8)

        def apply(block, x, z):
            context = None if switches is None else z
            return block.whole(x, context, block.condition_norms(z))

        params = nn.unbox(block.init(jax.random.key(0), x, z, method=apply)["params"])
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda leaf, rng=rng: leaf + 0.3 * rng.standard_normal(leaf.shape), params)

        def loss(params, x, z, block=block, apply=apply):
            return (block.apply({"params": params}, x, z, method=apply) * weights).sum()

        found.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, x, z))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *found)
