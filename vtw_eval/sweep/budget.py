"""Budgets of a plan: every method at one cost, or with one number of vision tokens, beside controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from pydantic import Field, model_validator

from vtw_eval.cost.equal import fit_flops
from vtw_eval.methods import Baseline, Method, parse_method
from vtw_eval.record.strict import Strict
from vtw_eval.sweep.estimate import geometry_of, usual_prompt

CONTROLS = ("random_vision", "uniform", "downsample")
"""Methods that stand beside the others at every budget: what does not beat them chooses no better than chance."""
VIDEO_CONTROLS = ("random_per_frame", "uniform_frames")
"""Those that stand beside them too where a video is shown."""


class Budget(Strict):
    """What each method may cost; one of the two."""

    flops: float | None = Field(default=None, gt=0, le=1)
    """FLOPs of the prefill, of the unchanged model's, by ``exact`` and on a prompt of the model's usual length."""
    tokens: int | None = Field(default=None, ge=1)
    """Vision tokens that stay for each image."""
    frames: int | None = Field(default=None, ge=1)
    """With ``flops``: the prompt shows a video of so many frames; one image if not given."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if (self.flops is None) == (self.tokens is None):
            raise ValueError("a budget is {flops: SHARE} or {tokens: NUMBER}, one of them")
        if self.tokens is not None and self.frames is not None:
            raise ValueError("frames: belongs to {flops: SHARE}; tokens are counted for each image or frame anyway")
        return self

    @property
    def label(self) -> str:
        """What reports call it."""
        if self.flops is None:
            return f"{self.tokens} tokens per image"
        return f"{self.flops:.3g} of the FLOPs" + (f", {self.frames} frames" if self.frames is not None else "")

    def fit(self, method: Method, pretrained: str) -> tuple[Method | None, str]:
        """Return a method at this budget, None if it cannot be set to it, and what is to be said of it.

        Parameters
        ----------
        method
            The method.
        pretrained
            Checkpoint, which sizes and usual prompts depend on.

        Raises
        ------
        ValueError
            If the sizes of the checkpoint are not known without it.
        """
        if self.tokens is not None:
            if "tokens" not in {f.name for f in fields(method)}:
                return None, f"{method}: no number of tokens can be given"
            return replace(method, tokens=self.tokens, r=None), ""  # type: ignore[call-arg]
        assert self.flops is not None
        geometry = geometry_of(pretrained)
        vision = None
        if geometry is not None:
            vision = geometry.vision_tokens if self.frames is None else geometry.video_tokens(self.frames)
        if geometry is None or vision is None:
            raise ValueError(
                f"{pretrained}: its sizes, or how many vision tokens an image{' or frame' if self.frames else ''} has, "
                "are not known without it; give budgets as {tokens: NUMBER}."
            )
        text, _ = usual_prompt(pretrained)
        try:
            fit = fit_flops(method, geometry, self.flops, text=text, vision=vision, frames=self.frames)
        except ValueError as error:
            return None, f"{method}: {error}"
        if fit.problem and not fit.reachable:
            return None, f"{method}: {fit.problem}"
        notes = [fit.problem] if fit.problem else []
        if fit.nominal:
            notes.append("if it keeps what it is asked to; what it keeps depends on the video")
        return fit.method, f"{fit.method}: {fit.share:.1%} of the FLOPs, {'; '.join(notes)}" if notes else ""


class Fitted(Strict):
    """What stands for a budget in a plan that was resolved."""

    budget: str
    """Its label."""
    methods: list[str]
    """Specs."""
    missed: list[str] = Field(default_factory=list)
    """What cannot be set to it, or comes near only, and why."""


def fit_methods(specs: Sequence[str], budgets: Sequence[Budget], pretrained: str) -> Iterator[Fitted]:
    """Yield the methods of a plan at each budget, controls among them, for one checkpoint.

    Raises
    ------
    ValueError
        If the sizes of the model are not known.
    """
    methods = [method for method in map(parse_method, specs) if method != Baseline()]
    for budget in budgets:
        found, missed = dict[str, None](), []
        controls = [*CONTROLS, *(VIDEO_CONTROLS if budget.frames else ())]
        more = [control for control in map(parse_method, controls) if type(control) not in map(type, methods)]
        for method in (*methods, *more):
            fitted, problem = budget.fit(method, pretrained)
            if fitted is not None:
                found[str(fitted)] = None
            if problem:
                missed.append(problem)
        yield Fitted(budget=budget.label, methods=list(found), missed=missed)
