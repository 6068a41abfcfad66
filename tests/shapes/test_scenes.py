"""Scenes: the split, sampling, rendering."""

import numpy as np
import pytest

from vtw_eval.shapes import data
from vtw_eval.shapes.making.recipe import Recipe, joint_batch, vision_batch
from vtw_eval.shapes.scenes import (
    CELL,
    COLORS,
    GRID,
    SHAPES,
    Item,
    Scene,
    is_test_scene,
    render,
    sample_scene,
)


def test_rendering_is_a_function_of_scene_and_generator():
    scene = sample_scene(np.random.default_rng(1))
    first, second, other = (render(scene, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert first.dtype == np.uint8
    assert first.shape == (64, 64, 3)
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_is_drawn_in_its_cell_and_colour(color, shape):
    image = render(Scene((Item(6, color, shape),)), np.random.default_rng(0)).astype(float)
    row, column = 6 // GRID, 6 % GRID
    ground = np.median(image, axis=(0, 1))
    distance = abs(image - ground).max(axis=-1)
    inside = np.zeros((64, 64), bool)
    inside[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = True
    assert distance[~inside].max() < 45  # noise only
    drawn = image[inside & (distance > 60)].mean(axis=0)
    nearest = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - drawn).sum())
    assert nearest == color


def test_full_shapes_cover_more_than_thin_ones():
    areas = {}
    for shape in SHAPES:
        images = [render(Scene((Item(0, "red", shape),)), np.random.default_rng(i)).astype(int) for i in range(20)]
        areas[shape] = np.mean([(image[..., 0] - image[..., 1] > 80).sum() for image in images])
    assert max(areas["cross"], areas["triangle"]) < 0.9 * min(areas["circle"], areas["square"])


def test_the_split_depends_on_content_only_and_holds_back_an_eighth():
    scene = sample_scene(np.random.default_rng(0), 5, 5)
    assert is_test_scene(Scene(scene.items[::-1])) == is_test_scene(scene)
    singles = [Scene((Item(c, k, s),)) for c in range(16) for k in COLORS for s in SHAPES]
    assert len(singles) == 384
    share = np.mean([is_test_scene(single) for single in singles])
    assert 0.08 < share < 0.18


@pytest.mark.parametrize("test", [False, True])
def test_sampling_stays_on_its_side_of_the_split(test):
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, 1, 5, test=test) for _ in range(500)]
    assert {is_test_scene(scene) for scene in scenes} == {test}
    counts = np.bincount([len(scene.items) for scene in scenes], minlength=6)
    assert counts[1:].min() > 60  # the split keeps the number of items uniform
    for scene in scenes:
        cells = [item.cell for item in scene.items]
        assert cells == sorted(set(cells))


def test_training_never_sees_a_test_scene(monkeypatch):
    seen = []
    original = render
    monkeypatch.setattr(
        "vtw_eval.shapes.making.recipe.render", lambda scene, rng: seen.append(scene) or original(scene, rng)
    )
    recipe = Recipe(joint_scenes=64, joint_questions=1)
    for step in (0, 150, 400, 2000):  # one-object scenes first
        joint_batch(recipe, step)
    vision_batch(recipe, 0)
    held_out = {sample.scene for type in ("exist", "caption") for sample in data.held_out(type, 200)}
    assert any(len(scene.items) == 1 for scene in seen)
    assert any(len(scene.items) == 1 for scene in held_out)
    assert not held_out & set(seen)
    assert not any(is_test_scene(scene) for scene in seen)
    assert all(is_test_scene(scene) for scene in held_out)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (1, 17)])
def test_impossible_numbers_of_items_are_refused(low, high):
    with pytest.raises(ValueError, match="1 <= low <= high <= 16"):
        sample_scene(np.random.default_rng(0), low, high)
