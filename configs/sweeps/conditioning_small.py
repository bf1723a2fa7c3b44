"""The ablation of conditioning at a size that a folder of photographs and one machine can train.

A small network whose decoders add the gray picture's context to their input (`skip`) has not begun to look at colours
when this sweep ends. Only the variants without conditional layers, which know gray from nothing else, keep it.
"""

from configs.sweeps.conditioning import NAMES
from launch.trials import Variant


def get_sweep():
    for name in NAMES:
        overrides = {} if name.startswith("baseline") else {"model.decoder.skip": False}
        yield Variant(name, f"configs/photos_tiny.py:{name}", overrides, seeds=(0, 1))
