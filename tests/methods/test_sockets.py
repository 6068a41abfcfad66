"""Methods of others: registered by packages, or named by the place of their class."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vtw_eval
from tests.methods.examples import EXAMPLES
from vtw_eval.cli import app
from vtw_eval.methods import FastV, Scorer, make_method, parse_method
from vtw_eval.methods.registry import find_method, method_names
from vtw_eval.methods.sockets import foreign_code, plugins
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import parse_options
from vtw_eval.sweep.plan import expand_method

SOURCE = Path(__file__).parents[1] / "extension" / "package" / "edge_first.py"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    plugins.cache_clear()
    yield
    plugins.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what installs a package: its name, its source, and its entry points by name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, **entries: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {place}" for key, place in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[vtw_eval.methods]", *lines]) + "\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        plugins.cache_clear()

    return install


def told(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_adds_a_method(package: Callable[..., None]) -> None:
    package("edge-first", SOURCE.read_text(), edge_first="edge_first:EdgeFirst")
    assert method_names()[-1] == "edge_first"
    assert "edge_first" not in sys.modules, "nothing is loaded before it is asked for"
    method = parse_method("edge_first,k=3")
    assert isinstance(method, Scorer) and method.k == 3
    assert str(method) == "edge_first,k=3,r=0.5,power=2.0"
    both = parse_method("edge_first+vtw,edge_first.k=2,vtw.k=16")
    assert parse_method(str(both)) == both
    assert "did you mean 'edge_first'" in told(lambda: parse_method("edge_frist"))
    assert "did you mean 'power'" in told(lambda: parse_method("edge_first,pwoer=1"))
    # By whatever way it is found, it is called by its key.
    assert str(parse_method("edge_first:EdgeFirst")) == str(parse_method("edge_first"))
    name, *rest = CliRunner().invoke(app, ["methods"]).stdout.splitlines()[-4:]
    assert name.startswith("edge_first, k=2, r=0.5, ") and name.endswith(", power=2.0")
    assert rest == [
        "    Keep the vision tokens with the largest hidden states before layer k; of equal ones, the earlier.",
        "    Reads hidden states.",
        "    From edge-first 1.0.",
    ]


def test_what_is_broken_breaks_itself_only(package: Callable[..., None]) -> None:
    package("edge-first", SOURCE.read_text(), edge_first="edge_first:EdgeFirst")
    package("broken", "import no_such_module", broken="broken:Method")
    package("no-method", "class Thing: pass", thing="no_method:Thing", other="no_method:Other")
    package("other-key", SOURCE.read_text(), second="other_key:EdgeFirst")
    assert str(parse_method("edge_first")).startswith("edge_first,")
    listed = CliRunner().invoke(app, ["methods"]).stdout
    assert "edge_first, k=2" in listed
    for name, words in {
        "broken": ["broken 1.0", "ModuleNotFoundError: No module named 'no_such_module'"],
        "thing": ["no-method 1.0", "subclass of vtw_eval.methods.Method"],
        "other": ["no-method 1.0", "AttributeError"],
        "second": ["other-key 1.0", "has the key 'edge_first'", "name under which it is registered"],
    }.items():
        message = told(lambda name=name: parse_method(name))  # type: ignore[misc]
        assert all(word in message for word in [repr(name), *words])
        assert f"{name}\n    Cannot be used: {message}\n" in listed


def test_a_name_stands_for_one_method(package: Callable[..., None]) -> None:
    source = SOURCE.read_text()
    package("one", source, edge_first="one:EdgeFirst", vtw="one:EdgeFirst")
    package("two", source, edge_first="two:EdgeFirst")
    message = told(lambda: parse_method("edge_first"))
    assert "registered more than once" in message and "one 1.0" in message and "two 1.0" in message
    message = told(lambda: parse_method("vtw,k=2"))
    assert "'vtw' is one of vtw-eval's" in message and "one 1.0" in message
    assert parse_method("fastv") == FastV()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return what writes a file of a method into the working directory; it returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(source: str, name: str = "mine.py") -> str:
        path = tmp_path / "my folder" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return f"my folder/{name}"

    return write


def test_a_method_is_named_by_its_file(file: Callable[[str], str], tmp_path: Path) -> None:
    place = file(SOURCE.read_text()) + ":EdgeFirst"
    method = parse_method(f"{place},k=3")
    assert str(method) == "my folder/mine.py:EdgeFirst,k=3,r=0.5,power=2.0"
    assert method.label() == "edge_first,k=3,r=0.5,power=2.0"
    assert parse_method(str(method)) == method
    for spelling in (f"./{place}", f"my folder/../{place}", f"{tmp_path}/{place}"):
        assert str(parse_method(f"{spelling},k=3")) == str(method)
        assert find_method(spelling) is type(method), "imported once"
    both = parse_method(f"{place}+vtw,{place}.k=2,{place}.r=0.25,vtw.k=16")
    assert str(both) == f"{place}+vtw,{place}.k=2,{place}.r=0.25,{place}.power=2.0,vtw.k=16,vtw.position=keep"
    assert parse_method(str(both)) == both
    assert both.label() == str(both).replace(place, "edge_first")
    assert "did you mean 'power'" in told(lambda: parse_method(f"{place},powr=1"))
    assert f"PART one of {place}, vtw" in told(lambda: parse_method(f"{place}+vtw,k=2"))


def test_a_file_elsewhere_goes_by_its_whole_path(file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(file(SOURCE.read_text())).resolve()
    monkeypatch.chdir("/")
    (other := path.parents[1] / "other").mkdir()
    monkeypatch.chdir(other)
    method = make_method("../my folder/mine.py:EdgeFirst", {"k": 1})
    assert str(method) == f"{path}:EdgeFirst,k=1,r=0.5,power=2.0"


def test_a_module_and_a_class_of_ours(file: Callable[[str], str]) -> None:
    assert str(parse_method("vtw_eval.methods.fastv:FastV")) == str(FastV())
    assert "no_such_module" in told(lambda: parse_method("no_such_module:X"))
    assert "did you mean 'FastV'" in told(lambda: parse_method("vtw_eval.methods.fastv:FastW"))


HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from vtw_eval.methods import FastV, Method, Reads, Scorer
"""
FROZEN = "@dataclass(frozen=True, kw_only=True)\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = (", ["mine.py, line 1", "SyntaxError"]),
        ("x = 1\n\nx.nothing\n", ["mine.py, line 3", "AttributeError"]),
        ("import json\njson.loads('?')\n", ["mine.py, line 2", "JSONDecodeError"]),
        (HEAD + "class Mime(Scorer): key = 'mime'\n", ["has no 'Mine'", "did you mean 'Mime'"]),
        ("Mine = 3", ["subclass of vtw_eval.methods.Method, not 3"]),
        (HEAD + FROZEN + "class Mine(FastV): seed: int = 1\n", ["no key of its own"]),
        (HEAD + FROZEN + "class Mine(Scorer): key = 'a,b'\n", ["no key of its own", "letters"]),
        (HEAD + FROZEN + "class Mine(Scorer): key = 'vtw'\n", ["key 'vtw'", "another one"]),
        (HEAD + "class Mine(Scorer): key = 'mine'\n", ["@dataclass(frozen=True, kw_only=True)"]),
        (HEAD + FROZEN + "class Mine(Scorer):\n  key = 'mine'\n  reads = 'hidden'\n", ["reads = Reads.HIDDEN"]),
        (HEAD + FROZEN + "class Mine(Scorer):\n  key = 'mine'\n  n: int\n", ["parameter n has no default"]),
        (
            HEAD + FROZEN + "class Mine(Scorer):\n  key = 'mine'\n  n: tuple = ()\n",
            ["n is of type", "Literal"],
        ),
    ],
)
def test_a_mistake_in_a_file_is_told(file: Callable[[str], str], source: str, words: list[str]) -> None:
    place = file(source) + ":Mine"
    message = told(lambda: parse_method(place))
    assert all(word in message for word in words), message
    Path("my folder/mine.py").write_text(HEAD + FROZEN + "class Mine(Scorer): key: ClassVar[str] = 'mine'\n")


def test_a_path_that_no_spec_can_tell_is_refused(file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(file(SOURCE.read_text())).resolve()
    (path.parents[1] / "a+b").mkdir()
    shutil.copy(path, path.parents[1] / "a+b")
    monkeypatch.chdir(path.parent)
    assert "plus signs" in told(lambda: find_method("../a+b/mine.py:EdgeFirst"))


def test_no_file_is_told(file: Callable[[str], str]) -> None:
    assert "there is no file 'gone.py'" in told(lambda: parse_method("gone.py:Mine"))


def test_options_and_plans_take_it(file: Callable[[str], str]) -> None:
    place = file(SOURCE.read_text()) + ":EdgeFirst"
    given = {"pretrained": "shapes", "method": place, "k": "3"}
    _, method = parse_options("llava_vtw", ADAPTERS["llava_vtw"].options, given)
    assert method == parse_method(f"{place},k=3")
    message = told(lambda: parse_options("llava_vtw", ADAPTERS["llava_vtw"].options, {**given, "powr": 1}))
    assert "did you mean 'power'" in message and f"Parameters of method '{place}': k, r, " in message
    composed = {"pretrained": "shapes", "method": f"{place}+vtw", f"{place}.k": 3, "vtw.k": 5}
    _, method = parse_options("llava_vtw", ADAPTERS["llava_vtw"].options, composed)
    assert method == parse_method(f"{place}+vtw,{place}.k=3,vtw.k=5")
    assert expand_method({"method": place, "k": [1, 2]}) == [f"{place},k={k},r=0.5,power=2.0" for k in (1, 2)]
    assert expand_method({"method": f"{place}+vtw", f"{place}.k": 1, "vtw.k": 2})[0].startswith(f"{place}+vtw,")
    assert "cannot be True" in told(lambda: expand_method({"method": place, "k": True}))


@pytest.mark.parametrize("label", EXAMPLES)
def test_a_spec_loses_nothing(label: str) -> None:
    assert parse_method(str(EXAMPLES[label])) == EXAMPLES[label]


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        # As cells of earlier sweeps are called: other strings would be other cells.
        ("dyvte", "dyvte"),
        ("dyvte,gates=a/b.safetensors", "dyvte,gates=a/b.safetensors"),
        ("dyvte,check_name=false", "dyvte,check_name=False"),
        ("dyvte,check_name=no,gates=a/b.safetensors", "dyvte,gates=a/b.safetensors,check_name=False"),
        (
            "fastv+dyvte,dyvte.gates=a/b.safetensors,fastv.r=.25",
            "fastv+dyvte,fastv.k=2,fastv.r=0.25,fastv.seed=0,dyvte.gates=a/b.safetensors",
        ),
        ("vtw", "vtw,position=keep"),
        ("vtw,k=search,samples=200", "vtw,k=search,position=keep,samples=200"),
        ("tome,per_layer=3", "tome,k=0,per_layer=3"),
        ("random_k", "random_k,seed=0"),
    ],
)
def test_specs_are_spelled_as_ever(given: str, spec: str) -> None:
    assert str(parse_method(given)) == spec
    assert parse_method(spec) == parse_method(given)
    assert parse_method(given).label() == spec.replace("a/", "")


def test_a_value_that_no_spec_can_tell_is_refused() -> None:
    assert "commas" in told(lambda: make_method("dyvte", {"gates": "a,b.safetensors"}))
    assert "spaces" in told(lambda: make_method("dyvte", {"gates": " a"}))


def test_the_code_of_others_is_told(file: Callable[[str], str], tmp_path: Path) -> None:
    assert {foreign_code(method) for method in EXAMPLES.values()} == {""}
    source = SOURCE.read_text()
    place = file(source) + ":EdgeFirst"
    shutil.copytree(tmp_path / "my folder", tmp_path / "same")
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "mine.py").write_text(source + "\n# changed\n")
    codes = [foreign_code(parse_method(f"{folder}/mine.py:EdgeFirst")) for folder in ("my folder", "same", "changed")]
    assert codes[0] == codes[1] != codes[2]
    assert foreign_code(parse_method(f"{place}+vtw")) == codes[0]
    assert len(codes[0]) == 12


def test_a_class_that_stands_nowhere_else_is_found_by_its_name() -> None:
    assert vtw_eval.FastV is vtw_eval.methods.FastV is FastV
    for module in (vtw_eval, vtw_eval.methods):
        with pytest.raises(AttributeError, match="no attribute 'NoMethod'"):
            module.NoMethod  # noqa: B018
