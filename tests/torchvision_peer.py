"""torchvision, where it is there."""

import functools
import importlib.util
import sys

import torch


def has_torchvision():
    """Whether torchvision is there."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    if "torchvision" not in sys.modules:
        _declare_operators()
    return True


@functools.cache  # what is declared is gone with the object, so it is kept, and made once
def _declare_operators():
    """Those of detection, that torchvision's wheel for GPUs wants and a CPU build lacks."""
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            declared.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
        except RuntimeError:  # it is there
            pass
    return declared
