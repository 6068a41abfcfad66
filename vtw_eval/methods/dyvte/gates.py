"""The gate networks of DyVTE: what they look at, what they are, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vtw_eval.files import atomically

FORMAT = "vtw-eval dyvte gates"
VERSION = 1
_NORM = "norm"
INNER = 2048
"""Inner width of the paper's gates."""


class Gate(nn.Module):
    """One gate, ``GELU(x W1) W2`` of Eq. 1 of https://arxiv.org/abs/2411.19628: no biases, the exact (erf) GELU.

    Parameters
    ----------
    hidden_size
        Width of the model, h.
    inner
        Inner width.
    """

    def __init__(self, hidden_size: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(2 * hidden_size, inner))
        self.w2 = nn.Parameter(torch.empty(inner, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of keep (0) and exit (1), computed in float32.

        Parameters
        ----------
        features
            ``[rows, 2h]``, see :func:`gate_features`.

        Returns
        -------
        Tensor
            ``[rows, 2]``; the softmax of Eq. 1 does not change which is larger.
        """
        return F.gelu(features.float() @ self.w1.float()) @ self.w2.float()


class Gates(nn.Module):
    """The gates of a model: one after each decoder layer but the last, after which there is nothing left to save.

    Parameters
    ----------
    hidden_size
        Width of the model, h.
    num_layers
        Decoder layers of the model, N.
    inner
        Inner width.
    checkpoint
        Name of the model, see :func:`checkpoint_name`.
    norm
        Weight of the model's final norm, ``[h]``, by which gates notice other weights under the same name; None for
        gates that were not trained.
    """

    def __init__(
        self, hidden_size: int, num_layers: int, inner: int = INNER, checkpoint: str = "", norm: Tensor | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.hidden_size, self.num_layers, self.inner, self.checkpoint = hidden_size, num_layers, inner, checkpoint
        self.after = nn.ModuleList(Gate(hidden_size, inner) for _ in range(num_layers - 1))

    def initialise(self, seed: int) -> Gates:
        """Draw all weights, Xavier-uniform as in the published code, in place."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            nn.init.xavier_uniform_(weight, generator=generator)
        return self

    def exits(self, layer: int, features: Tensor) -> Tensor:
        """Tell which rows' vision tokens may leave after a layer: those with the larger exit logit.

        Parameters
        ----------
        layer
            Index of the layer that has run, 0..N-2.
        features
            ``[rows, 2h]``, from its output.

        Returns
        -------
        Tensor
            Boolean ``[rows]``.
        """
        with torch.no_grad():
            gate = self.after[layer].to(features.device)  # stays there: a gate follows its layer of a sharded model
            keep, leave = gate(features).unbind(dim=1)
            return leave > keep


def checkpoint_name(name: str) -> str:
    """Return the last part of a checkpoint's Hub name or folder, so that a local copy has the same name."""
    return Path(name).name


def final_norm(decoder: nn.Module) -> Tensor | None:
    """Return the weight of a decoder's final norm in float16 on the CPU; None if it has none or it is not loaded."""
    weight = getattr(getattr(decoder, "norm", None), "weight", None)
    return None if weight is None or weight.is_meta else weight.detach().half().cpu()


def same_weights(mine: Tensor | None, theirs: Tensor | None) -> bool:
    """Whether two final norms can belong to the same checkpoint, loaded in whatever precision; True if one is None."""
    if mine is None or theirs is None:
        return True
    return mine.shape == theirs.shape and torch.allclose(mine.float(), theirs.float(), rtol=1e-2, atol=1e-3)


def after_vision(vision: Tensor) -> Tensor:
    """Mark the tokens after the last vision token of each row.

    Parameters
    ----------
    vision
        Boolean ``[rows, tokens]``.

    Returns
    -------
    Tensor
        Boolean ``[rows, tokens]``; all True in a row without vision tokens.
    """
    return vision.flip(1).cumsum(dim=1).flip(1) == 0


def gate_features(hidden: Tensor, text: Tensor, last: Tensor) -> Tensor:
    """Return what a gate looks at: the mean of the text tokens but the last, and the last.

    Parameters
    ----------
    hidden
        Output of a decoder layer (the residual stream, no norm), ``[rows, tokens, h]``.
    text
        Boolean ``[rows, tokens]``: the prompt's tokens after its last vision token. The paper says "the text tokens";
        its code leaves out those before the image, and so does this.
    last
        Slot of the prompt's last token, long ``[rows]``.

    Returns
    -------
    Tensor
        ``[rows, 2h]``. Where the last token is the only one after the image it stands in for the mean too (the
        published code's mean would be NaN).
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    own = hidden[rows, last.to(hidden.device)]
    others = text.to(hidden.device).index_put((rows, last.to(hidden.device)), torch.tensor(False, device=hidden.device))
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = hidden.masked_fill(~others[..., None], 0).sum(dim=1, dtype=dtype)
    count = others.sum(dim=1, keepdim=True)
    return torch.cat([torch.where(count > 0, total / count.clamp(min=1), own), own.to(dtype)], dim=1)


def save_gates(gates: Gates, path: Path) -> None:
    """Write gates in float16, whole or not at all.

    Parameters
    ----------
    gates
        The gates.
    path
        A ``.safetensors`` file.
    """
    about = {
        "format": FORMAT,
        "version": VERSION,
        "hidden_size": gates.hidden_size,
        "num_layers": gates.num_layers,
        "inner": gates.inner,
        "checkpoint": gates.checkpoint,
    }
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in gates.state_dict().items()}
    if gates.norm is not None:
        tensors[_NORM] = gates.norm.contiguous()
    with atomically(path) as part:
        save_file(tensors, part, metadata={"about": json.dumps(about)})  # one entry: several have no fixed order


def load_gates(path: Path) -> Gates:
    """Read gates, on the CPU, in the precision of the file.

    Parameters
    ----------
    path
        A file written by :func:`save_gates`.

    Raises
    ------
    ValueError
        If there is no such file, or if it is damaged or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no gates file {str(path)!r}: `vtw-eval train-dyvte` makes one.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or no safetensors file ({error}).") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} holds no gates: expected a file made by `vtw-eval train-dyvte`.")
    if about.get("version") != VERSION:
        raise ValueError(f"{str(path)!r} has format version {about.get('version')}, this program reads {VERSION}.")
    norm = tensors.pop(_NORM, None)
    gates = Gates(about["hidden_size"], about["num_layers"], about["inner"], about["checkpoint"], norm)
    expected = {name: tensor.shape for name, tensor in gates.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(f"the tensors in {str(path)!r} are not those that its own metadata announce.")
    gates.load_state_dict(tensors, assign=True)
    return gates.requires_grad_(False)
