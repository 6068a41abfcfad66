"""Visual Tokens Withdrawal and its baselines for lmms-eval and VLMEvalKit, with honest costs."""

from typing import TYPE_CHECKING, Any

from vtw_eval._version import __version__

if TYPE_CHECKING:
    from vtw_eval.engine import Trace
    from vtw_eval.methods import VTW, Baseline, Method, RandomK, make_method, parse_method

_METHODS = ("VTW", "Baseline", "Method", "RandomK", "make_method", "parse_method")

__all__ = ["VTW", "Baseline", "Method", "RandomK", "Trace", "__version__", "make_method", "parse_method"]


def __getattr__(name: str) -> Any:
    """Load the library on first use, so that entry points stay light (a harness imports all of them at start)."""
    if name in _METHODS:
        from vtw_eval import methods

        return getattr(methods, name)
    if name == "Trace":
        from vtw_eval.engine import Trace

        return Trace
    raise AttributeError(f"module 'vtw_eval' has no attribute {name!r}")
