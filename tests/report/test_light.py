"""Help and the list of methods come at once: they import neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vtw_eval.cli import app

_TELL = """
import sys
from vtw_eval.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "transformers", "lmms_eval", "vlmeval", "pandas", "scipy", "matplotlib"} & set(sys.modules)
    print(f"exit {end.code}, heavy: {sorted(heavy)}", file=sys.stderr)
"""
_COMMANDS = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["methods"], ["tasks"], *([name, "--help"] for name in _COMMANDS)]
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    if arguments == ["methods"]:  # the list is made once for each version of the source
        subprocess.run([sys.executable, "-c", _TELL, "methods"], capture_output=True, check=True)
    done = subprocess.run([sys.executable, "-c", _TELL, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "exit 0, heavy: []"
    assert done.stdout
