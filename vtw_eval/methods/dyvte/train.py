"""Training of DyVTE's gates for a frozen model: data, labels and the loop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vtw_eval import checkpoints
from vtw_eval.anatomy import Anatomy, find_anatomy
from vtw_eval.media import open_picture, strictly
from vtw_eval.methods import VTW
from vtw_eval.methods.dyvte.gates import (
    INNER,
    Gates,
    after_vision,
    checkpoint_name,
    final_norm,
    gate_features,
    save_gates,
)
from vtw_eval.runtime import pick_device
from vtw_eval.state import cosine, load_state, read_counters, save_state

AGREEMENT = 0.99
"""Share of the answer's tokens on which both branches must agree, as in the published code: in effect all."""
PLACEHOLDER = "<image>"


# Data -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSample:
    """One question about one image, with its answer."""

    image: Path
    question: str
    answer: str


def read_samples(data: Path, image_folder: Path | None = None) -> tuple[list[TrainingSample], int]:
    """Read single-turn samples with one image from a file in LLaVA's conversation format.

    Parameters
    ----------
    data
        A JSON file, or a folder that holds a single one.
    image_folder
        What image paths are relative to; None means the folder of the JSON file.

    Returns
    -------
    samples : list of TrainingSample
        In the order of the file.
    skipped : int
        How many others there were: without an image, with several, or with several turns.

    Raises
    ------
    ValueError
        If there is no such file, if it is not in that format, if an image is missing, or if no sample is left.
    """
    file = _json_file(data)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}.") from None
    if not isinstance(entries, list):
        raise ValueError(f"{file} holds {type(entries).__name__}, expected a list of conversations.")
    folder = file.parent if image_folder is None else image_folder
    samples = []
    for number, entry in enumerate(entries):
        try:
            sample = _sample(entry, folder)
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{file}: entry {number} is not of the form {{"image": ..., "conversations": [{{"from": "human", '
                '"value": ...}, {"from": "gpt", "value": ...}]}.'
            ) from None
        if sample is None:
            continue
        if not sample.image.is_file():
            raise ValueError(
                f"{file}: entry {number} names the image {sample.image}, which does not exist (image paths are "
                f"relative to {folder}; --image-folder changes that)."
            )
        samples.append(sample)
    if not samples:
        raise ValueError(f"{file} holds no single-turn sample with one image, among {len(entries)} entries.")
    return samples, len(entries) - len(samples)


def _json_file(data: Path) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise ValueError(f"there is no file or folder {data}.")
    found = sorted(data.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{data} should hold one JSON file, but holds {names}: name the file.")
    return found[0]


def _sample(entry: Any, folder: Path) -> TrainingSample | None:
    turns = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
    image = entry.get("image")
    if not isinstance(image, str) or [speaker for speaker, _ in turns] != ["human", "gpt"]:
        return None
    question, answer = (value for _, value in turns)
    if question.count(PLACEHOLDER) > 1:
        return None
    return TrainingSample(folder / image, question.replace(PLACEHOLDER, "").strip(), answer.strip())


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left and the answers after them, padded on the right."""

    inputs: dict[str, Tensor]
    """Keywords of the model; ``input_ids`` are ``[rows, prompt + answer]``."""
    answers: Tensor
    """Token ids, long ``[rows, answer]``."""
    counted: Tensor
    """Which of them are not padding, boolean ``[rows, answer]``."""

    @property
    def prompt_length(self) -> int:
        """Columns of the prompts."""
        return self.inputs["input_ids"].shape[1] - self.answers.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Batch(inputs, self.answers.to(device), self.counted.to(device))


def encode(processor: Any, samples: Sequence[TrainingSample]) -> Batch:
    """Turn samples into a batch: the image first, then the question, in the model's chat template.

    Parameters
    ----------
    processor
        A transformers processor with a chat template.
    samples
        The samples.

    Returns
    -------
    Batch
        On the CPU; each answer ends in the end token.

    Raises
    ------
    ValueError
        If an image cannot be read.
    """
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
        for sample in samples
    ]
    prompts = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    images = [[_read_image(sample.image)] for sample in samples]
    begins = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    encoded = processor(text=prompts, images=images, padding=True, return_tensors="pt", add_special_tokens=not begins)
    answers = [
        [*tokenizer(sample.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for sample in samples
    ]
    longest = max(map(len, answers))
    ids = torch.tensor([answer + [tokenizer.eos_token_id] * (longest - len(answer)) for answer in answers])
    counted = torch.arange(longest) < torch.tensor([[len(answer)] for answer in answers])
    inputs = dict(encoded)
    shape = inputs["input_ids"].shape
    for name, value in encoded.items():  # ids, mask and token types: those of text are 0
        if isinstance(value, Tensor) and value.shape == shape:
            inputs[name] = F.pad(value, (0, longest))
    inputs["input_ids"][:, shape[1] :] = ids
    inputs["attention_mask"][:, shape[1] :] = counted
    return Batch(inputs, ids, counted)


def _read_image(path: Path) -> Image.Image:
    try:
        with strictly():
            return open_picture(path, "upright")[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the image {path}: {error}.") from None


# Labels ---------------------------------------------------------------------------------------------------------------


def exit_labels(normal: Tensor, exited: Tensor, answers: Tensor, counted: Tensor, alpha: float) -> Tensor:
    """Tell for each row whether the vision tokens may leave (Eq. 6), under teacher forcing as in the published code.

    Parameters
    ----------
    normal, exited
        Logits that predict the answer, of the unchanged model and with the vision tokens gone,
        ``[rows, answer, vocabulary]``.
    answers
        The answer's token ids, ``[rows, answer]``.
    counted
        Which of them are not padding, ``[rows, answer]``.
    alpha
        Bound on the cross-entropy against the answer, relative to the unchanged model's.

    Returns
    -------
    Tensor
        Long ``[rows]``: 1 where both predict the same tokens and the cross-entropy is below ``alpha`` times the
        unchanged model's, else 0.
    """
    same = (normal.argmax(dim=-1) == exited.argmax(dim=-1)) & counted
    agree = same.sum(dim=1) > AGREEMENT * counted.sum(dim=1)

    def uncertainty(logits: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.float().transpose(1, 2), answers, reduction="none")
        return (losses * counted).sum(dim=1) / counted.sum(dim=1)

    return (agree & (uncertainty(exited) < alpha * uncertainty(normal))).long()


@torch.no_grad()
def features_and_labels(anatomy: Anatomy, batch: Batch, layer: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Run both branches: the unchanged model, and the model whose vision tokens leave after a layer.

    Parameters
    ----------
    anatomy
        Of the model.
    batch
        On the model's device.
    layer
        Index of the layer, 0..N-2.
    alpha
        See :func:`exit_labels`.

    Returns
    -------
    features : Tensor
        ``[rows, 2h]``, see :func:`vtw_eval.methods.dyvte.gates.gate_features`; of the prompt only.
    labels : Tensor
        Long ``[rows]``.
    """
    model, ids = anatomy.model, batch.inputs["input_ids"]
    arguments = {
        "use_cache": False,
        "logits_to_keep": batch.answers.shape[1] + 1,
    }  # one more: a token predicts the next
    output = model(**batch.inputs, **arguments, output_hidden_states=True)
    with VTW(k=layer + 1)(model):
        exited = model(**batch.inputs, **arguments).logits[:, :-1]
    labels = exit_labels(output.logits[:, :-1], exited, batch.answers, batch.counted, alpha)
    prompt = slice(0, batch.prompt_length)
    vision = anatomy.is_vision(ids[:, prompt])
    text = batch.inputs["attention_mask"][:, prompt].bool() & after_vision(vision)
    last = torch.full_like(ids[:, 0], batch.prompt_length - 1)
    return gate_features(output.hidden_states[layer + 1][:, prompt], text, last), labels


# Training -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides the gates, given model and samples.

    Attributes
    ----------
    steps
        Optimizer steps.
    batch_size
        Samples per step; all see the same exit layer, as in the published code.
    lr
        Peak learning rate of AdamW (no weight decay): linear warm-up in the first 3 % of the steps, then a cosine to
        zero. The published script has 6e-5, the paper says 4e-5.
    alpha
        Bound on the uncertainty, see :func:`exit_labels`.
    inner
        Inner width of the gates.
    seed
        Seed of the weights, the order of the samples and the exit layers.
    """

    steps: int
    batch_size: int = 16
    lr: float = 6e-5
    alpha: float = 1.03
    inner: int = INNER
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be 1 or more.")
        for name in ("lr", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be above 0.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.lr * cosine(step, self.steps, warmup=math.ceil(0.03 * self.steps))

    def exit_layer(self, step: int, num_layers: int) -> int:
        """Return the layer whose gate a step trains, 0..N-2."""
        return int(np.random.default_rng([self.seed, 0, step]).integers(num_layers - 1))

    def choose(self, step: int, count: int) -> list[int]:
        """Return the numbers of the samples of a step: each epoch goes through all in an order of its own."""
        places = [divmod(place, count) for place in range(step * self.batch_size, (step + 1) * self.batch_size)]
        orders = {
            epoch: np.random.default_rng([self.seed, 1, epoch]).permutation(count)
            for epoch in {epoch for epoch, _ in places}
        }
        return [int(orders[epoch][place]) for epoch, place in places]


class GateTrainer:
    """Gates in training.

    Parameters
    ----------
    model
        A transformers vision-language model; stays as it is.
    processor
        Its processor.
    samples
        What to train on.
    settings
        How.
    """

    def __init__(
        self, model: Any, processor: Any, samples: Sequence[TrainingSample], settings: TrainingSettings
    ) -> None:
        self.model, self.processor, self.samples, self.settings = model, processor, samples, settings
        self.anatomy = find_anatomy(model)
        self.gates = Gates(
            self.anatomy.hidden_size,
            self.anatomy.num_layers,
            settings.inner,
            checkpoint_name(self.anatomy.name),
            final_norm(self.anatomy.decoder),
        )
        self.gates.initialise(settings.seed).to(model.device)
        # A gate that a step does not train has no gradient there, so that AdamW leaves its weights and moments alone.
        self.optimizer = torch.optim.AdamW(self.gates.parameters(), lr=settings.lr, weight_decay=0.0)
        self.step = 0

    def advance(self) -> tuple[float, float]:
        """Do one step; return its loss and the share of rows that may exit."""
        settings, step = self.settings, self.step
        samples = [self.samples[i] for i in settings.choose(step, len(self.samples))]
        batch = encode(self.processor, samples).to(self.model.device)
        layer = settings.exit_layer(step, self.anatomy.num_layers)
        features, labels = features_and_labels(self.anatomy, batch, layer, settings.alpha)
        loss = self.learn(layer, features, labels)
        self.step += 1
        return loss, labels.float().mean().item()

    def learn(self, layer: int, features: Tensor, labels: Tensor) -> float:
        """Train one gate on one batch (Eq. 7) and return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        loss = F.cross_entropy(self.gates.after[layer](features), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def about(self) -> dict[str, Any]:
        """Return what a saved state must have in common with this run."""
        samples = hashlib.blake2b(repr(self.samples).encode(), digest_size=8).hexdigest()
        return {"settings": asdict(self.settings), "samples": samples, "checkpoint": self.gates.checkpoint}

    def save(self, path: Path) -> None:
        """Write weights, moments and step, whole or not at all."""
        save_state(path, self.gates, [self.optimizer], self.about(), {"step": self.step})

    def resume(self, path: Path) -> None:
        """Go on from a saved state.

        Raises
        ------
        ValueError
            If it belongs to another run.
        """
        counters = read_counters(path, self.about())
        load_state(path, self.gates, [self.optimizer])
        self.step = counters["step"]


def state_path(output: Path) -> Path:
    """Return where the state of an unfinished run lies: beside its output."""
    return output.with_name(f"{output.stem}.state.safetensors")


def train(trainer: GateTrainer, output: Path, save_every: int) -> None:
    """Train to the end with a progress bar, write the gates and remove the state.

    Parameters
    ----------
    trainer
        A new trainer; it goes on from a state beside the output if there is one.
    output
        The gates file to write.
    save_every
        Steps between states.

    Raises
    ------
    ValueError
        If the state belongs to another run, or an image cannot be read.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    state = state_path(output)
    if state.exists():
        trainer.resume(state)
    with tqdm(total=trainer.settings.steps, initial=trainer.step, desc="train-dyvte", mininterval=1) as bar:
        while trainer.step < trainer.settings.steps:
            loss, share = trainer.advance()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", exits=f"{share:.2f}", refresh=False)
            if trainer.step % save_every == 0:
                trainer.save(state)
    save_gates(trainer.gates, output)
    state.unlink(missing_ok=True)


def run(
    checkpoint: str,
    data: Path,
    output: Path,
    *,
    image_folder: Path | None,
    steps: int | None,
    save_every: int,
    device: str | None,
    **settings: Any,
) -> str:
    """Load everything, train and return a summary: what ``vtw-eval train-dyvte`` does.

    Parameters
    ----------
    checkpoint
        Hub name or folder of the model, or ``shapes``.
    data, image_folder
        See :func:`read_samples`.
    output
        The gates file to write.
    steps
        Optimizer steps; None means once through the samples.
    save_every
        Steps between states.
    device
        Where to train; None means a GPU if there is one.
    **settings
        The other :class:`TrainingSettings`.

    Raises
    ------
    ValueError
        For anything wrong with the data, the checkpoint, a setting or a state.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    samples, skipped = read_samples(data, image_folder)
    once = math.ceil(len(samples) / max(1, settings["batch_size"]))
    chosen = TrainingSettings(steps=once if steps is None else steps, **settings)
    try:
        opened = checkpoints.checkpoint(checkpoint)
        processor = AutoProcessor.from_pretrained(opened)
        model: Any = AutoModelForImageTextToText.from_pretrained(opened, dtype="auto")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot open the checkpoint {checkpoint!r}: {str(error).strip().splitlines()[0]}") from error
    model.to(pick_device(device)).eval().requires_grad_(False)
    train(GateTrainer(model, processor, samples, chosen), output, save_every)
    return (
        f"{output}: gates for {checkpoint}, {chosen.steps} steps of {chosen.batch_size} samples out of "
        f"{len(samples)} ({skipped} skipped: not one image and one turn)"
    )
