"""Processes that cannot import some packages, as where those are not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.support.fixtures import ROOT

_START = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def run_without(packages: Sequence[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import some packages.

    Parameters
    ----------
    packages
        Names of modules at the top.
    code
        Python.
    """
    command = [sys.executable, "-c", _START.format(packages=tuple(packages)) + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
