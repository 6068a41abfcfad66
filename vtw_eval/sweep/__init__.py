"""Sweeps: a typed plan becomes cells, a runner evaluates them, a store keeps them."""

from vtw_eval.record.cell import Cell, CellCosts, CellSpec, Metric, Sample
from vtw_eval.record.store import Entry, Store, StoreError
from vtw_eval.sweep.plan import Plan, PlanError, find_plan, presets, read_plan

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
