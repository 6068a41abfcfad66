"""What a model answers with methods, and what each of them kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtw_eval.cost import eq1_prefill_flops
from vtw_eval.methods import Baseline, Method
from vtw_eval.models.blank import as_asked
from vtw_eval.models.family import DocumentPrompt, Family
from vtw_eval.models.runner import Runner
from vtw_eval.models.traces import check_trace
from vtw_eval.show.sight import Sight, look
from vtw_eval.show.steps import Step, steps


@dataclass(frozen=True)
class Shown:
    """What one method did to a prompt."""

    method: str
    """With all its parameters."""
    answer: str
    steps: tuple[Step, ...] = field(repr=False)
    """What the layers got."""
    tokens_per_layer: tuple[int, ...]
    """Tokens of the prompt that entered each layer."""
    flops: float
    """Of the prefill, by Eq. 1 of the VTW paper."""

    def differs_from(self, other: Shown) -> int | None:
        """Return from which word on the answer is another one, from 0; None if it is the same."""
        return first_difference(other.answer, self.answer)


@dataclass(frozen=True)
class Scene:
    """A prompt, and what methods did to it."""

    title: str
    """The question, or the name of the document."""
    prompt: str
    """The prompt's text as the model gets it."""
    sight: Sight
    vision: int
    """Vision tokens of the prompt."""
    shown: tuple[Shown, ...]
    """The unchanged model first."""


def first_difference(before: str, after: str) -> int | None:
    """Return the number of the first word in which two texts differ, from 0; None if all are the same.

    Where one text ends and the other goes on, it is the first word that only one has.
    """
    one, other = before.split(), after.split()
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def show(
    runner: Runner,
    title: str,
    build: Callable[[Family[Any]], DocumentPrompt],
    methods: Sequence[Method],
    generation: Mapping[str, Any],
) -> Scene:
    """Answer one prompt with the unchanged model and with each method.

    Parameters
    ----------
    runner
        The model; it is left with the last method.
    title
        What to call the prompt.
    build
        Makes it.
    methods
        The methods.
    generation
        Arguments of the generation, as tasks have them.

    Raises
    ------
    ValueError
        If a method is impossible for this model, the prompt shows nothing, or the tower cannot be read.
    VerificationError
        If a method does not compute what it should with the installed packages.
    """
    family = runner.family
    prompt = as_asked(build(family), runner.options)
    encoded = family.encode([prompt])
    if encoded.vision_mask is not None:
        raise ValueError(
            f"{family.model_type} checkpoints run code of their own, whose vision tower cannot be read: take the "
            "checkpoint in transformers' format."
        )
    sight = look(family, encoded)
    arguments = family.generation(generation)
    shown = []
    vision = 0
    for method in (Baseline(), *(each for each in methods if not isinstance(each, Baseline))):
        runner.exchange(method)
        runner.refuse_search("vtw-eval show")
        with runner.method(family.model, prompt_ids=encoded.inputs["input_ids"]) as trace:
            tokens = family.generate(encoded, arguments)
        check_trace(trace, encoded, [prompt])
        assert trace.reduction is not None, "check_trace() has looked"
        vision = int(trace.reduction.prompt.vision[0].sum())
        counts = trace.tokens_per_layer[:1]
        shown.append(
            Shown(
                method=str(runner.method),
                answer=family.decode(tokens, generation)[0].strip(),
                steps=tuple(steps(trace)),
                tokens_per_layer=tuple(counts[0].tolist()),
                flops=float(eq1_prefill_flops(counts, runner.anatomy.hidden_size, trace.updated_per_layer[:1])[0]),
            )
        )
    return Scene(title, prompt.text, sight, vision, tuple(shown))
