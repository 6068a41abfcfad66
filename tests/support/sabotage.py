"""Invented releases of transformers: Llama's source with a change of the kind that happens, under its own name.

``vtw-eval`` never sees them as such: :func:`decoder_of` builds a decoder of the changed source for a model in this
process, and :func:`install` puts a finder before all others, so that the next import gets the changed source (for
programs run with ``tests/sabotaged_site`` on their path).
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

LLAMA = "transformers.models.llama.modeling_llama"


def changed(source: str, *pairs: tuple[str, str]) -> str:
    """Replace patterns, each of which must occur; ``CACHE`` stands for the name of the KV cache in this release."""
    cache = "cache" if re.search(r"\bcache: Cache", source) else "past_key_values"
    for pattern, new in pairs:
        source, count = re.subn(pattern.replace("CACHE", cache), new.replace("CACHE", cache), source)
        assert count, f"{pattern} does not occur"
    return source


def _in_layers(source: str, *pairs: tuple[str, str]) -> str:
    """Change the decoder layer and its call only."""
    start, end = source.index("class LlamaDecoderLayer"), source.index("class LlamaPreTrainedModel")
    layer = changed(source[start:end], *pairs) if pairs else source[start:end]
    return source[:start] + layer + source[end:]


def renamed_cache(source: str) -> str:
    """The decoder layer's KV cache has another name."""
    source = changed(source, (rf"CACHE=CACHE,\n{_END_OF_CALL}", r"kv_store=CACHE,\n\1"))
    return _in_layers(source, (r" CACHE: Cache", " kv_store: Cache"), (r"CACHE=CACHE", "CACHE=kv_store"))


def renamed_mask(source: str) -> str:
    """The decoder layer's ``attention_mask`` has another name."""
    source = changed(
        source,
        (r"attention_mask=causal_mask,\n(\s+)position_embeddings", r"visible=causal_mask,\n\1position_embeddings"),
    )
    return _in_layers(
        source,
        (r"attention_mask: torch.Tensor \| None = None", "visible: torch.Tensor | None = None"),
        (r"attention_mask=attention_mask", "attention_mask=visible"),
    )


def renamed_positions(source: str) -> str:
    """The decoder layer's ``position_embeddings`` and ``position_ids`` have other names."""
    source = changed(
        source,
        (
            r"position_embeddings=position_embeddings,\n(\s+)position_ids=position_ids,\n(\s+)CACHE",
            r"rotary=position_embeddings,\n\1places=position_ids,\n\2CACHE",
        ),
    )
    return _in_layers(
        source,
        (r"position_ids: torch.LongTensor \| None = None", "places: torch.LongTensor | None = None"),
        (r"position_embeddings: tuple", "rotary: tuple"),
        (r"position_ids=position_ids", "position_ids=places"),
        (r"position_embeddings=position_embeddings", "position_embeddings=rotary"),
    )


def positional(source: str) -> str:
    """Layers are called with positional arguments."""
    return changed(
        source,
        (
            r"attention_mask=causal_mask,\n\s+position_embeddings=position_embeddings,\n\s+position_ids=position_ids,\n"
            r"\s+CACHE=CACHE,\n\s+use_cache=use_cache,",
            "causal_mask, position_ids, CACHE, use_cache, position_embeddings,",
        ),
    )


def integer_mask(source: str) -> str:
    """Layers get their mask as small integers, and attention turns it back."""
    return changed(
        source,
        (
            r"\n    hidden_states = inputs_embeds\n|\n        hidden_states = inputs_embeds\n",
            "\n        causal_mask = None if causal_mask is None else ((causal_mask if causal_mask.dtype == torch.bool "
            "else causal_mask >= 0).to(torch.int8))\n        hidden_states = inputs_embeds\n",
        ),
        (
            r"(\n\s+attn_output, attn_weights = attention_interface\()",
            r"\n        attention_mask = None if attention_mask is None else _bias(attention_mask, query_states)\1",
        ),
        (
            r"class LlamaAttention\(",
            "def _bias(mask, states):\n    return torch.zeros_like(mask, dtype=states.dtype)"
            ".masked_fill(mask == 0, torch.finfo(torch.float32).min)\n\n\nclass LlamaAttention(",
        ),
    )


def additive_mask(source: str) -> str:
    """Layers get additive masks whatever the attention implementation is."""
    return changed(
        source,
        (
            r"\n        hidden_states = inputs_embeds\n",
            "\n        if causal_mask is not None and causal_mask.dtype == torch.bool:\n"
            "            causal_mask = torch.zeros_like(causal_mask, dtype=inputs_embeds.dtype)"
            ".masked_fill(~causal_mask, torch.finfo(torch.float32).min)\n        hidden_states = inputs_embeds\n",
        ),
    )


def inverted_mask(source: str) -> str:
    """Layers get boolean masks in which True hides, and attention turns them round."""
    return changed(
        source,
        (
            r"\n        hidden_states = inputs_embeds\n",
            "\n        causal_mask = None if causal_mask is None else (~causal_mask if causal_mask.dtype == torch.bool "
            "else causal_mask < 0)\n        hidden_states = inputs_embeds\n",
        ),
        (
            r"(\n\s+attn_output, attn_weights = attention_interface\()",
            r"\n        attention_mask = None if attention_mask is None else torch.zeros_like(attention_mask, "
            r"dtype=query_states.dtype).masked_fill(attention_mask, torch.finfo(torch.float32).min)\1",
        ),
    )


def own_keys(source: str) -> str:
    """Odd layers keep their keys themselves and leave the cache empty."""
    return changed(
        source,
        (
            r"if CACHE is not None:\n(\s+)key_states, value_states = CACHE",
            "if CACHE is not None and self.layer_idx % 2:\n"
            r"\1fresh = getattr(self, 'mine', None) is None or query_states.shape[2] > 1"
            "\n"
            r"\1self.mine = (key_states, value_states) if fresh else (torch.cat([self.mine[0], key_states], 2), "
            "torch.cat([self.mine[1], value_states], 2))\n"
            r"\1key_states, value_states = self.mine"
            "\n"
            "        elif CACHE is not None:\n"
            r"\1key_states, value_states = CACHE",
        ),
    )


def tokens_first_rotary(source: str) -> str:
    """Position embeddings have their tokens in front."""
    return _rotary(
        source,
        "return cos.to(dtype=x.dtype).transpose(0, 1), sin.to(dtype=x.dtype).transpose(0, 1)",
        "cos, sin = (part.transpose(0, 1) for part in position_embeddings)",
    )


def packed_rotary(source: str) -> str:
    """Position embeddings are one tensor, sine in front of cosine."""
    return _rotary(
        source,
        "return torch.cat([sin.to(dtype=x.dtype), cos.to(dtype=x.dtype)], dim=-1)",
        "sin, cos = position_embeddings.chunk(2, dim=-1)",
    )


def _rotary(source: str, made: str, read: str) -> str:
    """Change how position embeddings leave the rotary module and how attention reads them."""
    return changed(
        source,
        (r"return cos.to\(dtype=x.dtype\), sin.to\(dtype=x.dtype\)", made),
        (r"cos, sin = position_embeddings\n", f"{read}\n"),
    )


def swapped_cache(source: str) -> str:
    """The decoder puts another cache, which shares the layers, in place of the one that it got."""
    return changed(
        source,
        (
            r"\n        hidden_states = inputs_embeds\n",
            "\n        if CACHE is not None:\n            import copy\n            CACHE = copy.copy(CACHE)\n"
            "        hidden_states = inputs_embeds\n",
        ),
    )


def hidden_cache(source: str) -> str:
    """The cache is no argument of the layers any more."""
    layers = r"(            )hidden_states = decoder_layer\("
    source = changed(source, (layers, r"\1decoder_layer.self_attn.kv = CACHE\n\1hidden_states = decoder_layer("))
    source = changed(source, (rf"CACHE=CACHE,\n{_END_OF_CALL}", r"\1"))
    inside = r"\n        if CACHE is not None:\n(\s+)key_states"
    taken = r"\n        CACHE = getattr(self, 'kv', None)\n        if CACHE is not None:\n\1key_states"
    return changed(source, (inside, taken))


_END_OF_CALL = r"(\s+use_cache=use_cache,\n\s+\*\*kwargs,\n\s+\)\n\n        hidden_states = self.norm)"
"""Of the layers, in the decoder."""


SABOTAGES: Mapping[str, Callable[[str], str]] = {
    change.__name__: change
    for change in (
        renamed_cache,
        renamed_mask,
        renamed_positions,
        positional,
        integer_mask,
        additive_mask,
        inverted_mask,
        own_keys,
        tokens_first_rotary,
        packed_rotary,
        swapped_cache,
        hidden_cache,
    )
}


def module_of(name: str) -> ModuleType:
    """Return Llama's module with a change, beside the real one."""
    real = importlib.import_module(LLAMA)
    assert real.__file__ is not None
    source = SABOTAGES[name](Path(real.__file__).read_text(encoding="utf-8"))
    module = ModuleType(f"{LLAMA}_{name}")
    module.__dict__.update(__package__="transformers.models.llama", __file__=real.__file__)
    sys.modules[module.__name__] = module
    exec(compile(source, real.__file__, "exec"), module.__dict__)  # docstrings are made from the path
    return module


def decoder_of(name: str, decoder: Any) -> Any:
    """Return a decoder of changed source with the config and the weights of a Llama decoder."""
    new = module_of(name).LlamaModel(decoder.config).to(next(decoder.parameters()).dtype)
    new.load_state_dict(decoder.state_dict())
    return new.eval()


class _Loader(SourceFileLoader):
    name_of_change = ""

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        return SABOTAGES[self.name_of_change](data.decode()).encode() if path.endswith(".py") else data

    def get_code(self, fullname: str) -> Any:  # never a cached one
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, change: str) -> None:
        self.change = change

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != LLAMA:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None and spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.name_of_change = self.change
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def install(change: str) -> None:
    """Let this process import Llama with a change."""
    sys.meta_path.insert(0, _Finder(change))
