"""Checkpoints: few, and the closer the younger."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.checkpoints import (
    CHECKPOINT_SECONDS,
    CHECKPOINTS_MAX,
    DISTANCE_SHARE,
    Checkpoint,
    Checkpoints,
    Saving,
    surplus,
)

pauses = st.lists(st.floats(CHECKPOINT_SECONDS, 5_000), min_size=1, max_size=300)


def checkpoint(number):
    return Checkpoint(f"{number}-0", number, b"")


def stored(moments):
    """Stores a checkpoint at each of some moments; returns the moments of those that are left, the newest first."""
    checkpoints, left = Checkpoints(), {}
    for number, moment in enumerate(moments):
        saving = checkpoints.save(checkpoint(number), moment)
        checkpoints.stored(saving, moment)
        left[saving.checkpoint.last_id] = moment
        for one in saving.dropped:
            del left[one]
    return [*reversed(left.values())]


@given(pauses)
def test_distances_are_a_share_of_the_age_or_one_pause(pauses):
    moments = [sum(pauses[: place + 1]) for place in range(len(pauses))]
    left, now = stored(moments), moments[-1]
    assert left[0] == now
    assert left[-1] == moments[0], "the oldest stays"
    for younger, older in pairwise(left):
        is_next = moments.index(younger) == moments.index(older) + 1
        assert is_next or younger - older <= DISTANCE_SHARE * (now - younger)


def test_a_year_needs_few_checkpoints():
    left, now = [0.0], 0.0
    while now < 365 * 86_400:
        now += max(CHECKPOINT_SECONDS, now / 1000)
        ages = [0.0, *(now - moment for moment in left)]
        dropped = surplus(ages)
        left = [moment for place, moment in enumerate([now, *left]) if place not in dropped]
    assert len(left) <= 134
    assert left[-1] == 0.0


def test_the_number_is_bounded():
    ages = [2.0**number for number in range(CHECKPOINTS_MAX + 10)]
    assert surplus(ages) == [*range(CHECKPOINTS_MAX, CHECKPOINTS_MAX + 10)]


def test_the_next_one_is_due_after_a_time_and_a_repeated_id_is_never_deleted():
    checkpoints = Checkpoints([("1-0", -100.0), ("2-0", -50.0)])
    assert checkpoints.is_due(0.0)
    saving = checkpoints.save(checkpoint(1), 0.0)
    assert saving == Saving(checkpoint(1), [])
    checkpoints.stored(saving, 0.0)
    assert not checkpoints.is_due(CHECKPOINT_SECONDS - 1)
    assert checkpoints.is_due(CHECKPOINT_SECONDS)
