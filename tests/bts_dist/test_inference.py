"""A way of predicting in words, and several models' ways in one sentence."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist.inference import Inference, Member, describe_all

MEMBER = Member("x", "0")
CHOSEN = {"rows": []}

ways = st.builds(
    Inference,
    st.sampled_from([0.3, 0.5, 0.7]),
    st.booleans(),
    st.sampled_from(["all", "largest", 30]),
    st.lists(st.just(MEMBER), max_size=2).map(tuple),
    st.sampled_from([None, CHOSEN]),
)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([Inference(0.5, True)] * 2, "threshold 0.5, mirrored, as validated"),
        (
            [Inference(0.4, True, "all", (), CHOSEN), Inference(0.6, False, "all", (MEMBER,), CHOSEN)],
            "thresholds 0.4 – 0.6, mirrored in 1 of 2, mean of 1 to 2 checkpoints",
        ),
        (
            [
                Inference(0.5, False, "largest", (MEMBER,), CHOSEN),
                Inference(0.5, False, 30, (MEMBER,), CHOSEN),
                Inference(0.5, False, 30, (MEMBER,)),
            ],
            "threshold 0.5, not mirrored, mean of 2 checkpoints, largest component only in 1 of 3, "
            "components of 30 voxels or more in 2 of 3, as validated in 1 of 3",
        ),
    ],
)
def test_several_ways_in_one_sentence(found: list[Inference], words: str) -> None:
    assert describe_all(found) == words


@given(ways, st.integers(1, 4))
def test_models_that_predict_alike_are_told_as_one(way: Inference, number: int) -> None:
    assert describe_all([way] * number) == way.describe()


@given(st.lists(ways, min_size=1, max_size=5))
def test_what_one_of_them_alone_does_is_no_word_of_all(found: list[Inference]) -> None:
    told = describe_all(found)
    assert (" in " not in told) == (len({(way.mirror, way.keep, way.chosen is None) for way in found}) == 1)
    assert describe_all([replace(way) for way in reversed(found)]).split(",")[0] == told.split(",")[0]
