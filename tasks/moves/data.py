"""Paths of the test sets, for the ``dataset_path: !function data.NAME`` lines of the task files.

A module ``__getattr__`` (PEP 562) makes a test set when a task is loaded, not when tasks are listed, as for boards.
"""

from vtw_eval.shapes.moves.data import TEST_SETS, dataset_path


def __getattr__(name: str) -> str:
    """Return the directory of a test set, made on first use."""
    if name not in TEST_SETS:
        raise AttributeError(f"no test set {name!r}; known: {', '.join(TEST_SETS)}")
    return str(dataset_path(name))
