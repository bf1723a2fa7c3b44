"""Training steps compiled for real TPU pod slices, where libtpu is installed."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import types

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT

from coltran_jax import partitioning
from coltran_jax.cli.configuration import read_config
from coltran_jax.errors import ConfigError, MeshError
from coltran_jax.networks.chain import PUBLISHED
from coltran_jax.training.loop import programs
from coltran_jax.training.reporting import drawing
from launch import account, hlo, tables
from launch import compile as compiling

HLO = """
  %ag = bf16[64,128,128,512]{3,2,1,0} all-gather(%x), replica_groups={}
  %ar = (f32[8,4]{1,0}, f32[2]{0}) all-reduce-start(%y, %z)
  %w = bf16[512,3,4,128]{3,2,1,0} all-gather(%kernel)
  %f = f32[8]{0} fusion(%all-gather.1)
  %one = s32[64]{0} all-to-all(%i), channel_id=1, dimensions={0}
  %other = s32[64]{0} all-to-all(%j), channel_id=1, dimensions={0}
}

%async_collective_fusion.1 (i: s32[8]) -> s32[64] {
  %part = s32[64]{0} all-gather(%i), channel_id=10, dimensions={0}
}

%async_collective_fusion.2 (i: s32[8]) -> s32[64] {
  %next = s32[64]{0} all-gather(%i), channel_id=10, dimensions={0}
}
"""


def test_collectives_are_counted_with_their_bytes():
    found = hlo.collectives(HLO)
    assert found["all-reduce"] == (1, 4 * (32 + 2))
    assert found["all-to-all"] == (2, 2 * 4 * 64)
    assert found["all-gather"] == (3, 2 * (64 * 128 * 128 * 512 + 512 * 3 * 4 * 128) + 4 * 64)
    assert hlo.gathered_batches(HLO, batch_per_device=1, pixels=4096) == ["all-gather to [64, 128, 128, 512]"]


LOOPS = """
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%until (t: (s32[], f32[8])) -> pred[] {
  %c = s32[] constant(64)
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%pixel (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %a = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  %b = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"7"}}
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %b)
}

%row (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %w = (s32[], f32[8]{0}) while(%t), condition=%until, body=%pixel
  ROOT %g = f32[8]{0} fusion(%w), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"40"}
}

ENTRY %main (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%data, body=%row, backend_config={"known_trip_count":{"n":"3"}}
}

%data (t: (s32[], f32[8])) -> pred[] {
  ROOT %p = pred[] parameter(0)
}
"""


def test_loops_are_found_with_their_iterations_kernels_and_cycles():
    pixel = hlo.Loop(64, 2, 10, 1, 7, ())
    row = hlo.Loop(3, 1, 40 + 64 * 10, 0, 64 * 7, (pixel,))
    assert hlo.program(LOOPS) == hlo.Loop(1, 0, 3 * 680, 0, 3 * 64 * 7, (row,))
    assert hlo.program(LOOPS.replace("known_trip_count", "other")).inner[0].iterations is None


@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((2, 9, 7, 3), (3, 2, 3, 5), {"window_strides": (2, 1), "padding": "VALID"}),
        # Windows that reach over the edges, as products of the gradient have them.
        ((2, 9, 7, 3), (3, 2, 3, 5), {"window_strides": (1, 2), "padding": ((2, 2), (1, 0)), "lhs_dilation": (2, 3)}),
        ((1, 8, 8, 4), (3, 3, 2, 6), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2}),
        ((1, 8, 8, 4), (3, 3, 4, 6), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)}),
    ],
)
def test_arithmetic_of_products_is_counted_as_xla_counts_it(image, kernel, options):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    lowered = jax.jit(convolve).lower(jnp.ones(image), jnp.ones(kernel))
    expected = lowered.cost_analysis()["flops"]
    (found,) = account.kernels(lowered.compiler_ir("hlo").as_hlo_text(), CHIP)
    assert found.flops == expected


CHIP = account.Chip(flops_per_sec=1e6, bytes_per_sec=1e3, hertz=10.0)
STEP = (
    """
%product (a: f32[8,16], b: f32[16,4], c: f32[64,16]) -> f32[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0:S(1)} parameter(1)
  %c = f32[64,16]{1,0} parameter(2)
  %few = f32[8,16]{1,0} slice(%c), slice={[0:8], [0:16]}
  %sum = f32[8,16]{1,0} add(%a, %few)
  ROOT %d = f32[8,4]{1,0} dot(%sum, %b), lhs_contracting_dims={1}, metadata={op_name="AGAIN/attention._project/dot"}
}

%update (a: f32[8,4], b: f32[1,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %i = s32[]{:S(1)} constant(0)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

ENTRY %main (x: f32[8,16], w: f32[16,4], t: f32[64,16]) -> f32[8,4] {
  %x = f32[8,16]{1,0} parameter(0), metadata={op_name="batch"}
  %w = f32[16,4]{1,0} parameter(1)
  %t = f32[64,16]{1,0} parameter(2)
  %fetch = (f32[16,4]{1,0:S(1)}, f32[16,4]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %near = f32[16,4]{1,0:S(1)} copy-done(%fetch)
  %f = f32[8,4]{1,0} fusion(%x, %near, %t), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"30"}
  %transposed = f32[8,4]{0,1} copy(%f), backend_config={"estimated_cycles":"20"}
  %all = f32[8,4]{0,1} all-reduce-start(%transposed), metadata={op_name="BACK/reduce_sum"}
  %done = f32[8,4]{0,1} all-reduce-done(%all)
  %norm = f32[8,4]{0,1} divide(%done, %done), metadata={op_name="FORTH/Colorizer.encode/encoder/blocks_3/norm/div"}
  %row = f32[1,4]{1,0:S(1)} slice(%norm), slice={[0:1], [0:4]}, metadata={op_name="jit(train)/sub"}
  ROOT %r = f32[8,4]{1,0} fusion(%norm, %row), kind=kLoop, calls=%update, metadata={op_name="jit(train)/sub"}
}
""".replace("BACK", "jit(train)/transpose(jvp(Colorizer))")
    .replace("FORTH", "jit(train)/jvp(Colorizer)")
    .replace("AGAIN", "jit(train)/transpose(jvp(Colorizer))/encoder/jvp(Colorizer)/checkpoint/rematted_computation")
)


def test_a_step_is_explained_by_layer_kind_and_direction():
    found = {kernel.name: kernel for kernel in account.kernels(STEP, CHIP)}
    product = found["f"]
    assert (product.kind, product.direction, product.layer) == ("matmul", "recomputation", "attention")
    # Of the table only eight rows are read, and the weights are on the chip already.
    assert (product.flops, product.bytes, product.secs) == (2 * 8 * 4 * 16, 4 * (8 * 16 + 8 * 16 + 8 * 4), 3.0)
    assert product.roofline_secs == max(product.flops / 1e6, product.bytes / 1e3)
    assert (found["fetch"].kind, found["fetch"].bytes, found["fetch"].secs) == ("prefetch", 4 * 16 * 4, 0.0)
    # A copy that the compiler made belongs to what waits for it.
    assert (found["transposed"].kind, found["transposed"].direction) == ("layout change", "backward")
    assert found["all"].kind == "collective"
    assert (found["norm"].kind, found["norm"].direction, found["norm"].layer) == (
        "norm",
        "forward",
        "encoder/blocks_3/norm",
    )
    # An update in place writes a row, not the array.
    assert (found["r"].kind, found["r"].bytes) == ("optimizer", 4 * 4)
    sums = account.sums(list(found.values()), "layer", "kind")
    assert sums[0][:3] == ("attention, matmul", 3.0, 1024)
    assert "encoder/blocks_*/norm, norm" in {name for name, *_ in sums}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "h9000"], "topology 'h9000': expected GENERATION:AxB or AxBxC, of v2"),
        (["--topology", "v9:2x2"], "topology 'v9:2x2': expected GENERATION:AxB"),
        (["--topology", "v5e"], "topology 'v5e': expected"),
        (["--topology", "v5e:2x2", "--explain", "/dev/null/why"], "/dev/null/why: cannot be written to"),
        (["--topology", "h100", "--slices", "2"], "--slices 2: expected a TPU's topology, not h100"),
        (["--topology", "v5e:2x2", "--mesh", "rows=2"], "--mesh rows=2: expected AXIS=SIZE"),
        (["--topology", "v5e:2x2", "--config.hide=3"], "the configuration has no field 'hide'"),
        (["--topology", "v5e:2x2", "--config", "none.py"], "none.py: no such file"),
    ],
)
def test_impossible_options_are_refused(capsys, args, message):
    assert compiling.main(["--config", str(ROOT / "configs" / "colorizer.py"), *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("hbm_gib", "power", "largest"), [(65, 1, 64), (7, 1, 4), (1000, 1, 1000), (1000, 1.5, 100), (1000, 0.8, 5620)]
)
def test_fit_looks_for_the_largest_batch(monkeypatch, capsys, hbm_gib, power, largest):
    # A stand-in for the compiler: a step takes a power of its images in GiB.
    def compiled(config, devices, mesh_sizes, hbm_gib):
        assert config.dtype == "float32"
        used = config.batch_size**power
        return compiling.Compiled(
            config.batch_size, mesh_sizes, 0.0, used, hbm_gib, 1e12, {}, 1.0, None, None, hlo.Loop(1, 9, 0, 0, 0, ())
        ), ""

    monkeypatch.setattr(compiling, "topology_devices", lambda name, slices: (list(range(8)), float(hbm_gib)))
    monkeypatch.setattr(compiling, "compile_step", compiled)
    options = ["--topology", "v5e:2x4", "--mesh", "spatial=2", "--dtype", "float32", "--fit"]
    assert compiling.main(["--config", str(ROOT / "configs" / "colorizer.py"), *options]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["fits"]
    assert largest * 15 / 16 <= report["batch_size"] <= largest
    assert "does not fit" in printed.err


def test_fit_says_that_nothing_fits(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "topology_devices", lambda name, slices: (list(range(8)), 16.0))
    monkeypatch.setattr(compiling, "compile_or_none", lambda *args: None)
    options = ["--topology", "v5e:2x4", "--fit"]
    assert compiling.main(["--config", str(ROOT / "configs" / "colorizer.py"), *options]) == 2
    assert "not even a batch of 8 fits" in capsys.readouterr().err


def test_sampling_is_compiled_for_devices_as_it_runs_on_them(monkeypatch, capsys, tmp_path):
    # CPU devices in place of a slice.
    monkeypatch.setattr(compiling, "topology_devices", lambda name, slices: (jax.devices(), 16.0))
    small = ["model.resolution=(8,8)", "model.hidden_size=12", "model.encoder.hidden_size=12"]
    small += [f"model.{part}.{field}=12" for part in ("encoder", "decoder") for field in ("ff_size", "hidden_size")]
    small += ["model.encoder.num_heads=3", "model.decoder.num_heads=3", "model.decoder.resolution=(8,8)"]
    small += ["model.encoder.num_encoder_layers=1", "model.decoder.num_outer_layers=1"]
    small += ["model.decoder.num_inner_layers=1", "downsample_res=8"]
    small = [f"--config.{field}" for field in small]
    config = ["--config", str(ROOT / "configs" / "colorizer.py"), "--topology", "v5e:2x4", "--sample"]
    assert compiling.main([*config, "--batch_size", "16", *small]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["batch_size"], report["mesh"], report["collectives"]) == (16, {"data": 8}, {})
    assert compiling.main([*config, "--batch_size", "12"]) == 2
    assert "a batch of 12: expected a multiple of the 8 devices" in capsys.readouterr().err
    # Of GPUs nothing estimates the time, but rooflines.
    explain = ["--topology", "h100:8", "--explain", str(tmp_path / "why")]
    assert compiling.main([*config, "--batch_size", "8", "--decoder", "fixed_point", *small, *explain]) == 0
    printed = capsys.readouterr().out
    assert "a loop of as many iterations as the data decide" in printed
    assert {"direction", "kind", "layer and kind"} <= {line.split("  ")[0] for line in printed.splitlines()}
    explained = json.loads((tmp_path / "why" / "kernels.json").read_text())
    assert {kernel["direction"] for kernel in explained} == {"forward"}
    assert any(kernel["layer"].startswith("inner_decoder/blocks_0/attention") for kernel in explained)
    assert {path.name for path in (tmp_path / "why").iterdir()} == {"program.txt", "kernels.json", "flame.png"}
    assert compiling.main([*config, "--fit"]) == 2
    assert "--sample shards images over all devices: it goes without" in capsys.readouterr().err


def test_rows_of_the_tables():
    program = tables.Program("color_upsampler", "v5e:16x16", 768, slices=2)
    found = compiling.Compiled(
        batch_size=768,
        mesh={"data": 64, "fsdp": 1, "tensor": 1, "spatial": 8},
        arguments_gib=0.25,
        temporaries_gib=1.5,
        hbm_gib=16.0,
        flops=None,
        collectives={"all-reduce": (2, 3 * 2**20)},
        compile_secs=30.4,
        estimated_secs=0.25,
        pallas_secs=0.0,
        loops=hlo.Loop(1, 0, 0, 0, 0.0, []),
    )
    config = read_config(str(ROOT / "configs" / "color_upsampler.py"), ["--config.batch_size=768"])
    # 768 times 0.327 TFLOP in a quarter of a second, where 32 devices have 197 TFLOP/s each.
    of_32 = tables.Found(found, STEP, config, [types.SimpleNamespace(device_kind="TPU v5 lite")] * 32, 16.0)
    names = ["color upsampler", "2 x `v5e:16x16`", "pallas"]
    row = ["32", "768", "data 64 x spatial 8", "1.75 of 16", "0.2500", "16 %", "1,000", "all-reduce 3", "30"]
    assert tables.training_cells(program, of_32) == [*names, *row]
    without = of_32._replace(compiled=None)
    assert tables.training_cells(program, without)[6:] == ["more than 16", "", "", "", "", ""]
    program = program._replace(batch_size=512, slices=1)
    names[1] = "`v5e:16x16`"
    row = ["1.75 of 16", "all-reduce", "0.250", "0.250", "2,048", ""]
    assert tables.sampling_cells(program, of_32) == [*names, *row]
    networks = [program._replace(network=network) for network in PUBLISHED]
    # 1,281,167 images at 512 in 0.75 s, by 32 devices.
    row = ["all three", *names[1:], "", "", "0.750", "0.750", "683", "17"]
    assert tables.sampling_summary(dict.fromkeys(networks, of_32)) == row
    assert tables.sampling_summary(dict.fromkeys(networks[:2], of_32)) is None
    on_gpu = of_32._replace(devices=[types.SimpleNamespace(device_kind="h100")], hbm_gib=79.1)
    row = tables.gpu_training_cells(program._replace(topology="h100", remat="block"), on_gpu)
    assert row[:6] == ["color upsampler", "h100", "512", "block", "1.8", "0"]
    pixel, row = hlo.Loop(64, 42, 0, 0, 0.0, []), hlo.Loop(64, 95, 0, 0, 0.0, [hlo.Loop(2, 1, 0, 0, 0.0, [])])
    row = dataclasses.replace(row, inner=[*row.inner, pixel])
    loops = dataclasses.replace(found, loops=hlo.Loop(1, 9, 0, 0, 0.0, [row]))
    program = program._replace(topology="h100", decoder="fixed_point")
    expected = ["h100", "512", "fixed point", "95", "42", "1.75"]
    assert tables.gpu_sampling_cells(program, on_gpu._replace(compiled=loops)) == expected
    for name, table in tables.TABLES.items():
        assert {len(table.cells(table.programs[0], on_gpu._replace(compiled=None)))} == {len(table.titles)}, name


def test_a_table_compiles_what_its_options_choose(monkeypatch, capsys):
    devices = [types.SimpleNamespace(device_kind="TPU v5 lite")] * 16
    monkeypatch.setattr(tables, "topology_devices", lambda name, slices: (devices, 16.0))
    compiled = []
    monkeypatch.setattr(tables, "compile_or_none", lambda function, config, *args: compiled.append(config))
    options = ["--networks", "color_upsampler", "--topologies", "v5e:4x4"]
    assert tables.main(["training", *options]) == 0
    assert tables.main(["training", *options, "--backends", "pallas"]) == 0
    assert [(config.backend, config.dtype, config.batch_size) for config in compiled] == [
        (backend, "bfloat16", 768) for backend in ("xla", "pallas", "pallas")
    ]
    assert capsys.readouterr().out.count("| color upsampler | `v5e:4x4` | pallas | 16 | 768 |  | more than 16 |") == 2


def test_every_table_has_a_row_a_program_and_says_what_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(tables, "topology_devices", lambda name, slices: ([None], 16.0))
    functions = []
    monkeypatch.setattr(tables, "compile_or_none", lambda function, *args: functions.append(function.__name__))
    for name, table in tables.TABLES.items():
        assert tables.main([name]) == 0
        assert capsys.readouterr().out.count("| more than 16") == len(table.programs)
        expected = "compile_sampling" if name.endswith("sampling") else "compile_step"
        assert functions == [expected] * len(table.programs)
        functions.clear()


def test_a_table_of_nothing_is_refused(capsys):
    assert tables.main(["training", "--networks", "color_upsampler", "--topologies", "v4:4x4x4"]) == 2
    expected = "error: none of the table's programs is of these networks, topologies and backends\n"
    assert capsys.readouterr().err == expected


# Seconds a step by the estimate of this compiler. Slower by a twentieth is a defect, not chance.
COMPILER = "0.0.42.1"
STEPS = [
    ("colorizer", "v5e:4x4", "data=16", 224, "auto", "none", 0.1097),
    ("color_upsampler", "v5e:4x4", "data=16", 768, "auto", "none", 0.1170),
    ("spatial_upsampler", "v5e:16x16", "data=32,spatial=8", 32, "xla", "block", 0.01461),
    ("spatial_upsampler", "v5e:2x2", "data=2,spatial=2", 4, "auto", "none", 0.04298),
]


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(("network", "topology", "mesh", "batch_size", "backend", "remat", "secs"), STEPS)
def test_paper_size_steps_fit_gather_no_batch_and_get_no_slower(
    network, topology, mesh, batch_size, backend, remat, secs
):
    changes = [f"--config.remat={remat}", f"--config.backend={backend}"]
    config = read_config(str(ROOT / "configs" / f"{network}.py"), changes)
    config = dataclasses.replace(config, dtype="bfloat16", batch_size=batch_size)
    devices, hbm_gib = compiling.topology_devices(topology)
    sizes = partitioning.mesh_from_text(mesh)
    result, text = compiling.compile_step(config, devices, sizes, hbm_gib)
    assert result.fits
    share = batch_size // sizes["data"]
    assert hlo.gathered_batches(text, share, (config.resolution // 4) ** 2 // sizes["spatial"]) == []
    assert ("all-to-all" in result.collectives) == (sizes["spatial"] > 1)
    if importlib.metadata.version("libtpu") == COMPILER:
        assert result.secs < 1.05 * secs


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("network", PUBLISHED)
def test_runs_with_kernels_evaluate_and_draw_images_on_slices(network):
    devices, _ = compiling.topology_devices("v5e:2x2")
    config = dataclasses.replace(read_config(str(ROOT / "configs" / f"{network}.py"), []), dtype="bfloat16")
    mesh = partitioning.make_mesh(partitioning.mesh_from_text("data=2,spatial=2"), devices)
    compiled = programs(config, mesh)

    def images(count, sharding):
        return jax.ShapeDtypeStruct((count, config.resolution, config.resolution, 3), jnp.uint8, sharding=sharding)

    count, sharding = config.eval_batch_size, partitioning.batch_sharding(mesh)
    mask = jax.ShapeDtypeStruct((count,), jnp.float32, sharding=sharding)
    params = compiled.abstract.ema_params
    evaluation = compiled.evaluate.lower(params, {"images": images(count, sharding), "mask": mask})
    assert "tpu_custom_call" in evaluation.as_text()
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    drawing(config, mesh).lower(params, images(4, whole)).compile()


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_sparse_cores_sum_gradients_while_others_are_computed():
    devices, hbm_gib = compiling.topology_devices("v6e:4x4")
    options = ["--config.backend=pallas", "--config.overlap_all_reduces=True"]
    config = dataclasses.replace(read_config(str(ROOT / "configs" / "color_upsampler.py"), options), dtype="bfloat16")
    _, text = compiling.compile_step(config, devices, partitioning.mesh_from_text("data=16"), hbm_gib)
    main = text[text.index("\nENTRY") :]
    # At least one all-reduce begins before, and ends after, a block's gradient.
    found = re.findall(r"%(axial_block_gradient|all-reduce[\w.]*call-(?:start|done))[\w.]* = ", main)
    starts = [name for name in found if name.endswith("call-start")]
    spans = [found[found.index(start) : found.index(start.replace("call-start", "call-done"))] for start in starts]
    assert any("axial_block_gradient" in span for span in spans)
    devices, hbm_gib = compiling.topology_devices("v5e:2x2")
    with pytest.raises(ConfigError, match=r"overlap_all_reduces is True, expected False: .* are TPU v5 lite"):
        compiling.compile_step(config, devices, partitioning.mesh_from_text("data=4"), hbm_gib)


@pytest.mark.skipif(not compiling.has_gpu_compiler(), reason="jax[cuda13] is not installed")
@pytest.mark.parametrize(("topology", "devices"), [("h100:2", 2), ("h200", 1)])
def test_sampling_is_compiled_for_gpus(capsys, topology, devices):
    config = ["--config", str(ROOT / "configs" / "photos_small.py"), "--topology", topology, "--sample"]
    assert compiling.main([*config, "--batch_size", "4"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["fits"]
    assert report["mesh"] == {"data": devices}
    side = report["loops"]["inner"][0]["iterations"]
    assert [loop["iterations"] for loop in report["loops"]["inner"][0]["inner"] if loop["kernels"] > 5] == [side]


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_slices_are_joined_along_the_data_axis():
    devices, hbm_gib = compiling.topology_devices("v5e:2x4", slices=2)
    assert (len(devices), hbm_gib) == (16, 16)
    mesh = partitioning.make_mesh({"data": -1, "fsdp": 1, "tensor": 1, "spatial": 4}, devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 1, "spatial": 4}
    slices = [{device.slice_index for device in part.flat} for part in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(MeshError, match="expected a multiple of the 2 slices"):
        partitioning.make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "spatial": 1}, devices)
    config = read_config(str(ROOT / "configs" / "photos_small.py"), ["--config.batch_size=8"])
    result, _ = compiling.compile_step(config, devices, {"data": 4, "fsdp": 1, "tensor": 1, "spatial": 4}, hbm_gib)
    assert result.fits


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("config", "backend", "batch_size"),
    [
        ("colorizer", "xla", 512),
        ("colorizer", "pallas", 512),
        # Heads of 64 features, half of a TPU's vector. Its stem's convolutions take longer to compile for more images.
        ("mini/colorizer", "pallas", 32),
        ("spatial_upsampler", "pallas", 512),
    ],
)
def test_paper_size_sampling_fits_and_needs_no_other_device(config, backend, batch_size):
    config = read_config(str(ROOT / "configs" / f"{config}.py"), [f"--config.backend={backend}"])
    config = dataclasses.replace(config, dtype="bfloat16", batch_size=batch_size)
    result, _ = compiling.compile_sampling(config, *compiling.topology_devices("v5e:4x4"))
    assert result.fits
    assert result.collectives == {}
    rows = result.loops.inner[-1]
    assert (rows.pallas > 0) == (backend == "pallas")
