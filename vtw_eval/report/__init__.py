"""Tables from the output of a harness."""

from vtw_eval.report.runs import Run, read_runs
from vtw_eval.report.table import markdown_table

__all__ = ["Run", "markdown_table", "read_runs"]
