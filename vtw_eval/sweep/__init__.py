"""Sweeps: a typed plan becomes cells, a runner evaluates them, a store keeps them."""

from vtw_eval.sweep.cell import Cell, CellCosts, CellSpec, Metric, Sample
from vtw_eval.sweep.plan import Plan, PlanError, find_plan, presets, read_plan
from vtw_eval.sweep.store import Entry, Store, StoreError

__all__ = [
    "Cell",
    "CellCosts",
    "CellSpec",
    "Entry",
    "Metric",
    "Plan",
    "PlanError",
    "Sample",
    "Store",
    "StoreError",
    "find_plan",
    "presets",
    "read_plan",
]
