"""Measured latency, memory and KV cache stand beside the scores of the same model and method."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests.report.made import make_store
from tests.report.test_report import markdown_tables, run
from vtw_eval.cost.bench.found import Bench, BenchRow, Ratios, Setting
from vtw_eval.cost.bench.timing import Spread


def spread(value: float) -> Spread:
    return Spread(median=value, q1=0.9 * value, q3=1.1 * value)


def row(method: str, spec: str, share: float, batch: int) -> BenchRow:
    one = spread(share)
    return BenchRow(
        method=method,
        status="done",
        spec=spec,
        prefill=spread(0.040 * share * batch),
        step=spread(0.002 * share),
        kv_bytes=int(2**20 * share * batch),
        peak_bytes=int(2**22 * share * batch),
        ratios=Ratios(vision=None, prefill=one, first_token=None, step=one),
    )


def bench(file: Path, subject: str = "shapes") -> Path:
    """Write a benchmark in which vtw,k=4 needs half of everything, and fastv did not fit into memory at batch 8."""
    settings = [
        Setting(
            batch=batch,
            attention="sdpa",
            text=10,
            vision=64,
            output_tokens=3,
            rows=[
                row("baseline", "baseline", 1.0, batch),
                row("vtw,k=half", "vtw,k=4,position=keep", 0.5, batch),
                row("tome", "tome,k=0,r=0.9", 0.25, batch),
                BenchRow(method="fastv", status="out of memory"),  # of a file without full specs
            ],
        )
        for batch in (8, 1)
    ]
    found = Bench(
        subject=subject,
        note="",
        model_bytes=1,
        device="cpu",
        dtype="float32",
        threads=1,
        rounds=5,
        warmup=1,
        seed=0,
        compiled=False,
        command="vtw-eval bench",
        environment="torch",
        settings=settings,
    )
    file.write_text(found.model_dump_json())
    return file


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_store(
        tmp_path / "sweep", ["baseline", "vtw,k=2", "vtw,k=4", "fastv"], tasks=["shapes_vqa"], count=20
    ).root


def test_measurements_stand_beside_the_scores(sweep: Path, tmp_path: Path) -> None:
    text = run(sweep, "--bench", bench(tmp_path / "bench.json"))
    _, first, second = markdown_tables(text)[:3]
    assert first[0][1:] == ["prefill ↓", "first token ↓", "decode step ↓", "KV cache ↓", "peak memory ↓"]
    assert first[1] == ["baseline", "320 ms (1.000x)", "-", "2 ms (1.000x)", "8.0 MiB (1.000x)", "32.0 MiB (1.000x)"]
    assert first[2] == ["vtw,k=2", "-", "-", "-", "-", "-"]
    assert second[3] == ["vtw,k=4", "20 ms (0.500x)", "-", "1 ms (0.500x)", "0.5 MiB (0.500x)", "2.0 MiB (0.500x)"]
    assert first[4][1] == second[4][1] == "out of memory"
    assert text.count("Measured too, but not in this report: tome.") == 2


def test_records_have_them_of_the_smallest_batch(sweep: Path, tmp_path: Path) -> None:
    text = run(sweep, "--bench", bench(tmp_path / "bench.json"), "--format", "csv")
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(text))}
    half = lines["vtw,k=4,position=keep"]
    assert (half["prefill_s"], half["step_s"], half["kv_bytes"], half["peak_bytes"]) == (
        "0.02",
        "0.001",
        str(2**19),
        str(2**21),
    )
    assert lines["vtw,k=2,position=keep"]["prefill_s"] == "" and half["first_token_s"] == ""


def test_a_benchmark_of_another_model_is_refused_unless_it_is_named(sweep: Path, tmp_path: Path) -> None:
    file = bench(tmp_path / "bench.json", "llava-0.5b")
    message = run(sweep, "--bench", file, code=2)
    assert "measures 'llava-0.5b', which is no model of this report: tiny. Write --bench MODEL=" in message
    assert "320 ms" in run(sweep, "--bench", f"tiny={file}")
    assert "measures 'huge'" in run(sweep, "--bench", f"huge={file}", code=2)


def test_what_is_no_benchmark_is_told(sweep: Path, tmp_path: Path) -> None:
    assert "cannot be read" in run(sweep, "--bench", tmp_path / "none.json", code=2)
    (tmp_path / "x.json").write_text("{}")
    assert "is no bench.json of this version: subject" in run(sweep, "--bench", tmp_path / "x.json", code=2)
