"""What is relied on in lmms-eval, and in ``datasets``, without their promise, each with what checks it."""

from __future__ import annotations

import inspect

from vtw_eval.importing import importing
from vtw_eval.verify.touch_guards import expect, takes
from vtw_eval.verify.touch_points import TouchPoint


def has_patched() -> None:
    """Check that lmms-eval has the functions that are replaced, with their parameters."""
    from vtw_eval.model_adapters.lmms.patches import LMMS_EVAL

    for patch in LMMS_EVAL.values():
        patch.place()


def shares_filelocks() -> None:
    """Do what lmms-eval does to filelock before its first document; newer ones lack what it changes."""
    from lmms_eval import evaluator

    with importing("lmms-eval"):
        getattr(evaluator, "_enable_reentrant_filelocks", lambda: None)()


def finds_models() -> None:
    """Check that lmms-eval can be told our models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    from vtw_eval.model_adapters.lmms.manifest import manifests

    takes(ModelManifest, ["chat_class_path", "simple_class_path"], "lmms-eval")
    manifests()


def gives_results() -> None:
    """Check that lmms-eval's evaluator and instances are what sweeps and the search of k read."""
    from lmms_eval import evaluator
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.tasks import TaskManager, get_task_dict

    names = ("model", "tasks", "limit", "bootstrap_iters", "task_manager", "cli_args", "random_seed")
    takes(evaluator.simple_evaluate, (*names, "numpy_random_seed", "torch_random_seed"), "lmms-eval")
    takes(TaskManager.__init__, ["verbosity", "include_path", "include_defaults", "model_name"], "lmms-eval")
    takes(get_task_dict, ["task_name_list", "task_manager", "task_type"], "lmms-eval")
    takes(GenerationResult, ["text", "token_counts"], "lmms-eval")
    takes(TokenCounts, ["input_tokens", "output_tokens"], "lmms-eval")
    expect(hasattr(TokenCounts, "to_dict"), "TokenCounts has no to_dict: costs are not written", "lmms-eval")
    expect("filtered_resps" in Instance.__annotations__, "instances have no filtered_resps", "lmms-eval")
    names = inspect.unwrap(TaskManager.__init__).__code__.co_names
    expect("_task_index" in names, "a TaskManager has no _task_index", "lmms-eval")


def tells_image_columns() -> None:
    """Check that columns of images are recognised, alone and in lists: their documents are resampled together."""
    import datasets

    from vtw_eval.model_adapters.lmms.samples import _holds_images

    features = (datasets.Image(), datasets.Sequence(datasets.Image()), datasets.List(datasets.Image()))
    expect(all(map(_holds_images, features)), "lists of images are not recognised as such", "datasets")
    expect(not _holds_images(datasets.Value("string")), "texts are taken for images", "datasets")


TOUCH_POINTS: tuple[TouchPoint, ...] = (
    TouchPoint(
        "lmms-eval",
        "functions that are replaced",
        "model_adapters/lmms/patches.py",
        "LMMS_EVAL",
        "a failure would end with exit status 0, and our tasks would not be found",
        has_patched,
    ),
    TouchPoint(
        "lmms-eval",
        "what it changes in filelock",
        "model_adapters/lmms/touch_points.py",
        "_enable_reentrant_filelocks",
        "evaluations would fail after the model has been loaded",
        shares_filelocks,
    ),
    TouchPoint(
        "lmms-eval",
        "entry points of models",
        "model_adapters/lmms/manifest.py",
        "registry_v2",
        "our models would not be found",
        finds_models,
    ),
    TouchPoint(
        "lmms-eval",
        "parameters of its evaluator, and fields of its instances",
        "model_adapters/lmms/cells.py",
        "filtered_resps",
        "scores and costs of documents would be missing",
        gives_results,
    ),
    TouchPoint(
        "lmms-eval",
        "the index of tasks",
        "model_adapters/lmms/names.py",
        "_task_index",
        "groups of tasks could not be written out",
        gives_results,
    ),
    TouchPoint(
        "datasets",
        "features of images in lists",
        "model_adapters/lmms/samples.py",
        '"feature"',
        "intervals would be too narrow",
        tells_image_columns,
    ),
)
"""See :data:`vtw_eval.verify.touch_points.TOUCH_POINTS`."""
