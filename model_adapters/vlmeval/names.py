"""Names of datasets: benchmarks and tables written out, unknown names refused before any checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import vlmeval.dataset as kit
from vlmeval.dataset.video_dataset_config import supported_video_datasets

from vtw_eval.errors import suggest
from vtw_eval.papers.benchmarks import BENCHMARKS, columns, table_of
from vtw_eval.sweep.plan import PlanError
from vtw_eval.tasks.kit import register_kit_datasets


def expand_datasets(names: Sequence[str]) -> list[str]:
    """Return datasets of VLMEvalKit for names of datasets, benchmarks and tables of the papers, each once.

    Raises
    ------
    PlanError
        For a name that VLMEvalKit does not know, and for a benchmark that it lacks.
    """
    register_kit_datasets()
    known = [*kit.SUPPORTED_DATASETS, *supported_video_datasets]
    titles = {benchmark.title.casefold(): benchmark for benchmark in BENCHMARKS}
    found: list[str] = []
    for name in names:
        if table_of(name) is not None:
            found += [benchmark.kit.name for benchmark in columns(name) if benchmark.kit]
        elif name in known:
            found.append(name)
        elif (benchmark := titles.get(name.casefold())) is not None:
            if benchmark.kit is None:
                raise PlanError(f"tasks: VLMEvalKit has no {benchmark.title}. {benchmark.note}")
            found.append(benchmark.kit.name)
        else:
            raise PlanError(
                f"tasks: unknown dataset {name!r} of VLMEvalKit{suggest(name, known)} Benchmarks of the papers: "
                f"{', '.join(b.title for b in BENCHMARKS if b.kit)}; `vtw-eval tasks` shows the names in each harness."
            )
    return list(dict.fromkeys(found))
