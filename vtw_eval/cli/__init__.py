"""The command ``vtw-eval``: one module per sub-command, each of them thin (parse, call, print)."""

from vtw_eval.cli import (
    analyze,
    bench,
    chat,
    choose,
    cost,
    curve,
    fit_fitprune,
    methods,
    prepare_tgif,
    report,
    search_k,
    show,
    sweep,
    tasks,
    train_dyvte,
    verify,
    web,
)
from vtw_eval.cli.app import app

__all__ = [
    "analyze",
    "app",
    "bench",
    "chat",
    "choose",
    "cost",
    "curve",
    "fit_fitprune",
    "methods",
    "prepare_tgif",
    "report",
    "search_k",
    "show",
    "sweep",
    "tasks",
    "train_dyvte",
    "verify",
    "web",
]
