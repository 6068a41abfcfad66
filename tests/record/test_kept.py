"""Which vision tokens entered which layers: written in few characters, read again as it was, refused where it lies."""

from __future__ import annotations

import base64
import random

import pytest

from vtw_eval.record.kept import KeptSet, changes_of, pack, unpack


def nested(draw: random.Random, vision: int, layers: int) -> list[frozenset[int]]:
    """Sets of tokens by layer, each a part of the one before; some stay the same, some are empty."""
    left = frozenset(range(vision))
    found = []
    for _ in range(layers):
        if draw.random() < 0.4:
            left = frozenset(draw.sample(sorted(left), draw.randint(0, len(left))))
        found.append(left)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_sets_are_read_as_they_were_written(seed: int) -> None:
    draw = random.Random(seed)
    vision, layers = draw.choice([0, 1, 7, 64, 576]), draw.choice([1, 2, 9, 32])
    sets = nested(draw, vision, layers)
    per_layer = [len(one) for one in sets]
    # By counting, not by the order of the tokens: different non-empty sets that a token is in, but for the whole one.
    different = {one for one in sets if one and len(one) < vision}
    written = pack([sum(token in one for one in different) for token in range(vision)], len(different))
    found = unpack(written, vision, per_layer)
    assert found is not None
    assert [(one.first, one.last) for one in found] == spans(sets)
    for one in found:
        for layer in range(one.first, one.last + 1):
            assert {token for token, kept in enumerate(one.kept) if kept} == sets[layer]
    assert (written == "") == (not different)


def spans(sets: list[frozenset[int]]) -> list[tuple[int, int]]:
    starts = [i for i in range(len(sets)) if i == 0 or sets[i] != sets[i - 1]]
    return list(zip(starts, [i - 1 for i in starts[1:]] + [len(sets) - 1], strict=True))


def test_the_format_is_what_the_documentation_says() -> None:
    # Layer 1: the first three of four tokens; layer 2: the second; layer 3: none. 2 bits each: 01 10 01 00.
    assert changes_of(4, [4, 3, 1, 0]) == [1, 2, 3]
    assert pack([1, 2, 1, 0], 2) == base64.b64encode(bytes([0b01100100])).decode()
    assert unpack("ZA==", 4, [4, 3, 1, 0]) == [
        KeptSet(0, 0, (True, True, True, True)),
        KeptSet(1, 1, (True, True, True, False)),
        KeptSet(2, 2, (False, True, False, False)),
        KeptSet(3, 3, (False, False, False, False)),
    ]


@pytest.mark.parametrize(("changes", "length"), [(0, 0), (1, 96), (3, 192), (31, 480)])
def test_it_is_short(changes: int, length: int) -> None:
    assert len(pack([changes // 2] * 576, changes)) == length


def test_what_was_not_written_down_is_not_known() -> None:
    assert unpack("", 4, [4, 2]) is None
    assert unpack("", 4, [4, 0]) == [KeptSet(0, 0, (True,) * 4), KeptSet(1, 1, (False,) * 4)]


@pytest.mark.parametrize(
    ("text", "per_layer", "said"),
    [
        ("no", [4, 2], "no base64"),
        ("ZGQ=", [4, 3, 1, 0], "2 bytes tell of 4 vision tokens with 2 bits each"),
        ("ZA==", [4, 2, 1, 0], "3 vision tokens are told to enter layer 1, and 2 did"),
        ("ZA==", [4, 4], "1 bytes tell of 4 vision tokens with 0 bits each"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, per_layer: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack(text, 4, per_layer)
    with pytest.raises(ValueError, match="outlived 0 to 3 of 2"):
        pack([0, 3], 2)
