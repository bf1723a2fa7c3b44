"""Heat maps of where the colorizer was undecided, drawn with Matplotlib."""

import importlib.util

import numpy as np

from coltran_jax.errors import UsageError

# Pixels of the longer side, beside the scale, and of an inch.
_LONGER, _INCH = 640, 100


def check_available() -> None:
    """Checks that heat maps can be drawn.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a map of the entropy needs Matplotlib: pip install 'coltran_jax[evaluate]'")


def entropy_map(entropy_bits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draws the entropy of each pixel's distribution, in the colours of viridis, beside its scale in bits.

    Args:
        entropy_bits: (h, w) float32, of the squeezed image.
        height: of the image.
        width: of the image; the map has its aspect ratio.

    Returns:
        (H', W', 3) uint8.
    """
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = _LONGER / max(height, width)
    # An image of one pixel's height still gets a scale that one can read.
    map_width, map_height = (max(160.0, scale * side) / _INCH for side in (width, height))
    whole_width, whole_height = map_width + 0.9, map_height + 0.3
    figure = Figure(figsize=(whole_width, whole_height), dpi=_INCH)

    def axes_at(left: float, width: float) -> Axes:
        return figure.add_axes(
            (left / whole_width, 0.15 / whole_height, width / whole_width, map_height / whole_height)
        )

    axes, bar = axes_at(0.1, map_width), axes_at(map_width + 0.2, 0.15)
    # Where all pixels are certain there is no range.
    highest = max(1.0, float(entropy_bits.max()))
    image = axes.imshow(entropy_bits, cmap="viridis", vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    figure.colorbar(image, cax=bar, label="bits")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
