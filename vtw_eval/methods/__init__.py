"""Methods of visual-token reduction, one per file; their classes are loaded on first use."""

from typing import TYPE_CHECKING, Any

from vtw_eval.engine import Reads
from vtw_eval.methods.base import Method
from vtw_eval.methods.composite import Composite
from vtw_eval.methods.registry import METHODS, OURS, make_method, parse_method
from vtw_eval.methods.scorer import Scorer

if TYPE_CHECKING:  # names that a type checker should know; a method need not stand here to be found
    from vtw_eval.methods.baseline import Baseline
    from vtw_eval.methods.downsample import Downsample
    from vtw_eval.methods.dyvte.method import DyVTE
    from vtw_eval.methods.fastv import FastV
    from vtw_eval.methods.pyramiddrop import PyramidDrop
    from vtw_eval.methods.rand import Rand
    from vtw_eval.methods.random_k import RandomK
    from vtw_eval.methods.random_vision import RandomVision
    from vtw_eval.methods.tome import ToMe
    from vtw_eval.methods.vtw.method import VTW

__all__ = [
    "METHODS",
    "VTW",
    "Baseline",
    "Composite",
    "Downsample",
    "DyVTE",
    "FastV",
    "Method",
    "PyramidDrop",
    "Rand",
    "RandomK",
    "RandomVision",
    "Reads",
    "Scorer",
    "ToMe",
    "make_method",
    "parse_method",
]


def __getattr__(name: str) -> Any:
    """Return the class of a method of this project."""
    for key, place in OURS.items():
        if place.endswith(f":{name}"):
            return METHODS[key]
    raise AttributeError(f"module 'vtw_eval.methods' has no attribute {name!r}")
