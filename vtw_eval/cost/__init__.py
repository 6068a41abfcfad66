"""What a trace costs, one function per named convention."""

from vtw_eval.cost.eq1 import eq1_prefill_flops

__all__ = ["eq1_prefill_flops"]
