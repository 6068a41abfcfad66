"""Tables from the cells of a sweep: statistics, comparison with older results, plots, the papers' printed numbers."""

from vtw_eval.report.analysis import ModelTable, analyse
from vtw_eval.report.changes import Changes, changes_between
from vtw_eval.report.errors import ReportError
from vtw_eval.report.results import Results
from vtw_eval.report.source import read_results
from vtw_eval.report.stats.statistics import Comparison, Interval, compare, holm, interval

__all__ = [
    "Changes",
    "Comparison",
    "Interval",
    "ModelTable",
    "ReportError",
    "Results",
    "analyse",
    "changes_between",
    "compare",
    "holm",
    "interval",
    "read_results",
]
