"""The ablation of conditioning at a size that a folder of photographs and one machine can train.

A small network with conditional layers whose decoders also add the gray image's context to their input (`skip`) does
not begin to look at colours before this sweep ends. Only the one without, which knows gray by that sum alone, keeps it.
"""

from launch.trials import Variant

NAMES = ("coltran", "no_cln", "no_cmlp", "no_catt", "scale_only", "shift_only", "baseline")


def get_sweep():
    for name in NAMES:
        overrides = {} if name == "baseline" else {"model.decoder.skip": False}
        yield Variant(name, f"configs/photos_tiny.py:{name}", overrides, seeds=(0, 1))
