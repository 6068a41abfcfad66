"""The benchmarks of the two papers, and what they are called in each harness.

VTW: Lin et al., AAAI 2025, https://arxiv.org/abs/2405.05803. DyVTE: Wu et al., 2024, https://arxiv.org/abs/2411.19628.
Metric names are those in the harness's result files. VLMEvalKit's scores were read in ms-vlmeval 0.0.20, lmms-eval's in
0.7.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtw_eval.errors import suggest

TABLES = {
    "vtw-table2": "VTW, Table 2: LLaVA-1.5-7B and 13B, LLaVA-NeXT-7B",
    "vtw-table3": "VTW, Table 3: Video-LLaVA",
    "vtw-table7": "VTW, Table 7: LISA",
    "vtw-table8": "VTW, Table 8: Qwen2-VL-2B, InternVL2-4B",
    "dyvte-table1": "DyVTE, Table 1: multimodal benchmarks",
    "dyvte-table2": "DyVTE, Table 2: vision-language benchmarks",
}
"""The papers' tables by name. All but ``vtw-table7`` are also groups of lmms-eval tasks, each under its name with
``_`` for ``-``, too."""


@dataclass(frozen=True)
class PrintedScore:
    """Where a benchmark's number is found in one harness."""

    name: str
    """lmms-eval's task or VLMEvalKit's dataset."""
    metrics: tuple[str, ...]
    """Keys in the results; several are summed."""
    top: float
    """The best possible value of the sum: 1 for a share, 100 for percent, more for points."""
    judge: bool = False
    """Whether a number needs a judge model behind an API."""

    @property
    def scale(self) -> str:
        """The range of the value."""
        return f"0..{self.top:g}"


@dataclass(frozen=True)
class Benchmark:
    """A column of the papers' tables."""

    title: str
    """As the paper prints it."""
    split: str
    tables: tuple[str, ...]
    """Of :data:`TABLES`."""
    lmms: PrintedScore | None
    """In lmms-eval; None where it has none."""
    kit: PrintedScore | None
    """In VLMEvalKit; None where it has none."""
    note: str = ""
    """What a reader of the number must know."""


_VTW_IMAGE = ("vtw-table2", "vtw-table8")

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "AI2D",
        "test",
        _VTW_IMAGE,
        PrintedScore("ai2d", ("exact_match",), 1),
        PrintedScore("AI2D_TEST", ("Overall",), 1),
    ),
    Benchmark(
        "SQA_Img",
        "test, questions with an image",
        (*_VTW_IMAGE, "dyvte-table2"),
        PrintedScore("scienceqa_img", ("exact_match",), 1),
        PrintedScore("ScienceQA_TEST", ("Overall",), 1),
    ),
    Benchmark(
        "MMMU_Val",
        "validation",
        _VTW_IMAGE,
        PrintedScore("mmmu_val", ("mmmu_acc",), 1),
        PrintedScore("MMMU_DEV_VAL", ("Overall",), 1),
        "VLMEvalKit reports the splits dev and validation apart: take validation.",
    ),
    Benchmark(
        "MMB_EN",
        "dev, English",
        (*_VTW_IMAGE, "dyvte-table1"),
        PrintedScore("mmbench_en_dev_static", ("gpt_eval_score",), 100),
        PrintedScore("MMBench_DEV_EN", ("Overall",), 1),
        "The variants without a judge, despite the metric's name: mmbench_en_dev would ask one for answers without a "
        "clear letter; in VLMEvalKit give --judge exact_matching.",
    ),
    Benchmark(
        "POPE",
        "test",
        (*_VTW_IMAGE, "dyvte-table1"),
        PrintedScore("pope", ("pope_f1_score",), 1),
        PrintedScore("POPE", ("Overall",), 100),
        "The papers' column is F1, although DyVTE heads it accuracy.",
    ),
    Benchmark(
        "MME",
        "test",
        _VTW_IMAGE,
        PrintedScore("mme", ("mme_perception_score", "mme_cognition_score"), 2800),
        PrintedScore("MME", ("perception", "reasoning"), 2800),
        "Perception + cognition, which VLMEvalKit calls reasoning. --limit must be even.",
    ),
    Benchmark(
        "MME (perception)",
        "test",
        ("dyvte-table1",),
        PrintedScore("mme", ("mme_perception_score",), 2000),
        PrintedScore("MME", ("perception",), 2000),
        "DyVTE prints perception alone.",
    ),
    Benchmark(
        "TGIF",
        "test, frame questions",
        ("vtw-table3",),
        PrintedScore("tgif_frameqa", ("exact_match",), 1),
        PrintedScore("TGIF-QA_8frame", ("exact_match",), 1),
        "Ours in both harnesses. The paper let a GPT model compare free answers; ours are short and matched exactly "
        "(contains_match is the lenient score), so the numbers do not compare with the paper's. "
        "First: vtw-eval prepare-tgif.",
    ),
    Benchmark(
        "Video-MME",
        "test, without subtitles",
        ("vtw-table3",),
        PrintedScore("videomme", ("videomme_perception_score",), 100),
        PrintedScore("Video-MME_8frame", ("overall|overall",), 1),
        "The paper used VLMEvalKit with 8 frames.",
    ),
    Benchmark(
        "SEED",
        "images and videos",
        ("dyvte-table1",),
        PrintedScore("seedbench", ("seed_all",), 1),
        PrintedScore("SEEDBench_IMG", ("Overall",), 1),
        "VLMEvalKit has the images only (lmms-eval's seed_image).",
    ),
    Benchmark(
        "MM-Vet",
        "test",
        ("dyvte-table1",),
        PrintedScore("mmvet_judged", ("gpt_eval_score",), 100, judge=True),
        PrintedScore("MMVet", ("acc",), 100, judge=True),
        "No number without a judge: set OPENAI_API_KEY (and OPENAI_API_URL, MODEL_VERSION). mmvet_judged is lmms-eval's"
        " mmvet, except that an answer which no judge scored stops the run; mmvet counts it as 0.",
    ),
    Benchmark(
        "GQA",
        "test-dev, balanced",
        ("dyvte-table2",),
        PrintedScore("gqa", ("exact_match",), 1),
        PrintedScore("GQA_TestDev_Balanced", ("Overall",), 100),
    ),
    Benchmark(
        "VQAv2",
        "validation",
        ("dyvte-table2",),
        PrintedScore("vqav2_val", ("exact_match",), 1),
        None,
        "The paper's number is on test-dev, which only the benchmark's server scores; vqav2_test writes its file.",
    ),
    Benchmark(
        "TextVQA",
        "validation",
        ("dyvte-table2",),
        PrintedScore("textvqa_val", ("exact_match",), 1),
        PrintedScore("TextVQA_VAL", ("Overall",), 100),
        "LLaVA's own evaluation, whose baseline the paper prints, adds OCR tokens to the prompt; neither harness does.",
    ),
    Benchmark(
        "ReasonSeg",
        "validation",
        ("vtw-table7",),
        None,
        None,
        "Segmentation masks (gIoU, cIoU) from LISA, not text: neither harness offers it, nor do we. The table's 0.88 "
        "and 0.94 are not on the scale of LISA's own paper.",
    ),
)
"""All columns, in the order of the tables."""


def columns(table: str | None = None) -> tuple[Benchmark, ...]:
    """Return the benchmarks of a table, or all.

    Parameters
    ----------
    table
        One of :data:`TABLES`; None means all.

    Raises
    ------
    ValueError
        If there is no such table.
    """
    if table is None:
        return BENCHMARKS
    name = table_of(table)
    if name is None:
        raise ValueError(f"unknown table {table!r}{suggest(table, TABLES)} Known: {', '.join(TABLES)}.")
    return tuple(benchmark for benchmark in BENCHMARKS if name in benchmark.tables)


def table_of(name: str) -> str | None:
    """Return the name in :data:`TABLES` that is meant, None if there is none; ``vtw_table2`` is how it was once."""
    name = name.replace("_", "-")
    return name if name in TABLES else None


def lmms_tasks(benchmarks: Sequence[Benchmark]) -> tuple[str, ...]:
    """Return the lmms-eval tasks of benchmarks, each once."""
    return tuple(dict.fromkeys(benchmark.lmms.name for benchmark in benchmarks if benchmark.lmms))
