"""A harness that cannot be imported or started because of a package that it needs: which one, in one line."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vtw_eval.errors import named
from vtw_eval.versions import PACKAGE, UNINSTALLED, UpstreamChangedError, blame, installed

EXTRAS = {"lmms-eval": "lmms", "ms-vlmeval": "vlmeval", "fvcore": "measure"}
"""Our extra that installs each optional package."""


class HarnessImportError(ImportError):
    """A harness cannot be imported; the message names the installed package that is to blame."""


@contextmanager
def importing(harness: str) -> Iterator[None]:
    """Explain what goes wrong in the imports of a block.

    Parameters
    ----------
    harness
        Distribution, such as "lmms-eval".

    Raises
    ------
    HarnessImportError
        For an import that fails, also because a package lacks what another one takes from it while it is imported.
    """
    try:
        yield
    except (HarnessImportError, UpstreamChangedError):
        raise
    except Exception as error:  # a binary of another release raises RuntimeError or OSError
        raise HarnessImportError(explain(error, harness)) from error


def explain(error: BaseException, harness: str) -> str:
    """Return one line on an error in imports: what failed, in which installed package, and which versions work."""
    root = _root(error)
    reason = named(root)
    failed = f"{harness} {installed(harness)} cannot be imported ({reason})."
    culprits = culprits_of(error)
    missing = next((name for name in culprits if installed(name) == UNINSTALLED), None)
    if installed(harness) == UNINSTALLED:
        return f"{harness} is not installed: pip install '{PACKAGE}[{EXTRAS.get(harness, harness)}]'."
    if missing is not None:
        needed = next((name for name in culprits if installed(name) != UNINSTALLED), harness)
        return f"{failed} {missing} is not installed, and {needed} needs it: pip install {missing}."
    return f"{failed} {blame(culprits or [harness])}"


def culprits_of(error: BaseException) -> list[str]:
    """Return distributions that may be to blame for an error in imports, the likeliest first, at most two.

    The likeliest is the module that lacks something; then comes the one that wanted it.
    """
    root = _root(error)
    distributions = packages_distributions()
    modules = [_named(root), *reversed(_frames(root))]
    found: list[str] = []
    for module in modules:
        top = (module or "").partition(".")[0]
        if not top:
            continue
        if top in distributions:
            found.append(distributions[top][0])
        elif module == modules[0] and importlib.util.find_spec(top) is None:
            found.append(top)  # not installed: distributions are mostly called as their modules
    return [name for name in dict.fromkeys(map(_spelled, found)) if name != PACKAGE][:2]


def _spelled(distribution: str) -> str:
    """Return a distribution's name as our own requirements have it, where it is among them."""
    try:
        names = [Requirement(line).name for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        names = []
    ours = {canonicalize_name(name): name for name in names}
    return ours.get(canonicalize_name(distribution), distribution)


def _root(error: BaseException) -> BaseException:
    """Return what an error was raised from: lazy importers wrap the import that failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _named(error: BaseException) -> str | None:
    """Return the module that an error is about."""
    if isinstance(error, ImportError):
        return error.name
    if isinstance(error, AttributeError):
        owner = error.obj
        return owner.__name__ if isinstance(owner, types.ModuleType) else type(owner).__module__
    return None


def _frames(error: BaseException) -> list[str]:
    """Return the modules that were running, the outermost first."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        found.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return found
