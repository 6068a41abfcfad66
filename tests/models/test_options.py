"""Arguments are converted, checked before anything is loaded, and wrong ones are explained."""

from __future__ import annotations

from typing import Any

import pytest

from vtw_eval.methods import VTW, Baseline
from vtw_eval.model_adapters.errors import describe_error
from vtw_eval.model_adapters.lmms.cli import include_paths, tasks_folder
from vtw_eval.model_adapters.lmms.manifest import manifests
from vtw_eval.models.adapters import ADAPTERS
from vtw_eval.models.options import check_unique_names, parse_options


def parse(adapter: str = "llava_vtw", **given: Any) -> Any:
    return parse_options(adapter, ADAPTERS[adapter].options, given)


def test_defaults() -> None:
    options, method = parse()
    assert options.pretrained == "llava-hf/llava-1.5-7b-hf"
    assert method == VTW()


def test_what_is_not_an_option_goes_to_the_method() -> None:
    options, method = parse(pretrained=2024, k=3, position="rearrange", batch_size="4", dtype="float32")
    assert options.pretrained == "2024"
    assert options.batch_size == 4
    assert method == VTW(k=3, position="rearrange")


def test_compositions() -> None:
    given: dict[str, Any] = {"method": "fastv+vtw", "fastv.k": 1, "fastv.r": 0.5, "vtw.k": 2}
    _, method = parse(**given)
    assert str(method).startswith("fastv+vtw")


def test_the_string_none_is_no_value() -> None:
    options, method = parse(device="None", k="None", chat_template="none")
    assert options.device is None
    assert options.chat_template is None
    assert method == VTW()


def test_frames_and_pixels() -> None:
    assert parse(max_frames_num="8")[0].max_frames_num == 8
    options, method = parse("qwen2vl_vtw", min_pixels=784, max_pixels="12544", fps=1, method="baseline")
    assert (options.min_pixels, options.max_pixels, options.fps) == (784, 12544, 1.0)
    assert method == Baseline()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"methd": "vtw"},
            r"unknown option 'methd' of llava_vtw; did you mean 'method'\? .*Parameters .*: k, position",
        ),
        ({"K": 3}, r"unknown option 'K' of llava_vtw"),
        ({"method": "baseline", "k": 3}, r"unknown option 'k' of llava_vtw.*Parameters of method 'baseline': none"),
        ({"method": "fastv+vtw", "vtw.kk": 3}, r"unknown option 'vtw.kk' of llava_vtw; did you mean 'vtw.k'"),
        ({"method": "fastv+vtv"}, r"unknown method 'vtv'"),
        ({"method": "vtv"}, r"unknown method 'vtv'; did you mean 'vtw'"),
        ({"k": "three"}, r"bad value k='three' of method 'vtw'"),
        ({"k": -1}, r"k=-1 is out of range"),
        ({"batch_size": 0}, r"batch_size=0 is out of range"),
        ({"batch_size": "auto"}, r"bad value batch_size='auto' of llava_vtw.*halve"),
        ({"dtype": "float17"}, r"dtype='float17' is unknown"),
        ({"use_cache": "perhaps"}, r"bad value use_cache='perhaps'"),
        ({"pretrained": None}, r"bad value pretrained=None"),
    ],
)
def test_wrong_arguments_are_explained(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(**given)


@pytest.mark.parametrize(
    "text",
    ["", " ,", "pretrained=a", "k=1, kk=1,", "pretrained=a=b,k=1", 'a={"k": 1, "k": 2},k=3', "a=[1,2],b='k=1,k=2',k=3"],
)
def test_options_with_names_of_their_own(text: str) -> None:
    check_unique_names(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k=1,k=2", "'k' stands 2 times in the model's arguments 'k=1,k=2'"),
        ("pretrained=a, k =1,method=vtw,k=1,k=3", "'k' stands 3 times"),
        ("pretrained=a,k", "'k' in the model's arguments .* is not of the form name=value"),
        ("=3", "name=value"),
        ('a={"b": 1},a={"c": 2}', "'a' stands 2 times"),
    ],
)
def test_an_option_given_twice_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_unique_names(text)


def test_every_adapter_is_in_the_manifest() -> None:
    import importlib

    found = {manifest.model_id: manifest for manifest in manifests()}
    assert set(found) == set(ADAPTERS)
    for name, manifest in found.items():
        for path, simple in ((manifest.chat_class_path, False), (manifest.simple_class_path, True)):
            assert path is not None
            module, cls = path.rsplit(".", 1)
            model = getattr(importlib.import_module(module), cls)
            assert model.adapter == name
            assert model.is_simple is simple


def test_lmms_eval_finds_the_adapters() -> None:
    from lmms_eval.models import get_model, list_available_models

    assert set(ADAPTERS) <= set(list_available_models())
    assert get_model("llava_vtw").__name__ == "LlavaVTW"
    assert get_model("llava_vtw", force_simple=True).__name__ == "LlavaVTWSimple"


def test_task_folders_are_merged(tmp_path: Any) -> None:
    ours = str(tasks_folder())
    assert include_paths(None) == [ours]
    assert include_paths(str(tmp_path)) == [ours, str(tmp_path)]
    assert include_paths([str(tmp_path)]) == [ours, str(tmp_path)]
    with pytest.raises(ValueError, match="is not a folder"):
        include_paths("/nowhere/at-all")


def test_errors_in_one_line() -> None:
    assert describe_error(ValueError("first\n  second")) == "first second"
    assert describe_error(KeyError("image")) == "KeyError: 'image'"
    assert describe_error(RuntimeError()) == "RuntimeError: "
