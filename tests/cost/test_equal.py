"""Methods at equal cost."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from vtw_eval.cli import app
from vtw_eval.cost import PRESETS
from vtw_eval.cost.dry_run import tokens_per_layer
from vtw_eval.cost.equal import TOLERANCE, fit_flops
from vtw_eval.cost.exact import exact_prefill_flops
from vtw_eval.methods import METHODS, parse_method

LLAVA = PRESETS["llava-1.5-7b"]
VIDEO = ("evs", "vidcom2", "dycoke", "fastvid", "holitom", "uniform_frames")
"""Whose costs on an image tell nothing."""
WHOLE = ("vtw", "shortv")
ADJUSTABLE = [n for n in METHODS if n not in ("baseline", *WHOLE, "rand", "random_k", "dyvte", "pool", *VIDEO)]
"""Those that act on whole layers alone come only as near as a layer costs."""


def share(spec: str, vision: int = 576) -> float:
    """Return the prefill's FLOPs under a method, of the unchanged model's."""
    costs = [
        float(exact_prefill_flops(tokens_per_layer(parse_method(each), LLAVA.layers, text=66, vision=vision), LLAVA))
        for each in (spec, "baseline")
    ]
    return costs[0] / costs[1]


@pytest.mark.parametrize("name", ADJUSTABLE)
def test_every_method_that_can_costs_the_same(name: str) -> None:
    # One merges until the last layer, the other removes nothing before layer 16: half is out of their reach.
    budget = 0.6 if name in ("tome", "ivc_prune") else 0.5
    fit = fit_flops(parse_method(name), LLAVA, budget, text=66, vision=576)
    assert not fit.problem
    assert fit.share == pytest.approx(budget, rel=TOLERANCE)
    assert share(str(fit.method)) == fit.share


def test_the_nearest_is_found() -> None:
    """Whatever number of tokens, or layer: none is nearer than the one that was chosen."""
    fit = fit_flops(parse_method("vtw"), LLAVA, 0.5, text=66, vision=576)
    assert abs(fit.share - 0.5) == min(abs(share(f"vtw,k={k}") - 0.5) for k in range(11, 19)) > 0.005
    assert "steps" in fit.problem
    fit = fit_flops(parse_method("fastv,k=3,tokens=10"), LLAVA, 0.3, text=66, vision=576)
    assert fit.method.params()["k"] == 3 and fit.method.params()["tokens"] is None
    shares = [share(f"fastv,k=3,tokens={tokens}") for tokens in range(70, 100)]
    assert abs(fit.share - 0.3) == pytest.approx(min(abs(one - 0.3) for one in shares))


def test_what_cannot_be_reached_is_said() -> None:
    assert fit_flops(parse_method("tome"), LLAVA, 0.5, text=66, vision=576).problem == "it costs 53.3% to 100.0%"
    fit = fit_flops(parse_method("fastv,k=16"), LLAVA, 0.3, text=66, vision=576)
    assert fit.share > 0.5 and str(fit.method) == "fastv,k=16,r=1,seed=0"
    assert fit.problem.startswith("it costs 5") and fit.problem.endswith("to 100.0%")
    assert fit_flops(parse_method("evs"), LLAVA, 0.5, text=66, vision=576).problem == "it costs 100.0% to 100.0%"
    assert "no parameter" in fit_flops(parse_method("random_k"), LLAVA, 0.3, text=66, vision=576).problem
    with pytest.raises(ValueError, match="out of range"):
        fit_flops(parse_method("vtw"), LLAVA, 0.0, text=66, vision=576)
    with pytest.raises(ValueError, match=r"downsample,r=0\.75"):
        fit_flops(parse_method("pool"), LLAVA, 0.5, text=66, vision=576)
    with pytest.raises(ValueError, match="gates"):
        fit_flops(parse_method("dyvte"), LLAVA, 0.5, text=66, vision=576)


def test_the_command_tells_what_was_set() -> None:
    done = CliRunner().invoke(
        app, ["cost", "--geometry", "llava-1.5-7b", "--flops", "0.5", "--method", "divprune", "--method", "fastv,k=20"]
    )
    assert done.exit_code == 0
    fit = fit_flops(parse_method("divprune"), LLAVA, 0.5, text=65.9, vision=576)
    assert str(fit.method) in done.stdout
    assert "fastv,k=20 cannot cost 50.0% of the FLOPs: it costs " in done.stderr
