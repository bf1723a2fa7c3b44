"""Published numbers: Fréchet inception distances by protocol, fooling rates, and an ablation."""

import dataclasses

from coltran_jax.evaluation.tables import text_table


@dataclasses.dataclass(frozen=True)
class Published:
    """A published distance.

    Attributes:
        protocols: names of the protocols it was made by; see `coltran_jax.evaluation.protocols`.
        what: the colorizer, or the images that are compared.
        fid: the distance.
        deviation: its published standard deviation; None for none.
        source: where it was published.
    """

    protocols: tuple[str, ...]
    what: str
    fid: float
    deviation: float | None
    source: str


# The three share their images.
_FID_5K = ("coltran-5k", "palette-5k", "uvim")
_COLTRAN = "Kumar et al., Colorization Transformer, 2021"
_UVIM = "Kolesnikov et al., UViM, 2022"
_DDCOLOR = "Kang et al., DDColor, 2023"
_MULTICOLOR = "Du et al., MultiColor, 2024"

PUBLISHED = (
    Published(_FID_5K, "real against real", 14.68, 0.15, _COLTRAN),
    Published(_FID_5K, "gray against real", 30.19, 0.1, _COLTRAN),
    Published(_FID_5K, "ColTran", 19.37, 0.09, _COLTRAN),
    Published(_FID_5K, "ColTran-B, gray added at the input, no conditional layers", 19.98, 0.20, _COLTRAN),
    Published(_FID_5K, "ColTran-S, colorizer at 28x28", 22.06, 0.13, _COLTRAN),
    Published(_FID_5K, "PixColor", 24.32, None, _COLTRAN),
    Published(_FID_5K, "cGAN", 24.41, None, _COLTRAN),
    Published(_FID_5K, "cINN", 25.13, None, _COLTRAN),
    Published(_FID_5K, "VAE-MDN", 25.98, None, _COLTRAN),
    Published(_FID_5K, "UViM", 16.99, None, _UVIM),
    Published(_FID_5K, "Palette", 15.78, None, _UVIM),
    Published(("val5k",), "ColTran", 6.44, None, _DDCOLOR),
    Published(("val5k",), "CT2", 5.51, None, _DDCOLOR),
    Published(("val5k",), "ColorFormer", 4.91, None, _DDCOLOR),
    Published(("val5k",), "DDColor-L", 3.92, None, _DDCOLOR),
    Published(("val5k",), "MultiColor", 2.17, None, _MULTICOLOR),
    Published(("val50k",), "MultiColor", 0.42, None, _MULTICOLOR),
)


@dataclasses.dataclass(frozen=True)
class PublishedRate:
    """A published fooling rate: images of ImageNet's validation set, a second a pair, raters of Mechanical Turk.

    Attributes:
        what: the seed of the samples; "oracle" for each image's best.
        percent: of answers that took the colorized image for the real one.
        source: where it was published.
    """

    what: str
    percent: float
    source: str


PUBLISHED_RATES = tuple(
    PublishedRate(what, percent, _COLTRAN)
    for what, percent in (("seed 1", 40.5), ("seed 2", 42.3), ("seed 3", 41.7), ("oracle", 62.0))
)

# The paper's ablation of the upsamplers: distances of a protocol that no other publication has.
ABLATIONS = (
    Published((), "two upsamplers, 64 to 256", 16.4, None, _COLTRAN),
    Published((), "one upsampler for both steps", 16.6, None, _COLTRAN),
    Published((), "upsamplers without gray", 27.0, None, _COLTRAN),
)


def published_under(protocol: str) -> list[Published]:
    """Returns the published distances of a protocol, in the order of the table above."""
    return [row for row in PUBLISHED if protocol in row.protocols]


def as_text(protocol: str) -> str:
    """Returns a table for terminals of the published distances of a protocol."""
    rows = [["published under this protocol", "FID", "source"]]
    for row in published_under(protocol):
        deviation = "" if row.deviation is None else f" ± {row.deviation:.2f}"
        rows.append([row.what, f"{row.fid:.2f}{deviation}", row.source])
    return "\n".join(text_table(rows, left=3)) + "\n"
