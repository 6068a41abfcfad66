"""The list of what others do not promise: it is whole, it is where it says, and each of its tests passes here."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vtw_eval.sweep.harness import find_harness, harness_names
from vtw_eval.verify import touch_guards, touch_points
from vtw_eval.verify.touch_points import TouchPoint, check, check_touch_points
from vtw_eval.versions import UpstreamChangedError

ROOT = Path(__file__).parents[2]
OF_HARNESSES = {name: find_harness(name).touch_points() for name in harness_names()}
TOUCH_POINTS = (*touch_points.TOUCH_POINTS, *(point for points in OF_HARNESSES.values() for point in points))
NEEDS = {"lmms-eval": "lmms_eval", "ms-vlmeval": "vlmeval", "qwen-vl-utils": "qwen_vl_utils", "datasets": "datasets"}

OUR_ENDINGS = {"_stderr", "_token_id", "_token_index"}
"""Endings of public names, which are strings in our code."""


def _id(point: TouchPoint) -> str:
    return f"{point.package}-{Path(point.file).stem}-{point.token}"


@pytest.mark.parametrize("point", TOUCH_POINTS, ids=_id)
def test_a_touch_point_is_where_it_says(point: TouchPoint) -> None:
    assert point.token in (ROOT / point.file).read_text()


@pytest.mark.parametrize("point", TOUCH_POINTS, ids=_id)
def test_a_touch_point_is_as_expected_here(point: TouchPoint) -> None:
    if point.package in NEEDS:
        pytest.importorskip(NEEDS[point.package])
    outcome = check(point)
    if not isinstance(point.guard, str):
        assert outcome == "as expected"
        return
    assert outcome.startswith("checked where it is used, by ")
    module, found = point.guard, []
    while not found:
        module, _, name = module.rpartition(".")
        try:
            found = [importlib.import_module(module)]
        except ImportError:
            continue
    owner: Any = found[0]
    for name in point.guard.removeprefix(f"{module}.").split("."):
        owner = getattr(owner, name)
    assert callable(owner)


def _private_names() -> Iterator[tuple[str, str]]:
    """Yield file and name for what begins with one underscore and is defined nowhere in our code."""
    trees = {
        file: ast.parse(file.read_text())
        for folder in ("vtw_eval", "model_adapters", "tasks")
        for file in sorted((ROOT / folder).rglob("*.py"))
    }
    own = {file.stem for file in trees} | OUR_ENDINGS
    used: list[tuple[Path, str]] = []
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    own.add(node.attr)
                used.append((file, node.attr))
            elif isinstance(node, ast.ImportFrom):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                used += [(file, part) for part in parts]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # for getattr
                used.append((file, node.value))
    for file, name in dict.fromkeys(used):
        if re.fullmatch(r"_[a-z]\w+", name) and name not in own:
            yield file.relative_to(ROOT).as_posix(), name


def test_private_names_of_others_are_all_listed() -> None:
    listed = {(point.file, point.token) for point in TOUCH_POINTS}
    checks = ("touch_guards.py", "touch_points.py")
    assert {pair for pair in _private_names() if not pair[0].endswith(checks)} <= listed


def test_the_search_for_private_names_finds_some() -> None:
    found = set(_private_names())
    assert ("vtw_eval/engine/hooks.py", "_forward_pre_hooks") in found
    assert ("vtw_eval/cost/measure/torch_counter.py", "_python_dispatch") in found
    assert ("vtw_eval/anatomy.py", "_name_or_path") in found


def test_a_line_for_each_touch_point() -> None:
    points = [point for point in TOUCH_POINTS if point.package == "fvcore"]
    lines = check_touch_points(points)
    assert len(lines) == len(points) > 1
    assert all(re.match(r"fvcore [\d.]+\S*: .* \(vtw_eval/cost/.*\): as expected", line) for line in lines)


def _point(guard: Any) -> TouchPoint:
    return TouchPoint("torch", "something", "vtw_eval/cost/bench/run.py", "_dynamo", "nothing would work", guard)


@pytest.mark.parametrize("error", [AttributeError("gone"), ImportError("gone"), TypeError("gone"), KeyError("gone")])
def test_what_is_gone_is_told(error: Exception) -> None:
    def guard() -> None:
        raise error

    with pytest.raises(
        UpstreamChangedError, match=r"something \(vtw_eval/cost/bench/run.py\): .*gone.*torch .* installed"
    ):
        check(_point(guard))


# --- each feature test notices a change


def _skipped(names: str) -> None:
    if names:
        pytest.importorskip(names)


@pytest.mark.parametrize(
    ("guard", "needs", "target", "value"),
    [
        ("limits_recompilation", "", "torch._dynamo.config", object()),
        ("names_attention", "", "transformers.PreTrainedConfig._attn_implementation", None),
        ("knows_masks", "", "vtw_eval.engine.masks.sdpa_mask", None),
        ("reduces_caches", "", "transformers.DynamicCache.get_seq_length", lambda self, layer_idx=0: 0),
        ("reduces_caches", "", "transformers.DynamicCache.get_mask_sizes", lambda self, cache_position: 0),
        (
            "adds_deepstack",
            "",
            "transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLTextModel.forward",
            lambda self, **kwargs: None,
        ),
        ("names_placeholders", "", "vtw_eval.anatomy._PLACEHOLDERS", ("image_token_id",)),
        ("qwen_frames", "qwen_vl_utils", "qwen_vl_utils.vision_process.VIDEO_MAX_TOKEN_NUM", 1024),
        ("qwen_frames", "qwen_vl_utils", "qwen_vl_utils.vision_process.smart_nframes", lambda *args, **given: 8),
        ("qwen_frames", "qwen_vl_utils", "qwen_vl_utils.vision_process.smart_resize", lambda *args, **given: (28, 28)),
        (
            "tells_image_columns",
            "datasets",
            "vtw_eval.model_adapters.lmms.samples._holds_images",
            lambda feature: False,
        ),
        ("gives_results", "lmms_eval", "lmms_eval.evaluator.simple_evaluate", lambda model, **kwargs: None),
        ("finds_models", "lmms_eval", "lmms_eval.models.registry_v2.ModelManifest", lambda name: None),
        ("has_patched", "lmms_eval", "lmms_eval.tasks.TaskManager.__init__", lambda self, folders=(): None),
        ("has_patched", "vlmeval", "vlmeval.run.prepare_reuse_files", lambda file: None),
        ("draws_guesses", "vlmeval", "vlmeval.dataset.utils.vmcbench.parse_multi_choice_response", lambda answer: "A"),
        (
            "words_questions",
            "vlmeval",
            "vlmeval.vlm.internvl.InternVLChat.build_prompt",
            lambda self, line, dataset: [{"value": "?"}, {"value": self.image}],
        ),
        ("looks_up_tables", "vlmeval", "vlmeval.run.supported_VLM", {}),
        ("looks_up_tables", "vlmeval", "vlmeval.dataset.supported_video_datasets", {}),
    ],
)
def test_a_feature_test_notices_a_change(
    guard: str, needs: str, target: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _skipped(needs)
    touch_guards.qwen_frames.cache_clear()
    points = OF_HARNESSES["vlmevalkit"] if needs == "vlmeval" else TOUCH_POINTS
    point = next(p for p in points if getattr(p.guard, "__name__", "") == guard)
    check(point)
    touch_guards.qwen_frames.cache_clear()
    monkeypatch.setattr(target, value)
    with pytest.raises(UpstreamChangedError, match=rf"{point.package} \S+ is installed"):
        check(point)
    touch_guards.qwen_frames.cache_clear()


def test_a_constant_that_the_user_sets_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vision_process = pytest.importorskip("qwen_vl_utils.vision_process")
    touch_guards.qwen_frames.cache_clear()
    monkeypatch.setattr(vision_process, "MODEL_SEQ_LEN", 1000)
    monkeypatch.setenv("MODEL_SEQ_LEN", "1000")
    touch_guards.qwen_frames()
    touch_guards.qwen_frames.cache_clear()
