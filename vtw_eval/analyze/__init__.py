"""Where the attention of a model goes, layer by layer and token by token, and what its answers make of it."""

from vtw_eval.analyze.analysis import Agreement, Attention, TaskAnalysis, analyse
from vtw_eval.analyze.reading import Reading, read, read_answer
from vtw_eval.analyze.write import analysis_files

__all__ = [
    "Agreement",
    "Attention",
    "Reading",
    "TaskAnalysis",
    "analyse",
    "analysis_files",
    "read",
    "read_answer",
]
