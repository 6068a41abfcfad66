"""What a cell was made from: the code that made it, and the files that it read. What has changed since is found out."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from vtw_eval.checkpoints import checkpoint
from vtw_eval.methods import parse_method
from vtw_eval.methods.composite import parts_of
from vtw_eval.models.weights import packages
from vtw_eval.record.cell import Cell, CellSpec
from vtw_eval.sweep.harness import find_harness
from vtw_eval.versions import PACKAGE, engine_hash, environment, installed, source_hash

BIG = 64 * 2**20
"""Bytes above which a file is known by its size, its time of change and samples of its content. A checkpoint has many
gigabytes, and reading all of them before each start would cost minutes on a network file system."""
_BLOCKS, _BLOCK = 16, 2**20
"""Samples of a big file, evenly spread: fine-tuning need not touch its beginning or its end."""

_OF_CHECKPOINTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja", ".py")
"""Files of a checkpoint's folder that are read; others, such as notes and logs, may change."""
_TRAINING = ("optimizer", "scheduler", "trainer_state", "training_args", "rng_state")
"""Names of files beside them that only a training reads begin so."""
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".yaml", ".yml", ".md", ".py")
"""Files of a dataset that are read by content; of its pictures and videos, size and time are enough."""

_PARTS = {
    "model": ("models/*.py", "media.py"),
    "scoring": ("cost/*.py", "record/costs.py", "record/metrics.py", "record/reported.py", "sweep/costs.py"),
}
"""Files of our source that evaluate cells whatever the harness, by part; the engine has its own hash."""


def code_of(spec: CellSpec) -> dict[str, str]:
    """Return what tells the code that evaluates a cell: our version, hashes of our source by part, and the commit."""
    harness = find_harness(spec.harness).code(spec)
    return {**_shared_code(), **harness, "method": _method_code(spec.method), "commit": commit()}


@functools.cache
def _shared_code() -> dict[str, str]:
    root = Path(__file__).parents[1]
    parts = {part: source_hash([file for name in names for file in root.glob(name)]) for part, names in _PARTS.items()}
    return {PACKAGE: installed(PACKAGE), "engine": engine_hash(), **parts}


@functools.cache
def _method_code(method: str) -> str:
    """Return a hash of the files that define a method and its parts; they need not be ours."""
    return source_hash({Path(inspect.getfile(type(part))) for part in parts_of(parse_method(method))})


@functools.cache
def commit() -> str:
    """Return the commit of this project's source, with "+" if files differ from it; empty where there is none."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        try:
            told = [
                subprocess.run(
                    ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
                ).stdout.strip()
                for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
            ]
        except (OSError, subprocess.SubprocessError):
            return ""
        return told[0][:12] + ("+" if told[1] else "")
    try:
        origin = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(origin.get("vcs_info", {}).get("commit_id", ""))[:12]


def checkpoint_read(spec: CellSpec) -> dict[str, str]:
    """Return digests of the checkpoint of a cell and of its adapter, by name; none where files are not known."""
    revision, adapter = spec.model_args.get("revision"), spec.model_args.get("peft")
    name = f"{spec.pretrained}@{revision}" if revision not in (None, "main") else spec.pretrained
    return _known([name, *([str(adapter)] if adapter else [])])


def fingerprint(spec: CellSpec, read: Mapping[str, str]) -> str:
    """Return a digest of what decides the answers of a cell, beside its prompts and the device.

    Parameters
    ----------
    spec
        The cell; its task, limit and seed decide its prompts only.
    read
        Digest of the checkpoint as it was opened.
    """
    code = {part: value for part, value in code_of(spec).items() if part != "commit"}
    also = {name: installed(name) for name in packages(spec.model_args)}
    used = {**environment(), **also, spec.harness: installed(find_harness(spec.harness).package)}
    model = [spec.harness, spec.adapter, spec.pretrained, spec.model_args]
    about = [model, spec.method, method_read(spec), dict(read), code, used]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def method_read(spec: CellSpec) -> dict[str, str]:
    """Return a digest of each file and checkpoint that a cell's method names, such as gates."""
    try:
        parts = parts_of(parse_method(spec.method))
    except ValueError:  # not installed any more
        return {}
    values = [getattr(part, f.name) for part in parts for f in fields(part)]
    names = [str(value) for value in values if isinstance(value, str | Path)]
    return _known([name for name in names if "/" in name or Path(name).exists()])


def data_read(named: Any) -> dict[str, str]:
    """Return a digest of each local file or folder among the names of a cell's dataset.

    Parameters
    ----------
    named
        Texts, or lists and mappings of them; what is no existing path does not count.
    """
    return _known([str(path.absolute()) for path in map(Path, _texts(named)) if path.exists()])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path) and str(value):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _known(names: Sequence[str]) -> dict[str, str]:
    return {name: digest for name in names if (digest := digest_of(name))}


def digest_of(name: str) -> str:
    """Return a digest of a file, of a folder, or of a checkpoint on the Hub as far as the cache has it.

    Parameters
    ----------
    name
        A path, or ``ID`` or ``ID@REVISION`` of the Hub; ``shapes`` is the embedded checkpoint.

    Returns
    -------
    str
        Empty if there is nothing.
    """
    path = Path(checkpoint(name))
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
    except OSError:
        return ""
    return _snapshot(name)


def _folder(path: Path) -> str:
    if (path / "config.json").is_file():
        found = [*path.glob("*"), *path.glob("additional_chat_templates/*")]
        files = [f for f in found if f.suffix in _OF_CHECKPOINTS and not f.name.startswith(_TRAINING)]
    else:
        # ``datasets`` leaves files of its own beside those that it was given.
        skipped = (".", "cache-", "tmp")
        files = [f for f in path.rglob("*") if not any(p.startswith(skipped) for p in f.relative_to(path).parts)]
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        state = file.stat()
        known = file.suffix in _OF_CHECKPOINTS + _TABLES
        content = _file(file) if known else f"{state.st_size} {state.st_mtime_ns}"
        digest.update(f"{file.relative_to(path)}\0{content}\0".encode())
    return digest.hexdigest()[:16]


def _file(path: Path) -> str:
    state = path.stat()
    return _content(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _content(path: Path, size: int, changed: int) -> str:
    """Return the digest of a file; one that is known to have the same size and time is not read again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= BIG:
            digest.update(file.read())
        else:
            digest.update(f"{size} {changed} ".encode())
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def _snapshot(name: str) -> str:
    """Return the commit of a checkpoint in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    for file in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(repository, file, revision=revision or None)
        except HFValidationError:
            return ""
        if isinstance(found, str):
            return Path(found).parent.name
    return ""


def inputs_changed(cell: Cell) -> list[str]:
    """Return the names of what a finished cell read and what has another content now; what is gone has not changed."""
    expected = {**checkpoint_read(cell.spec), **method_read(cell.spec)}
    now = {**{name: digest_of(name) for name in cell.read}, **expected}
    return [name for name, digest in now.items() if digest and name in cell.read and digest != cell.read[name]]


def code_changed(cell: Cell) -> list[str]:
    """Return the parts of our code that are others than those that made a cell, each with both; empty if none is."""
    if not cell.code:
        return ["code that was not recorded yet"]
    try:
        now = code_of(cell.spec)
    except ValueError as error:  # its harness or its method is not installed any more
        return [str(error)]
    return [
        f"{part} {cell.code.get(part, 'unknown')} (now {value})"
        for part, value in now.items()
        if part != "commit" and cell.code.get(part) != value
    ]


def packages_changed(cell: Cell) -> list[str]:
    """Return the packages whose installed version is another one than that which made a cell."""
    names = ("torch", "transformers", "bitsandbytes", "peft", find_harness(cell.spec.harness).package)
    return [
        f"{name} {cell.environment[name]} (now {installed(name)})"
        for name in names
        if name in cell.environment and cell.environment[name] != installed(name)
    ]
