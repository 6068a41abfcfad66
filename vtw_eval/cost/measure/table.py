"""Counted costs for people: two tables, and what each convention counts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig

from vtw_eval.cost.geometry import Geometry
from vtw_eval.cost.measure.counted import CountedCosts
from vtw_eval.cost.units import flops_unit
from vtw_eval.tables import Table

_NOTES = """\
closed form: `exact` (every matrix product of the decoder layers, queries by keys and weights by values for all pairs,
  head on the last token) and `read` (what runs once more so that the method can read it: scores, keys).
fvcore reads the graph that torch.jit traces of the model, torch's counter sees the kernels that run; both on the meta
  device, without weights, in {model}. {agreement}
eq1: 2 s^2 h + 12 s h^2 multiply-adds per layer on s tokens of width h (VTW, Eq. 1), two FLOPs each. It takes the
  matrices of a layer for 12 h^2 numbers; here they are {ratio:.2f} h^2. No head, nothing that a method reads.
profiler: the convention of the paper's tables. No attention products, the head on the mean number of tokens.
None of them counts norms, activations, softmax, rotary embedding, masks, sorting and moving of tokens."""


def counted_table(costs: Sequence[CountedCosts]) -> Table[str]:
    """Return closed forms and counts, one line per method; the baseline comes first."""
    unit, name = flops_unit(costs[0].closed)
    columns = ("exact", "read", f"closed form, {name}", "fvcore", "torch's counter", "eq1", "profiler")
    rows = []
    for c in costs:
        values = (c.exact, sum(c.read.values()), c.closed, c.fvcore.total, c.torch.total, c.eq1, c.profiler)
        tokens = sum(c.tokens_per_layer) / len(c.tokens_per_layer)
        rows.append([c.method, f"{tokens:.1f}", *(f"{v / unit:.6f}" for v in values), f"{c.kv_bytes / 1e6:.1f}"])
    return Table(["method", "tokens/layer", *columns, "KV, MB"], rows)


def difference_table(costs: Sequence[CountedCosts]) -> Table[str]:
    """Return why conventions differ from the closed form, one line per method and convention."""
    unit, name = flops_unit(costs[0].closed)
    rows = []
    for c in costs:
        for convention, d in (("eq1", c.eq1_differs), ("profiler", c.profiler_differs)):
            values = (d.total, d.matrices, d.attention, d.head, d.read)
            rows.append([c.method, convention, *(f"{v / unit:+.6f}" if v else "0" for v in values)])
    parts = ("layers' matrices", "attention products", "head", "read")
    return Table(["method", "convention", f"in all, {name}", *parts], rows, words=2)


def counted_notes(costs: Sequence[CountedCosts], source: Geometry | PreTrainedConfig, geometry: Geometry) -> str:
    """Return what the columns of :func:`counted_table` count, and what is in none of them.

    Parameters
    ----------
    costs
        Of :func:`~vtw_eval.cost.measure.counted.counted_costs`.
    source
        What was counted.
    geometry
        Its sizes.
    """
    wrong = any(found.unexplained for found in costs)
    model = "a Llama decoder of these sizes" if isinstance(source, Geometry) else f"{source.model_type} of that config"
    notes = _NOTES.format(
        model=model,
        agreement="They do not find what they should: see the error." if wrong else "All agree to the FLOP.",
        ratio=geometry.layer_macs / geometry.hidden**2,
    )
    return "\n".join([notes, *(line for found in costs for line in _not_run(found))])


def _not_run(costs: CountedCosts) -> list[str]:
    lines = []
    for kind, flops in costs.own.items():
        unit, name = flops_unit(flops)
        lines.append(
            f"Not run without values, and not in its row: {kind} of {costs.method}, {flops / unit:.3f} {name} by "
            "closed form."
        )
    return lines
