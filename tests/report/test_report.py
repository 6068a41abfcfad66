"""The report reads what lmms-eval writes, and refuses what is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vtw_eval.cli import app
from vtw_eval.report import markdown_table, read_runs
from vtw_eval.report.document import markdown_document
from vtw_eval.report.runs import RunError

runner = CliRunner()


def write_run(
    root: Path,
    label: str,
    *,
    flops: float = 2e9,
    pope: float = 0.8,
    mme: float = 1500.0,
    count: int = 2,
    method: str = "",
) -> Path:
    """Write the files of one evaluation as lmms-eval lays them out."""
    folder = root / label / "acme__model"
    folder.mkdir(parents=True)
    results = {
        "pope": {"alias": "pope", "pope_f1_score,none": pope, "pope_f1_score_stderr,none": 0.1},
        "mme": {"alias": "mme", "mme_perception_score,none": mme, "mme_cognition_score,none": 300.0},
        "other": {"alias": "other", "bleu,none": 0.25, "bleu_stderr,none": "N/A"},
    }
    content = {
        "results": results,
        "n-samples": {task: {"original": count, "effective": count} for task in results},
        "config": {"device": "cpu", "batch_size": "8"},
    }
    (folder / "20260101_000000_results.json").write_text(json.dumps(content))
    for i, task in enumerate(results):
        lines = [
            json.dumps(
                {
                    "doc_id": n,
                    "token_counts": [{"prefill_flops": flops + i + n, "method": method or label, "asked": label}],
                }
            )
            for n in range(count)
        ]
        (folder / f"20260101_000000_samples_{task}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_table_shows_methods_by_tasks_with_shares_of_the_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline")
    write_run(tmp_path, "vtw,k=2", flops=1e9, pope=0.7512, mme=1400.0)
    lines = markdown_table(read_runs(tmp_path)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["method", "GFLOPs ↓", "POPE F1 ↑", "MME ↑", "other bleu ↑"]
    assert cells[2] == ["baseline", "2 (100.0%)", "80.00", "1800.00", "0.25"]
    assert cells[3] == ["vtw,k=2", "1 (50.0%)", "75.12", "1700.00", "0.25"]


def test_costs_are_the_mean_over_all_documents(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline", flops=100.0, count=3)
    [run] = read_runs(tmp_path)
    assert run.prefill_flops == pytest.approx(100 + (0 + 1 + 2) / 3 + 1)  # tasks add 0, 1, 2; documents 0, 1, 2


def test_labels_cannot_break_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a|b")
    row = markdown_table(read_runs(tmp_path)).splitlines()[-1]
    assert row.count("|") - row.count("\\|") == 6


def test_a_searched_parameter_is_told_by_task(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "vtw,k=search", method="vtw,k=3")
    samples = folder / "20260101_000000_samples_pope.jsonl"
    samples.write_text(samples.read_text().replace("k=3", "k=4"))
    write_run(tmp_path, "baseline")
    text = markdown_document(read_runs(tmp_path), title="T")
    assert "vtw,k=search found: pope vtw,k=4; mme vtw,k=3; other vtw,k=3.\n" in text
    assert text.count("found:") == 1
    samples.write_text(samples.read_text().replace("k=search", "k=5", 1))
    with pytest.raises(RunError, match=r"mixes methods: vtw,k=5, vtw,k=search"):
        read_runs(tmp_path)


def test_runs_over_different_documents_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "baseline", count=4)
    write_run(tmp_path, "vtw,k=2", count=2)
    with pytest.raises(RunError, match="same tasks and --limit"):
        markdown_table(read_runs(tmp_path))


def spoil_results(folder: Path) -> None:
    (folder / "20260101_000000_results.json").write_text('{"results": {')


def spoil_schema(folder: Path) -> None:
    (folder / "20260101_000000_results.json").write_text("{}")


def drop_samples(folder: Path) -> None:
    (folder / "20260101_000000_samples_pope.jsonl").unlink()


def cut_samples(folder: Path) -> None:
    file = folder / "20260101_000000_samples_pope.jsonl"
    file.write_text(file.read_text().splitlines()[0])


def strip_costs(folder: Path) -> None:
    (folder / "20260101_000000_samples_pope.jsonl").write_text('{"token_counts": [null]}\n' * 2)


def add_results(folder: Path) -> None:
    (folder / "20260102_000000_results.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_results, "not valid JSON"),
        (spoil_schema, "not a results file"),
        (drop_samples, "is missing"),
        (cut_samples, "holds 1 samples"),
        (strip_costs, "no costs"),
        (add_results, "2 results files"),
    ],
)
def test_an_incomplete_run_is_named_and_nothing_is_printed(spoil, words: str, tmp_path: Path) -> None:
    write_run(tmp_path, "baseline")
    spoil(write_run(tmp_path, "vtw,k=2"))
    result = runner.invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "out.md")])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.md").exists()


def test_command_line_writes_and_prints_the_same_report(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "baseline")
    out = tmp_path / "deep" / "out.md"
    result = runner.invoke(
        app, ["report", str(tmp_path / "runs"), "-o", str(out), "--title", "Shapes", "--command", "./run_all.sh"]
    )
    assert result.exit_code == 0
    assert out.read_text() == result.stdout
    assert result.stdout.startswith("# Shapes\n")
    assert "`./run_all.sh`" in result.stdout
    assert [p.name for p in out.parent.iterdir()] == ["out.md"]


@pytest.mark.parametrize("arguments", [["report", "no-such-folder"], ["report", "."]])
def test_a_folder_without_runs_is_an_error(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "error:" in result.stderr


def test_methods_lists_every_method() -> None:
    result = runner.invoke(app, ["methods"])
    assert result.exit_code == 0
    for word in ("baseline", "vtw", "random_k", "[low, high]"):
        assert word in " ".join(result.stdout.split())
