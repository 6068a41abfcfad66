from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig
from typer.testing import CliRunner

from vtw_eval.checkpoints import EMBEDDED
from vtw_eval.cli import app
from vtw_eval.methods import parse_method
from vtw_eval.model_adapters.lmms.names import expand_tasks
from vtw_eval.sweep.estimate import estimate, geometry_of, usual_prompt
from vtw_eval.sweep.plan import Plan, PlanError, find_plan, parse_plan, presets, read_plan, resolve, select

SHAPES = {"name": "shapes", "adapter": "llava_vtw", "pretrained": "shapes"}


def plan(**values: Any) -> Plan:
    return parse_plan({"models": [SHAPES], "tasks": ["shapes_pope"], **values})


def test_lists_are_multiplied_out_in_order() -> None:
    methods = plan(methods=["baseline", {"method": "fastv", "k": [2, 3], "r": [0.5, 0.75]}]).methods
    assert methods == [
        "baseline",
        "fastv,k=2,r=0.5,seed=0",
        "fastv,k=2,r=0.75,seed=0",
        "fastv,k=3,r=0.5,seed=0",
        "fastv,k=3,r=0.75,seed=0",
    ]


def test_equal_methods_are_one_cell() -> None:
    made = plan(methods=["vtw,k=16", "vtw, k=16", {"method": "vtw", "k": 16}, "vtw,position=keep,k=16"])
    assert [cell.method for cell in made.cells()] == ["vtw,k=16,position=keep"]


def test_a_composition_expands_and_a_path_to_gates_survives() -> None:
    made = plan(methods=[{"method": "fastv+dyvte", "fastv.r": [0.25, 0.5], "dyvte.gates": "a/b.safetensors"}])
    parts = [parse_method(method).parts for method in made.methods]  # type: ignore[attr-defined]
    assert [(fastv.r, dyvte.gates, dyvte.check_name) for fastv, dyvte in parts] == [
        (0.25, "a/b.safetensors", True),
        (0.5, "a/b.safetensors", True),
    ]


def test_cells_go_by_model_then_method_then_task() -> None:
    made = parse_plan(
        {
            "models": [SHAPES, {**SHAPES, "name": "big", "methods": ["vtw,k=3"], "args": {"dtype": "bfloat16"}}],
            "methods": ["baseline", "vtw,k=2"],
            "tasks": ["shapes_pope", "shapes_vqa", "shapes_pope"],
            "dtype": "float32",
            "limit": 7,
        }
    )
    assert [(cell.model, cell.method.split(",p")[0], cell.task) for cell in made.cells()] == [
        ("shapes", "baseline", "shapes_pope"),
        ("shapes", "baseline", "shapes_vqa"),
        ("shapes", "vtw,k=2", "shapes_pope"),
        ("shapes", "vtw,k=2", "shapes_vqa"),
        ("big", "vtw,k=3", "shapes_pope"),
        ("big", "vtw,k=3", "shapes_vqa"),
    ]
    assert [cell.model_args["dtype"] for cell in made.cells()[::4]] == ["float32", "bfloat16"]
    assert {cell.limit for cell in made.cells()} == {7}


def test_only_methods_that_draw_run_once_per_seed() -> None:
    cells = plan(methods=["baseline", "rand,k=2", "fastv+vtw", "rand,k=2,seed=9"], seeds=[0, 5]).cells()
    assert [(cell.method.split(",vtw")[0], cell.seed) for cell in cells] == [
        ("baseline", 0),
        ("rand,k=2,seed=0", 0),
        ("rand,k=2,seed=5", 5),
        ("fastv+vtw,fastv.k=2,fastv.r=0.5,fastv.seed=0", 0),
        ("fastv+vtw,fastv.k=2,fastv.r=0.5,fastv.seed=5", 5),
        ("rand,k=2,seed=9", 0),
        ("rand,k=2,seed=9", 5),
    ]


def test_how_fast_a_cell_runs_is_no_part_of_it() -> None:
    slow, fast = plan(batch_size=1, device="cpu", workers=1), plan(batch_size=32, workers="cores")
    assert [cell.key for cell in slow.cells()] == [cell.key for cell in fast.cells()]
    assert plan(limit=3).cells()[0].key != plan(limit=4).cells()[0].key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"taks": ["mme"]}, "taks: unknown key; did you mean 'tasks'? Valid: title, models,"),
        (
            {"models": [{**SHAPES, "argz": {}}]},
            "models[0].argz: unknown key; did you mean 'args'? Valid: name, adapter,",
        ),
        ({"models": [{"name": "a", "adapter": "llava_vtw"}]}, "models[0].pretrained: is missing"),
        (
            {"models": [{**SHAPES, "adapter": "lava_vtw"}]},
            "models[0].adapter: unknown adapter 'lava_vtw'; did you mean 'llava_vtw'?",
        ),
        (
            {"models": [{**SHAPES, "args": {"dtyp": "auto"}}]},
            "unknown option 'dtyp' of llava_vtw; did you mean 'dtype'?",
        ),
        ({"models": [{**SHAPES, "args": {"method": "vtw"}}]}, "method does not belong into args: use methods"),
        ({"models": [SHAPES, SHAPES]}, "models: the name 'shapes' stands twice"),
        (
            {"methods": ["baseline", "vtv,k=1"]},
            "methods: entry 1 ('vtv,k=1'): unknown method 'vtv'; did you mean 'vtw'?",
        ),
        ({"methods": [{"method": "vtw", "kk": 1}]}, "unknown parameter 'kk' of method 'vtw'; did you mean 'k'?"),
        ({"methods": [{"method": "vtw", "k": []}]}, "k is an empty list"),
        ({"methods": [{"k": 3}]}, "a mapping needs 'method'"),
        ({"methods": []}, "at least 1 item"),
        (
            {"harness": "lmms"},
            "harness: unknown harness 'lmms'; did you mean 'lmms-eval'? Installed: lmms-eval, vlmevalkit.",
        ),
        ({"limit": 0}, "limit: Input should be greater than or equal to 1, not 0"),
        ({"limit": 3, "tasks": ["shapes_mme"]}, "limit 3 is odd, but shapes_mme scores pairs"),
        ({"workers": "many"}, "workers: "),
        ({"seeds": ["a"]}, "seeds[0]: Input should be a valid integer"),
        # As YAML reads "k: yes", which Python takes for 1.
        ({"methods": [{"method": "vtw", "k": True}]}, "k cannot be True, as which YAML reads yes, no, on and off"),
        ({"methods": [{"method": "fastv+vtw", "vtw.k": [8, True]}]}, "vtw.k cannot be True"),
        ({"methods": [{"method": "fastv", "r": False}]}, "r cannot be False"),
        ({"models": [{**SHAPES, "args": {"batch_size": True}}]}, "batch_size does not belong into args"),
        ({"models": [{**SHAPES, "adapter": "qwen2vl_vtw", "args": {"max_pixels": True}}]}, "max_pixels cannot be True"),
        ({"limit": True}, "limit: Input should be a valid integer, not True"),
        ({"seeds": [0, True]}, "seeds[1]: Input should be a valid integer, not True"),
        ({"batch_size": True}, "batch_size: Input should be a valid integer, not True"),
        ({"workers": True}, "workers: Input should be a valid integer, not True"),
    ],
)
def test_a_wrong_plan_is_refused_by_the_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        plan(**values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not valid YAML"),
        ("- 1", "a plan is a mapping with the keys"),
        ("tasks: [a]\ntasks: [b]\n", "line 1: the key 'tasks' stands twice"),
        ("tasks: [a]\nmethods:\n- {method: vtw, k: 1, k: 2}\n", "line 3: the key 'k' stands twice"),
        ("tasks: [a]\nmethods: ['vtw,k=1,k=2']\n", "parameter 'k' stands twice"),
    ],
)
def test_a_file_that_is_no_plan(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError) as error:
        read_plan(tmp_path / "plan.yaml")
    assert message in str(error.value)
    assert "plan.yaml" in str(error.value)


def test_an_unknown_task_is_refused_and_the_closest_named() -> None:
    with pytest.raises(PlanError, match="unknown task 'shapes_popee'; did you mean 'shapes_pope'"):
        expand_tasks(["shapes_popee"])


def test_groups_and_benchmarks_are_written_out() -> None:
    assert expand_tasks(["shapes", "shapes_vqa"]) == [
        "shapes_mme",
        "shapes_pope",
        "shapes_ai2d",
        "shapes_vqa",
        "shapes_caption",
    ]
    assert expand_tasks(["SQA_Img", "vtw-table3"]) == ["scienceqa_img", "tgif_frameqa", "videomme"]
    assert expand_tasks(["mmmu"]) == ["mmmu_val", "mmmu_test"]  # a group of lmms-eval's own


CELLS = {
    "boards": 19 * 6,
    "boards-budgets": 75 * 6,
    "boards-table2": 8 * 6,
    "boards-table8": 2 * 6 * 6,
    "moves-table3": 6 * 5,
    "shapes": 17 * 5,
    "shapes-blank": 3 * 5,
    "shapes-budgets": 84 * 5,
    "vtw-table1": 3,
    "vtw-table1-blank": 3,
    "vtw-table2": 3 * 5 * 6,
    "vtw-table3": 3 * 2,
    "vtw-table8": 2 * 2 * 6,
    "vtw-ablation-k": 15,
    "vtw-ablation-eta": 7,
    "vtw-ablation-position": 3 * 3,
    "dyvte-table1": 2 * 2 * 5,
    "dyvte-table4": 5 * 4,
}


def test_every_preset_is_known_to_the_tests() -> None:
    assert presets() == sorted(CELLS)


# The methods of boards-budgets are those of shapes-budgets, and take a minute to be set to their budgets.
@pytest.mark.parametrize("name", sorted(CELLS.keys() - {"boards-budgets"}))
def test_a_preset_expands(name: str) -> None:
    cells = resolve(read_plan(find_plan(name))).cells()
    assert len(cells) == CELLS[name]
    for cell in cells:
        parse_method(cell.method)


def test_the_13b_of_table_2_has_its_own_settings() -> None:
    cells = read_plan(find_plan("vtw-table2")).cells()
    assert {cell.method for cell in cells if cell.model == "llava-1.5-13b"} == {
        "baseline",
        "fastv,k=2,r=0.5,seed=0",
        "rand,k=20,seed=0",
        "random_k,low=12,high=28,seed=0",
        "vtw,k=20,position=keep",
    }


@pytest.mark.parametrize("name", EMBEDDED)
def test_prompts_of_embedded_models_have_the_vision_tokens_of_their_config(name: str) -> None:
    geometry, (_, vision) = geometry_of(name), usual_prompt(name)
    config = AutoConfig.from_pretrained(EMBEDDED[name])
    told = {
        "llava": lambda: (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
        "qwen2_vl": lambda: 8 * 8,  # min_pixels=50176, 28 x 28 pixels each
        "internvl": lambda: 5 * config.image_seq_length,  # four tiles and the thumbnail
        "video_llava": lambda: config.video_seq_length,
    }
    assert geometry is not None
    assert (vision or geometry.vision_tokens) == told[config.model_type]()


def test_the_estimates_of_table_2_are_the_printed_tflops() -> None:
    printed = {
        ("llava-1.5-7b", "baseline"): 8.5,
        ("llava-1.5-7b", "vtw"): 4.7,
        ("llava-1.5-13b", "baseline"): 16.5,
        ("llava-1.5-13b", "vtw"): 9.1,
        ("llava-next-7b", "baseline"): 28.7,
        ("llava-next-7b", "vtw"): 14.8,
        ("llava-next-7b", "fastv"): 15.7,
    }
    cells = {(cell.model, cell.method.split(",")[0]): cell for cell in read_plan(find_plan("vtw-table2")).cells()}
    found = {key: estimate(cells[key]) for key in printed}
    assert {key: round(cost.flops / 1e12, 1) for key, cost in found.items() if cost is not None} == printed


def test_an_unknown_preset_names_the_closest() -> None:
    with pytest.raises(PlanError, match="did you mean 'vtw-table2'"):
        find_plan("vtw-tabel2")


def test_only_takes_models_methods_tasks_and_whole_names() -> None:
    cells = resolve(read_plan(find_plan("shapes"))).cells()
    assert len(select(cells, [])) == 85
    assert len(select(cells, ["shapes_mme"])) == 17
    assert len(select(cells, ["vtw,*"])) == 6 * 5
    assert len(select(cells, ["shapes/baseline/*_vqa", "dyvte"])) == 1 + 5
    with pytest.raises(PlanError, match="--only shapes_mm: no cell matches; did you mean 'shapes_mme'"):
        select(cells, ["shapes_mm"])


def test_a_plan_is_written_as_it_is_read(tmp_path: Path) -> None:
    for name in presets():
        made = read_plan(find_plan(name))
        (tmp_path / "plan.yaml").write_text(made.text())
        again = read_plan(tmp_path / "plan.yaml")
        assert again == made
        assert [cell.key for cell in again.cells()] == [cell.key for cell in made.cells()]


def test_a_dry_run_prints_cells_and_does_nothing(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    model = {**SHAPES, "name": "far", "pretrained": "acme/unheard-of"}
    file.write_text(
        yaml.safe_dump({"models": [SHAPES, model], "methods": ["vtw,k=5", "dyvte"], "tasks": ["shapes_pope"]})
    )
    done = CliRunner().invoke(app, ["sweep", str(file), "--dry-run", "--limit", "6", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert "far (2 cells): no checkpoint at pretrained='acme/unheard-of'" in done.output
    rows = [line.split() for line in done.output.splitlines()[2:6]]
    assert [row[3:] for row in rows] == [
        ["1", "0.244", "G", "64.0%"],
        ["1", "unknown"],
        ["1", "unknown"],
        ["1", "unknown"],
    ]
    assert "4 cells on 1 tasks (lmms-eval, the first 6 documents each)" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a plan or a preset"),
        (["shapes"], "Give a folder with -o"),
        (["shapes", "-o", "x", "--address", "auto"], "belong to --executor ray"),
        (["shape"], "did you mean 'shapes'"),
        (["--status", "/nowhere"], "/nowhere holds no sweep"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["sweep", *words])
    assert done.exit_code == (1 if "--status" in words else 2)
    assert message in done.output
