"""Ranges of pages behave as the set of their pages does, and stay ascending, disjoint and not empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kvm_mmu.recorders.page_ranges import PageRanges

CHANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12)), max_size=30)


@given(CHANGES)
def test_as_a_set(changes: list[tuple[bool, int, int]]):
    ranges, pages = PageRanges(), set[int]()
    for is_added, first, count in changes:
        (ranges.add if is_added else ranges.remove)(first, first + count)
        (pages.update if is_added else pages.difference_update)(range(first, first + count))
        assert [page for page in range(60) if page in ranges] == sorted(pages)
        edges = [edge for pair in zip(ranges._firsts, ranges._ends, strict=True) for edge in pair]
        assert edges == sorted(set(edges))
