"""Boards: the split, sampling, rendering."""

import numpy as np
import pytest

from vtw_eval.shapes.boards import data
from vtw_eval.shapes.boards.making import recipe
from vtw_eval.shapes.boards.scenes import (
    CELL,
    MARK_SIZE,
    MARKED,
    MARKS,
    SIZES,
    Item,
    Placed,
    Scene,
    is_test_scene,
    paint,
    place,
    render,
    sample_scene,
)
from vtw_eval.shapes.scenes import COLORS, SHAPES


def test_rendering_is_a_function_of_scene_and_generator():
    scene = sample_scene(np.random.default_rng(1))
    first, second, other = (render(scene, np.random.default_rng(seed)) for seed in (2, 2, 3))
    assert first.dtype == np.uint8
    assert first.shape == (128, 128, 3)
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_an_object_is_drawn_in_its_cell_and_colour(color, shape, size):
    item = Item(6, size, color, shape)
    assert (item.row, item.column) == (1, 2)
    image = render(Scene((item,)), np.random.default_rng(0)).astype(float)
    colourful = image.max(axis=-1) - image.min(axis=-1) > 75  # ground and clutter are grey
    rows, columns = np.nonzero(colourful)
    assert CELL <= rows.min() <= rows.max() < 2 * CELL
    assert 2 * CELL <= columns.min() <= columns.max() < 3 * CELL
    drawn = image[colourful].mean(axis=0)
    assert min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - drawn).sum()) == color
    assert (rows.max() - rows.min() + 1 > 18) == (size == "large")


@pytest.mark.parametrize("shape", SHAPES)
def test_digits_are_dark_differ_and_lie_within_their_object(shape):
    def ink(mark):
        placed = Placed(Item(5, "large", "yellow", shape, mark), 48, 48, np.mean(SIZES["large"]))
        image, ground = (paint(objects, np.random.default_rng(3))[34:63, 34:63] for objects in ([placed], []))
        return (image.max(axis=-1) < 50) & (ground.min(axis=-1) > 50)

    pictures = {mark: ink(mark) for mark in MARKS}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(MARKS)
    for picture in pictures.values():
        rows, columns = np.nonzero(picture)
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == MARK_SIZE
    assert not ink("").any()


def test_most_large_objects_carry_a_digit_and_no_small_one():
    rng = np.random.default_rng(7)
    items = [item for _ in range(300) for item in sample_scene(rng).items]
    assert not any(item.mark for item in items if item.size == "small")
    assert np.mean([item.mark in MARKS for item in items if item.size == "large"]) == pytest.approx(MARKED, abs=0.06)


def test_the_split_depends_on_content_only_and_holds_back_an_eighth():
    scene = sample_scene(np.random.default_rng(0), 5, 5)
    assert is_test_scene(Scene(scene.items[::-1])) == is_test_scene(scene)
    singles = [
        Scene((Item(c, z, k, s, m),)) for c in range(16) for z in SIZES for k in COLORS for s in SHAPES for m in MARKS
    ]
    assert 0.11 < np.mean([is_test_scene(single) for single in singles]) < 0.14


@pytest.mark.parametrize("test", [False, True])
def test_sampling_stays_on_its_side_of_the_split(test):
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, test=test) for _ in range(900)]
    assert {is_test_scene(scene) for scene in scenes} == {test}
    assert np.bincount([len(scene.items) for scene in scenes], minlength=10)[1:].min() > 60
    for scene in scenes:
        cells = [item.cell for item in scene.items]
        assert cells == sorted(set(cells))


def test_objects_stay_within_their_cells():
    rng = np.random.default_rng(6)
    for _ in range(100):
        for placed in place(sample_scene(rng), rng):
            assert placed.half <= placed.x - CELL * placed.item.column <= CELL - placed.half
            assert placed.half <= placed.y - CELL * placed.item.row <= CELL - placed.half


def test_training_never_sees_a_test_scene(monkeypatch):
    seen = []
    original = recipe.place
    monkeypatch.setattr(recipe, "place", lambda scene, rng: seen.append(scene) or original(scene, rng))
    small = recipe.Recipe(joint_scenes=200, joint_questions=1)
    recipe.joint_batch(small, 0)
    recipe.vision_batch(small, 0)
    held_out = {sample.scene for type in ("exist", "caption") for sample in data.held_out(type, 100)}
    assert not held_out & set(seen)
    assert not any(is_test_scene(scene) for scene in seen)
    assert all(is_test_scene(scene) for scene in held_out)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (1, 17)])
def test_impossible_numbers_of_items_are_refused(low, high):
    with pytest.raises(ValueError, match="1 <= low <= high <= 16"):
        sample_scene(np.random.default_rng(0), low, high)
