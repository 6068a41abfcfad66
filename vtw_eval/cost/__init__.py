"""What a trace costs, one function per named convention."""

from vtw_eval.cost.eq1 import eq1_prefill_flops
from vtw_eval.cost.exact import exact_decode_flops, exact_prefill_flops, projector_flops, vision_tower_flops
from vtw_eval.cost.geometry import Geometry, VisionGeometry
from vtw_eval.cost.kv import kv_cache_bytes
from vtw_eval.cost.presets import PRESETS, get_geometry
from vtw_eval.cost.profiler import profiler_prefill_flops

__all__ = [
    "PRESETS",
    "Geometry",
    "VisionGeometry",
    "eq1_prefill_flops",
    "exact_decode_flops",
    "exact_prefill_flops",
    "get_geometry",
    "kv_cache_bytes",
    "profiler_prefill_flops",
    "projector_flops",
    "vision_tower_flops",
]
