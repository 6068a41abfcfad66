"""A harness that cannot be imported: one line that names the installed package and the versions that work."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fixtures import ROOT
from vtw_eval import versions
from vtw_eval.importing import HarnessImportError, culprits_of, importing

pytest.importorskip("lmms_eval")


def fake(folder: Path, module: str, release: str, code: str) -> None:
    """Put a package of another release into a folder that comes first on the path."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)
    info = folder / f"{module}-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {release}\n")
    (info / "top_level.txt").write_text(f"{module}\n")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "LMUData": str(folder),
    }
    return subprocess.run([sys.executable, *command], env=variables, capture_output=True, text=True, timeout=300)


def the_line(done: subprocess.CompletedProcess[str], program: str) -> str:
    """Return the only line of an error."""
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{program}: error: ")]
    return line


def without_api(folder: Path) -> None:
    """Make a filelock that has everything but ``_api``, as 4.3 does."""
    import filelock

    real = Path(filelock.__file__).parent
    fake(folder, "filelock", "4.3.1", "")
    for file in real.glob("*.py"):
        code = file.read_text()
        name = "_core.py" if file.name == "_api.py" else file.name
        (folder / "filelock" / name).write_text(code.replace("._api", "._core"))


LMMS = ("-m", "vtw_eval.model_adapters.lmms.cli", "--model", "llava_vtw", "--tasks", "mme")
KIT = ("-m", "vtw_eval.model_adapters.vlmeval.cli", "--data", "MME", "--model", "llava_vtw")


def test_a_filelock_without_what_lmms_eval_changes_is_told_at_the_start(tmp_path: Path) -> None:
    without_api(tmp_path)
    line = the_line(run(tmp_path, *LMMS), "lmms_eval")
    assert "lmms-eval " in line and "No module named 'filelock._api'" in line
    assert f"filelock 4.3.1 is installed; vtw-eval 0.1.0 is tested with filelock{versions.tested('filelock')}." in line


def test_an_attribute_that_a_dependency_lacks(tmp_path: Path) -> None:
    fake(tmp_path, "sqlitedict", "9.0", "")
    fake(tmp_path, "tenacity", "99.0", "import sqlitedict\nsqlitedict.SqliteDict\n")
    line = the_line(run(tmp_path, *LMMS), "lmms_eval")
    assert "AttributeError: module 'sqlitedict' has no attribute 'SqliteDict'" in line
    assert "sqlitedict 9.0 is installed. tenacity 99.0 is installed; vtw-eval 0.1.0 is tested with tenacity>=" in line


def test_the_kit_with_a_dependency_that_cannot_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("vlmeval")
    fake(tmp_path, "validators", "9.9", "raise RuntimeError('made for another numpy')\n")
    line = the_line(run(tmp_path, *KIT), "vtw-vlmeval")
    assert "ms-vlmeval " in line and "cannot be imported (RuntimeError: made for another numpy)" in line
    assert "validators 9.9 is installed." in line


def test_the_manifest_tells_too(tmp_path: Path) -> None:
    fake(tmp_path, "loguru", "9.9", "")
    done = run(tmp_path, "-c", "from vtw_eval.model_adapters.lmms.manifest import manifests; manifests()")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vtw_eval.importing.HarnessImportError: lmms-eval ")
    assert "loguru 9.9 is installed; vtw-eval 0.1.0 is tested with loguru" in last


def test_a_harness_that_is_not_installed() -> None:
    told = pytest.raises(HarnessImportError, match=r"no-harness is not installed: pip install 'vtw-eval\[no-harness\]'")
    with told, importing("no-harness"):
        importlib.import_module("no_harness_at_all")


def test_a_dependency_that_is_not_installed() -> None:
    told = pytest.raises(HarnessImportError, match=r"no_such_thing is not installed, and \S+ needs it")
    with told, importing("lmms-eval"):
        importlib.import_module("no_such_thing")


def _lazily() -> None:
    import yaml

    try:
        yaml.no_such_name  # noqa: B018
    except AttributeError as error:
        raise ModuleNotFoundError("could not import something lazily") from error


def test_what_a_lazy_importer_wraps_is_found() -> None:
    told = pytest.raises(HarnessImportError, match=r"cannot be imported \(AttributeError.*PyYAML \S+ is installed")
    with told, importing("lmms-eval"):
        _lazily()


def test_what_is_explained_already_stays_as_it_is() -> None:
    for error in (versions.UpstreamChangedError("changed", "torch"), HarnessImportError("explained")):
        with pytest.raises(type(error)) as caught, importing("lmms-eval"):
            raise error
        assert caught.value is error


def test_imports_that_work_are_left_alone() -> None:
    with importing("lmms-eval"):
        import lmms_eval.tasks  # noqa: F401


def test_names_are_those_of_our_requirements() -> None:
    error = ImportError("cannot import name 'x' from 'huggingface_hub'", name="huggingface_hub")
    assert culprits_of(error) == ["huggingface_hub"]
    assert culprits_of(ImportError("no", name="lmms_eval.tasks")) == ["lmms-eval"]
    assert culprits_of(ImportError("no", name="PIL.Image")) == ["pillow"]
