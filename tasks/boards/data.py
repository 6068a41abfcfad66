"""Paths of the test sets, for the ``dataset_path: !function data.NAME`` lines of the task files.

lmms-eval resolves ``!function module.name`` to an attribute of a module next to the task file when it loads a task, not
when it lists tasks. A module ``__getattr__`` (PEP 562) makes that the moment at which a test set is built, and gives
lmms-eval an ordinary path.
"""

from vtw_eval.shapes.boards.data import TEST_SETS, dataset_path


def __getattr__(name: str) -> str:
    """Return the directory of a test set, made on first use."""
    if name not in TEST_SETS:
        raise AttributeError(f"no test set {name!r}; known: {', '.join(TEST_SETS)}")
    return str(dataset_path(name))
