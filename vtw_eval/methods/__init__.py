"""Methods of visual-token reduction, one per file."""

from vtw_eval.methods.base import Method
from vtw_eval.methods.baseline import Baseline
from vtw_eval.methods.random_k import RandomK
from vtw_eval.methods.registry import METHODS, make_method, parse_method
from vtw_eval.methods.vtw import VTW

__all__ = ["METHODS", "VTW", "Baseline", "Method", "RandomK", "make_method", "parse_method"]
