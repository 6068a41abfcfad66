"""DyVTE: small trained gates look at the text after each layer and decide when the vision tokens leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtw_eval.anatomy import Anatomy
from vtw_eval.engine import LayerView, Reads, Trace
from vtw_eval.methods.base import Asked, Method
from vtw_eval.methods.dyvte.gates import (
    Gates,
    after_vision,
    checkpoint_name,
    final_norm,
    gate_features,
    load_gates,
    same_weights,
)

GATES_FILE = "dyvte.safetensors"
"""Name of a gates file that lies beside the weights of its model and needs no naming."""


@dataclass(frozen=True, kw_only=True)
class DyVTE(Method):
    """Withdraw a row's vision tokens after the first layer whose gate says so (Wu et al., 2024).

    After layer l a gate sees the mean of the prompt's text tokens behind the last image, and its last token. Decided
    per row, in the prefill only; positions are kept. The paper's code handles one row at a time and one image.
    :func:`exit_layers` reads the decisions from a trace.

    Parameters
    ----------
    gates
        A file made by ``vtw-eval train-dyvte``. ``None``: the file ``dyvte.safetensors`` in the model's own folder
        (the embedded shapes model has one).
    check_name
        Whether the name of the model must be that of the model for which the gates were trained (the last part of the
        Hub name or folder). Hidden size and number of layers must match in any case.
    """

    key: ClassVar[str] = "dyvte"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.19628"
    reads = Reads.HIDDEN
    leaves_whole = True
    also_needs: ClassVar[str] = "gates trained for the checkpoint"
    needs_vision: ClassVar[bool] = True
    adaptive = (
        "where dyvte's gates let vision tokens leave depends on model and prompt: give the exit layer, as vtw,k=EXIT+1 "
        "(EXIT counts from 0, as in the paper's Table 3)."
    )

    gates: str | None = None
    check_name: bool = True

    @cached_property
    def network(self) -> Gates:
        """The gates, read once; :meth:`bind` has checked them."""
        assert self.gates is not None, "bind() reads those beside the weights"
        return load_gates(Path(self.gates))

    def bind(self, anatomy: Anatomy) -> DyVTE:
        """Find the gates, read them and check them against the model."""
        if self.gates is None and "network" not in self.__dict__:
            beside = Path(anatomy.name, GATES_FILE)
            if not anatomy.name or not beside.is_file():
                raise ValueError(
                    f"dyvte needs gates trained for {anatomy.name or 'this model'}: make them by `vtw-eval train-dyvte "
                    "--model CHECKPOINT --data DATA.json -o FILE.safetensors` and give gates=FILE.safetensors."
                )
            return self._with(load_gates(beside)).bind(anatomy)
        network, gates = self.network, self.gates or str(Path(anatomy.name, GATES_FILE))
        for what, theirs, mine in (
            ("hidden size", network.hidden_size, anatomy.hidden_size),
            ("number of decoder layers", network.num_layers, anatomy.num_layers),
        ):
            if theirs != mine:
                raise ValueError(f"the gates {gates!r} are for a {what} of {theirs}, this model has {mine}.")
        name = checkpoint_name(anatomy.name)
        # Those beside the weights belong to them; their folder may have been renamed.
        if self.gates is not None and self.check_name and network.checkpoint != name:
            raise ValueError(
                f"the gates {gates!r} were trained for {network.checkpoint!r}, this model is {name!r}: train "
                "gates for it, or add check_name=false if it is the same model under another name."
            )
        if not same_weights(network.norm, final_norm(anatomy.decoder)):
            raise ValueError(
                f"the gates {gates!r} were trained for other weights than those of {name!r}: train gates for it."
            )
        return self

    def stand_in(self, anatomy: Anatomy) -> DyVTE:
        """Return the method with random gates, by which a row leaves after each layer about half of the time."""
        return self._with(Gates(anatomy.hidden_size, anatomy.num_layers, inner=16).initialise(0))

    def _with(self, network: Gates) -> DyVTE:
        """Return the method with gates that no parameter names."""
        twin = replace(self, gates=None)
        twin.__dict__["network"] = network
        return twin

    def own_flops(self, asked: Asked) -> Mapping[str, int]:
        """Gates: ``2 (2h w + 2w)`` with inner width w, per row that still has vision tokens."""
        inner = self.network.inner
        return {"gates": int((asked.before > 0).sum()) * 2 * (2 * asked.hidden * inner + 2 * inner)}

    def params(self) -> Mapping[str, Any]:
        """Name the gates' file; whether their name is checked only where it is not."""
        return {"gates": self.gates, **({} if self.check_name else {"check_name": False})}

    def layers(self, num_layers: int) -> Sequence[int]:
        """Every layer but the first: the gate after layer l decides what enters layer l + 1."""
        return range(1, num_layers)

    def keep(self, view: LayerView) -> Tensor:
        """Everything but the vision tokens of the rows whose gate says exit."""
        rows = view.vision.any(dim=1).nonzero()[:, 0]  # those that still have something to lose
        if not len(rows):
            return view.valid
        text = view.valid & ~view.generated & after_vision(view.prompt.vision).gather(1, view.index)
        at = rows.to(view.hidden.device)
        exits = self.network.exits(view.layer - 1, gate_features(view.hidden[at], text[rows], view.last[rows]))
        leaving = torch.zeros_like(view.vision[:, 0])
        leaving[rows] = exits.to(leaving.device)
        return ~(view.vision & leaving[:, None])


def exit_layers(trace: Trace) -> Tensor:
    """Return the index of the layer after which each row's vision tokens left, as in the paper's Table 3.

    Parameters
    ----------
    trace
        Of :class:`DyVTE`, alone or in a composition.

    Returns
    -------
    Tensor
        Long ``[rows]``; N-1, the last layer, where they never left, and -1 in rows that have none.
    """
    return (trace.vision_per_layer > 0).sum(dim=1) - 1
