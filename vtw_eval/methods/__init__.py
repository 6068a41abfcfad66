"""Methods of visual-token reduction, one per file."""

from vtw_eval.methods.base import Method
from vtw_eval.methods.baseline import Baseline
from vtw_eval.methods.composite import Composite
from vtw_eval.methods.downsample import Downsample
from vtw_eval.methods.dyvte.method import DyVTE
from vtw_eval.methods.fastv import FastV
from vtw_eval.methods.pyramiddrop import PyramidDrop
from vtw_eval.methods.rand import Rand
from vtw_eval.methods.random_k import RandomK
from vtw_eval.methods.random_vision import RandomVision
from vtw_eval.methods.registry import METHODS, make_method, parse_method
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
    "ToMe",
    "make_method",
    "parse_method",
]
