"""The heap of active policies."""

from hypothesis import given
from hypothesis import strategies as st

from fundsvc.mutual.core.finish_heap import FinishHeap


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 30), st.booleans()), max_size=200))
def test_the_first_is_the_smallest_whatever_was_added_and_removed(steps):
    heap, finishes = FinishHeap(), {}
    for place, finish, remove_first in steps:
        if remove_first and finishes:
            heap.remove(heap.first)
            del finishes[min(finishes, key=lambda one: (finishes[one], one))]
        elif place in finishes:
            heap.remove(place)
            del finishes[place]
        else:
            heap.add(place, finish * 10**30, place)
            finishes[place] = finish
        assert len(heap) == len(finishes)
        if finishes:
            first = min(finishes, key=lambda one: (finishes[one], one))
            assert (heap.first, heap.first_finish) == (first, finishes[first] * 10**30)
