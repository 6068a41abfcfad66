"""Which packages are installed, which of them this version was tested with, and the error for one that has changed."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vtw_eval._version import __version__

PACKAGE = "vtw-eval"
UNINSTALLED = "not installed"


class UpstreamChangedError(RuntimeError):
    """A package does not do what this project relies on, so that no number of the run can be trusted.

    Parameters
    ----------
    what
        What was expected and what was found.
    packages
        Distributions that may be to blame, the likeliest first.
    """

    def __init__(self, what: str, *packages: str) -> None:
        super().__init__(f"{what.rstrip('.')}. No number of this run can be trusted. {blame(packages)}")


def installed(package: str) -> str:
    """Return the version of an installed distribution, or :data:`UNINSTALLED`."""
    if package == PACKAGE:  # the metadata of an editable installation may be older than the source
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return UNINSTALLED


def tested(package: str) -> str:
    """Return the versions of a distribution that this project is tested with, such as ``>=5.20,<5.25``.

    They are the bounds of setup.cfg, as the installed metadata has them; empty if it names none.
    """
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # run from a source tree
        return ""
    name = canonicalize_name(package)
    found = [r.specifier for r in map(Requirement, lines) if canonicalize_name(r.name) == name and str(r.specifier)]
    return ",".join(sorted(str(part) for part in found[0])[::-1]) if found else ""


def blame(packages: Iterable[str]) -> str:
    """Return a sentence or two on what is installed and what is known to work."""
    sentences = []
    for package in packages:
        good = tested(package)
        known = f"; {PACKAGE} {__version__} is tested with {package}{good}" if good else ""
        found = installed(package)
        sentences.append(
            f"{package} is {found}{known}." if found == UNINSTALLED else f"{package} {found} is installed{known}."
        )
    return " ".join(sentences)


def source_hash(files: Iterable[Path]) -> str:
    """Return a short hash of the names and contents of files."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def engine_hash() -> str:
    """Return a short hash of our own code that decides what a method computes: results of other code may differ."""
    root = Path(__file__).parent
    paths = [root / name for name in _ENGINE if name.endswith(".py")]
    for folder in (name for name in _ENGINE if not name.endswith(".py")):
        paths += sorted((root / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_ENGINE = ("anatomy.py", "checkpoints.py", "engine", "methods", "verify")


def environment() -> dict[str, str]:
    """Return versions of what computes the numbers, and the platform."""
    return {
        PACKAGE: __version__,
        "engine": engine_hash(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: installed(name) for name in ("torch", "transformers")},
    }
