"""Table and plot of a search for k."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vtw_eval.files import write_atomically
from vtw_eval.methods.vtw.search import SearchResult
from vtw_eval.report.errors import ReportError
from vtw_eval.tables import Table, markdown


def divergence_table(result: SearchResult) -> str:
    """Return a Markdown table of mean, median and largest KL by k, and how often the bootstrap picks each k."""
    shares = result.bootstrap()
    values = result.per_sample.numpy()
    layers = values.shape[1]
    rows = [
        [
            str(k),
            f"{values[:, k].mean():.2e}",
            f"{np.median(values[:, k]):.2e}",
            f"{values[:, k].max():.2e}",
            f"{shares.get(k, 0.0):.0%}",
            "<- k" if k == result.k else "",
        ]
        for k in range(result.start, layers)
    ]
    rows.append([str(layers), "0", "0", "0", f"{shares.get(layers, 0.0):.0%}", "<- k" if result.k == layers else ""])
    headers = ["k", "mean KL", "median", "max", "bootstrap picks", ""]
    return markdown(Table(headers, rows, words=0))


def divergence_plot(result: SearchResult, path: Path) -> None:
    """Draw mean KL versus k with its 95 % bootstrap interval, the threshold and the k found."""
    from matplotlib.figure import Figure

    values = result.per_sample.numpy()[:, result.start :]
    ks = np.arange(result.start, result.start + values.shape[1])
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(ks, low, high, alpha=0.25, label="95 % bootstrap interval")
    axes.plot(ks, values.mean(axis=0), marker="o", label=f"mean of {len(values)} prompts")
    axes.axhline(result.eta, linestyle="--", color="grey", label=f"eta = {result.eta}")
    axes.axvline(result.k, linestyle=":", color="black", label=f"k = {result.k}")
    axes.set(xlabel="k, layers that see vision tokens", ylabel="KL (nats)", yscale="log")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def save_divergence(result: SearchResult, task: str, path: Path) -> None:
    """Keep mean KL by k of a search, for the plot of scores versus k in a report (``vtw-eval report --kl``)."""
    means = result.per_sample.numpy().mean(axis=0)
    curve = {k: float(means[k]) for k in range(result.start, len(means))}
    write_divergence(task, curve, path, k=result.k, eta=result.eta, verified=result.verified)


def write_divergence(task: str, curve: Mapping[int, float], path: Path, **about: object) -> None:
    """Keep mean KL by k, as :func:`read_divergence` reads it.

    Parameters
    ----------
    task
        The task.
    curve
        Mean KL by k, nats.
    path
        The file.
    about
        What else a reader may want to know.
    """
    kept = {"task": task, **about, "mean_kl": [[k, kl] for k, kl in sorted(curve.items())]}
    write_atomically(path, json.dumps(kept) + "\n")


def read_divergence(path: Path) -> tuple[str, list[tuple[int, float]]]:
    """Return the task and the mean KL by k that :func:`save_divergence` has kept.

    Raises
    ------
    ReportError
        If the file is not one of these.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["task"]), [(int(k), float(kl)) for k, kl in content["mean_kl"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} holds no divergence by k (vtw-eval search-k --json FILE): {error!r}.") from error
