"""The mesh of devices, the one table of its axes, and data parallelism for sampling."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from coltran_jax.errors import MeshError


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """One axis of the mesh of devices.

    Attributes:
        name: of the axis, and of its field in configurations.
        shards: logical axes of parameters and activations that are sharded over it. Modules name the logical axes of
            their parameters (`coltran_jax.nn.initializers`) and constrain their activations.
        default: devices along it; -1 for all that the other axes leave.
    """

    name: str
    shards: tuple[str, ...]
    default: int = 1


# The one table of the mesh. An image is sharded over "spatial" along its rows where attention runs along rows, and
# along its columns where it runs along columns; see `coltran_jax.nn.axial`.
MESH = (
    MeshAxis("data", ("batch",), default=-1),
    MeshAxis("fsdp", ("batch", "embed")),
    MeshAxis("tensor", ("heads", "mlp", "symbols")),
    MeshAxis("spatial", ("rows", "columns")),
)
AXES = tuple(axis.name for axis in MESH)


def _mesh_axes_of(logical: str) -> tuple[str, ...]:
    return tuple(axis.name for axis in MESH if logical in axis.shards)


# Logical axes -> axes of the mesh, as Flax takes them.
RULES = tuple((name, _mesh_axes_of(name)) for name in dict.fromkeys(name for axis in MESH for name in axis.shards))
_BATCH = _mesh_axes_of("batch")


def mesh_from_text(text: str | None) -> dict[str, int]:
    """Parses "data=8,spatial=2"; the other axes have their default sizes.

    Raises:
        MeshError: not of that form.
    """
    sizes = {axis.name: axis.default for axis in MESH}
    for part in filter(None, (text or "").split(",")):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.isdigit() or int(size) < 1:
            raise MeshError(f"--mesh {text}: expected AXIS=SIZE,... with axes {', '.join(sizes)}")
        sizes[axis] = int(size)
    return sizes


def batch_parts(sizes: Mapping[str, int]) -> int:
    """Returns the number of parts that a batch is sharded into, of the sizes of a mesh's axes."""
    return math.prod(sizes[axis] for axis in _BATCH)


def mesh_shape(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """Sizes of all axes, with -1 replaced by what the others leave.

    Raises:
        MeshError: the sizes do not multiply to the number of devices.
    """
    known = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: size if size != -1 else max(1, num_devices // known) for axis, size in sizes.items()}
    if math.prod(filled.values()) != num_devices:
        asked = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise MeshError(f"the mesh {asked} takes {math.prod(filled.values())} devices, found {num_devices}")
    return filled


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices.

    Several slices of TPUs are joined along the data axis, so that only gradients cross between them.

    Args:
        sizes: devices an axis of `AXES`; at most one is -1, for what the others leave.
        devices: all of every host by default.

    Raises:
        MeshError: the sizes do not fit the devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    shape = mesh_shape(sizes, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    dims = [shape[axis] for axis in AXES]
    if slices > 1:
        if shape["data"] % slices:
            raise MeshError(f"the mesh's data axis is {shape['data']}, expected a multiple of the {slices} slices")
        within = [dims[0] // slices, *dims[1:]]
        grid = mesh_utils.create_hybrid_device_mesh(within, [slices, *[1] * (len(AXES) - 1)], devices)
    else:
        grid = mesh_utils.create_device_mesh(dims, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


@contextlib.contextmanager
def logical_axes(mesh: Mesh) -> Iterator[None]:
    """While tracing: the networks' constraints on activations name this mesh's axes."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        yield


def shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of abstract arrays, boxed with the logical names of their axes.

    Raises:
        MeshError: an axis of an array that the mesh does not divide.
    """
    result = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)

    def check(path, array, sharding):
        for length, axes in zip(array.shape, sharding.spec, strict=False):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if length % parts:
                raise MeshError(
                    f"{jax.tree_util.keystr(path)} is {array.shape}: the mesh cuts an axis of {length} into {parts} "
                    f"({', '.join(axes)}), expected a divisor"
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), result)
    return result


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the leading axis of a batch."""
    return NamedSharding(mesh, PartitionSpec(_BATCH))


@functools.cache
def share_of_process(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns which part of a global batch this process reads.

    Returns:
        Its number and the number of parts; processes whose devices work on the same images read the same part.

    Raises:
        MeshError: the batch cannot be cut so.
    """
    parts = batch_parts(mesh.shape)
    if batch_size % parts:
        raise MeshError(f"batch_size is {batch_size}, expected a multiple of the mesh's {' x '.join(_BATCH)}, {parts}")
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts = {index[0].start or 0 for index in indices}
    size = len(starts) * (batch_size // parts)
    first = min(starts)
    if max(starts) - first != size - batch_size // parts or first % size:
        raise MeshError(f"this process's devices work on scattered images (from {sorted(starts)}); try another mesh")
    return first // size, batch_size // size


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays of the whole batch from each process's part."""
    sharding = batch_sharding(mesh)
    parts = share_of_process(mesh, batch_parts(mesh.shape))[1]
    return {
        key: jax.make_array_from_process_local_data(sharding, value, (value.shape[0] * parts, *value.shape[1:]))
        for key, value in local.items()
    }


def host_device() -> jax.Device:
    """Returns this process's CPU, or its first device where JAX_PLATFORMS leaves the CPU out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec()))


@functools.cache
def image_options(platform: str) -> dict[str, str]:
    """XLA's options for programs that take whole images at once, on devices of a platform.

    On a CPU, XLA (jax 0.10) hands products to YNNPACK, which is fast for a few rows but for 4,096 pixels and more is
    8 to 20 % slower than Eigen; and it drops optimization barriers, which keep it from computing things twice. Empty
    elsewhere, and without what this version of XLA does not know.
    """
    if platform != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(option: str, value: str) -> bool:
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def on_each_device(
    function: Callable[..., Any], devices: Sequence[jax.Device], whole: Sequence[int] = (0,)
) -> Callable[..., Any]:
    """Applies a function as `data_parallel` does, for leading axes that are multiples of the number of devices."""
    mesh = Mesh(np.array(devices), ("data",))

    def on_each(*args):
        specs = tuple(PartitionSpec() if i in whole else PartitionSpec("data") for i in range(len(args)))
        # Scans start from constants and go on with shares, which the check of varying axes would refuse.
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"), check_vma=False)
        return mapped(*args)

    return on_each


def data_parallel(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    whole: Sequence[int] = (0,),
    options: dict[str, str] | None = None,
    donated: Sequence[int] = (),
) -> Callable[..., Any]:
    """Each device applies `function` to its share of the leading axis, without any communication.

    Args:
        function: of positional arguments (trees of arrays); its results have the leading axis too.
        devices: one or more.
        whole: positions of the arguments that every device gets whole. The leading axis of all others is cut; where
            it is no multiple of the number of devices, its last entry is repeated, and the result cut again.
        options: of the compiler, such as `image_options`.
        donated: positions of the arguments whose memory the results take over; their arrays cannot be used again.
    """
    if len(devices) == 1:
        return jax.jit(function, compiler_options=options, donate_argnums=donated) if options or donated else function
    compiled = jax.jit(on_each_device(function, devices, whole), compiler_options=options, donate_argnums=donated)

    def of_any_size(*args):
        shares = [arg for i, arg in enumerate(args) if i not in whole]
        size = jax.tree.leaves(shares)[0].shape[0]
        if size % len(devices) == 0:
            return compiled(*args)
        args = [arg if i in whole else filled(arg, len(devices)) for i, arg in enumerate(args)]
        return jax.tree.map(lambda x: x[:size], compiled(*args))

    return of_any_size


def filled(tree: Any, multiple: int) -> Any:
    """Repeats the last entries of arrays' leading axes until those are multiples of a number."""

    def one(x: Any) -> Any:
        fill = -x.shape[0] % multiple
        return jnp.asarray(x)[jnp.minimum(jnp.arange(x.shape[0] + fill), x.shape[0] - 1)] if fill else x

    return jax.tree.map(one, tree)
