"""Visual Tokens Withdrawal and its baselines for lmms-eval and VLMEvalKit, with honest costs."""

from typing import TYPE_CHECKING, Any

from vtw_eval._version import __version__

if TYPE_CHECKING:
    from vtw_eval.engine import Trace
    from vtw_eval.methods import (
        VTW,
        Baseline,
        Composite,
        Downsample,
        DyVTE,
        FastV,
        Method,
        PyramidDrop,
        Rand,
        RandomK,
        RandomVision,
        Reads,
        Scorer,
        ToMe,
        make_method,
        parse_method,
    )
    from vtw_eval.methods.vtw.search import search_layer

__all__ = [
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
    "Trace",
    "__version__",
    "make_method",
    "parse_method",
    "search_layer",
]


def __getattr__(name: str) -> Any:
    """Load the library on first use, so that entry points stay light (a harness imports all of them at start)."""
    if name == "Trace":
        from vtw_eval.engine import Trace

        return Trace
    if name == "search_layer":
        from vtw_eval.methods.vtw.search import search_layer

        return search_layer
    if name in __all__ or name[0].isupper():  # a class of a method; submodules are lower-case
        from vtw_eval import methods

        return getattr(methods, name)
    raise AttributeError(f"module 'vtw_eval' has no attribute {name!r}")
