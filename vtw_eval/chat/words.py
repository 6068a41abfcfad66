"""What is told of a turn, in words."""

from __future__ import annotations

from vtw_eval.chat.session import Turn
from vtw_eval.cost.units import bytes_text, flops_unit
from vtw_eval.show.steps import runs

_ENCODINGS = {
    "made": "picture encoded",
    "kept": "picture's encoding kept from before",
    "read": "picture encoded for this method, which reads the tower while it runs",
}
_ENDS = {"length": "cut at the longest answer allowed", "stopped": "stopped"}


def speed(turn: Turn) -> str:
    """Return tokens, seconds to the first one and tokens per second."""
    rate = "" if turn.rate is None else f", then {turn.rate:.1f} tokens/s"
    return f"{turn.new_tokens} token{'s' * (turn.new_tokens != 1)}, first after {turn.first_seconds:.2f} s{rate}"


def work(turn: Turn) -> str:
    """Return the FLOPs of the language model, of the prompt and of the answer."""
    if turn.prefill_flops is None or turn.answer_flops is None:
        return "FLOPs: no closed form for this model and method"
    unit, name = flops_unit(max(turn.prefill_flops, turn.answer_flops))
    return f"prompt {turn.prefill_flops / unit:.3g} + answer {turn.answer_flops / unit:.3g} {name}"


def memory(turn: Turn) -> str:
    """Return the size of the KV cache."""
    return f"{_size(turn.kv_bytes)}, {turn.kv_share:.1%} of that with all tokens"


def layers(turn: Turn) -> str:
    """Return how many tokens layers hold, neighbours with as many together."""
    return f"tokens held by layer {runs(turn.tokens_per_layer)}"


def remarks(turn: Turn) -> list[str]:
    """Return what else is to be said."""
    found = [_ENCODINGS[turn.encoding]] if turn.encoding in _ENCODINGS else []
    if turn.prompt_tokens > turn.fresh_tokens:
        found.append(f"{turn.fresh_tokens} of {turn.prompt_tokens} prompt tokens ran, the others were in the cache")
    if turn.ended in _ENDS:
        found.append(_ENDS[turn.ended])
    return [*found, *turn.notes]


def _size(count: int) -> str:
    """Return a number of bytes, of small caches too."""
    return bytes_text(count) if count >= 2**20 else f"{count / 2**10:.1f} KiB"
