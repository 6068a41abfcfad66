"""What the documentation shows runs, and what it lists is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import make_inputs, make_model
from vtw_eval.families import DECODER_TESTED, REFUSED, TESTED
from vtw_eval.methods import METHODS, Reads, parse_method
from vtw_eval.record.cell import Cell, CellSpec, Sample
from vtw_eval.record.index import Index

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def scope() -> dict[str, Any]:
    """Return the names that the pages take for given: a model and inputs."""
    model = make_model("llava", attn="sdpa")
    inputs = make_inputs("llava", model, [["t3", "i", "t4"], ["t2", "i", "i", "t1"]])
    return {"__name__": __name__, "model": model, "inputs": inputs}


def test_the_library_is_used_as_shown(scope: dict[str, Any]) -> None:
    for block in python_blocks(page("python.md")):
        exec(block, scope)
    vision = scope["trace"].vision_per_layer
    assert torch.equal(vision[:, 2], (vision[:, 0] + 1) // 2) and torch.equal(vision[:, 1], vision[:, 0])


def test_layers_are_ordered_as_shown(scope: dict[str, Any]) -> None:
    [block] = python_blocks(page("methods.md"))
    exec(block, scope)
    assert scope["method"].frozen_layers(4)[0] == 3 and len(scope["method"].frozen_layers(4)) == 2


def test_an_observer_looks_on_as_shown(scope: dict[str, Any]) -> None:
    [block] = python_blocks(page("analyze.md"))
    seen: list[int] = []
    exec(
        block.replace("def look(entering):", "def look(entering):\n    seen.append(entering.layer)"),
        scope | {"seen": seen},
    )
    assert seen == [0, 1, 2, 3]


def test_the_walk_through_of_a_method_runs(
    scope: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page("new_method.md")
    first, tower, second, third = python_blocks(text)
    (tmp_path / "edge_first.py").write_text(first)
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^    (vtw-eval cost .*)$", text, re.MULTILINE)
    words = [str(Path(sys.executable).parent / "vtw-eval"), *command.split()[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "edge_first,k=3,r=0.75" in done.stdout.replace("edge_first.py:EdgeFirst", "edge_first")
    for block in (first, tower, second):
        exec(block, scope)
    model, inputs = scope["model"], scope["inputs"]
    with scope["ClsAttention"]()(model) as trace, torch.no_grad():
        model(**inputs)
    assert torch.equal(trace.vision_per_layer[:, 0], (trace.reduction.prompt.vision.sum(dim=1) + 1) // 2)
    with scope["EveryOther"](k=1)(model) as trace, torch.no_grad():
        model(**inputs)
    before, after = trace.vision_per_layer[:, 0], trace.vision_per_layer[:, 1]
    assert torch.equal(after, (before + 1) // 2) and before.tolist() != [0, 0]
    exec(third, scope)
    assert torch.equal(scope["trace"].vision_per_layer[:, 3], (before + 1) // 2)
    # By the definition: the larger half of the norms before layer 3, of the unchanged model.
    with torch.no_grad():
        entering = model(**inputs, output_hidden_states=True).hidden_states[3].norm(dim=-1)
    for row, norms in enumerate(entering):
        places = scope["trace"].reduction.prompt.vision[row].nonzero()[:, 0].tolist()
        best = sorted(places, key=lambda place: -float(norms[place]))[: (len(places) + 1) // 2]
        kept = scope["trace"].kept(3)[row].nonzero()[:, 0].tolist()
        assert sorted(best) == [place for place in kept if place in places]
    assert str(parse_method("edge_first.py:EdgeFirst,k=3")) == "edge_first.py:EdgeFirst,k=3,r=0.5"


def test_what_a_method_can_read_is_listed() -> None:
    text = page("methods.md")
    for name in ("ROLES", *(member.name for member in Reads)):
        assert re.search(rf"^\| `{name}` \|", text, re.MULTILINE), name


def test_only_methods_are_listed() -> None:
    table = page("methods.md").partition("Several together")[0]
    rows = [re.match(r"\| ((`\w+`(, )?)+) \|", line) for line in table.splitlines()]
    listed = [key for row in rows if row for key in re.findall(r"\w+", row[1])]
    assert listed and set(listed) <= set(METHODS)


def test_the_families_are_listed() -> None:
    for family in TESTED | DECODER_TESTED | set(REFUSED):
        assert re.search(rf"\b{family}\b", page("models.md")), family


def test_each_field_of_what_is_kept_is_listed() -> None:
    for kind in (Index, Cell, CellSpec, Sample):
        for field in kind.model_fields:
            assert f"`{field}`" in page("results.md"), f"{kind.__name__}.{field}"


def test_each_room_has_its_place_in_the_design() -> None:
    rooms = {
        f"vtw_eval/{folder.name}/"
        for folder in (ROOT / "vtw_eval").iterdir()
        if (folder / "__init__.py").is_file() and not folder.is_symlink()
    }
    for room in rooms | {"model_adapters/", "tasks/"}:
        assert f"| `{room}` |" in page("design.md"), room
    for file in (ROOT / "vtw_eval" / "engine").glob("[!_]*.py"):
        assert f"`{file.name}`" in page("design.md"), file.name


@pytest.mark.parametrize(
    "file", ["README.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in sorted(DOCS.glob("*.md")))]
)
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or ((ROOT / file).parent / target).exists(), target
