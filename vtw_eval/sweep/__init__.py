"""Sweeps: a typed plan becomes cells, a runner evaluates them, a store keeps them."""

from vtw_eval.sweep.cell import Cell, CellCosts, CellSpec, Metric, Sample

__all__ = ["Cell", "CellCosts", "CellSpec", "Metric", "Sample"]
