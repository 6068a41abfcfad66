"""Hooks on decoder layers: which tokens a layer sees, and the masks, positions and cache that go with them.

Every decoder layer of a transformers model gets the same mask, position ids and position embeddings. Once tokens
have been removed before layer k, each of the layers k..N-1 must get its own selection of them: in the prefill along
queries and keys, while decoding along keys. The selection is *gathered* from what the model made itself, never
rebuilt, because masks carry sliding windows and bidirectional image blocks, and position embeddings carry M-RoPE.

In every layer the kept tokens of a row stand at the right, so rows with different numbers of vision tokens batch.
The decoder's output is put back to the length of the prompt (zeros where a token was removed), so logits, labels and
hidden states line up with ``input_ids`` as they do without a method.
"""

from vtw_eval.engine.hooks import install
from vtw_eval.engine.observe import Entering, Observer
from vtw_eval.engine.probes import AttentionRows
from vtw_eval.engine.reads import Reads
from vtw_eval.engine.trace import Trace
from vtw_eval.engine.view import LayerView, Merge, Reducer

__all__ = ["AttentionRows", "Entering", "LayerView", "Merge", "Observer", "Reads", "Reducer", "Trace", "install"]
