"""The command ``vtw-eval``: one module per sub-command, each of them thin (parse, call, print)."""

from vtw_eval.cli import cost, methods, report, search_k, train_dyvte
from vtw_eval.cli.app import app

__all__ = ["app", "cost", "methods", "report", "search_k", "train_dyvte"]
