"""The kernel's list shapes: order of iteration, the undercount of an append, how a hole is filled."""

from __future__ import annotations

import random

import pytest
from kvm_mmu.reference.common.kernels import kernel
from kvm_mmu.reference.common.pte_list import (
    PteList,
    Sptep,
    pte_list_add,
    pte_list_entries,
    pte_list_first,
    pte_list_is_empty,
    pte_list_remove,
)
from kvm_mmu.reference.shadow.page import kvm_page_table_hashfn

RULES = kernel("v5.2")


def entry(number: int) -> Sptep:
    return (number, 0)


def list_of(count: int) -> tuple[PteList, list[int]]:
    head = PteList()
    return head, [pte_list_add(RULES, head, entry(number)) for number in range(count)]


def numbers(head: PteList) -> list[int]:
    return [page for page, _ in pte_list_entries(head)]


def test_add_counts_three_too_few_when_it_appends_a_descriptor() -> None:
    _, returned = list_of(11)
    assert returned == [0, 1, 2, 0, 4, 5, 3, 7, 8, 6, 10]


def test_removing_the_first_of_three_gives_the_order_a_c_b() -> None:
    head, _ = list_of(3)
    order = []
    while (first := pte_list_first(head)) is not None:
        order.append(first[0])
        assert pte_list_remove(RULES, head, first)
    assert order == [0, 2, 1]
    assert pte_list_is_empty(head)


def test_a_descriptor_with_one_entry_stays_a_descriptor() -> None:
    head, _ = list_of(2)
    assert pte_list_remove(RULES, head, entry(1))
    assert head.direct is None
    assert numbers(head) == [0]
    assert pte_list_add(RULES, head, entry(7)) == 1
    assert numbers(head) == [0, 7]


def test_the_hole_is_filled_from_the_same_descriptor_and_found_by_the_next_add() -> None:
    head, _ = list_of(7)
    assert pte_list_remove(RULES, head, entry(0))
    assert numbers(head) == [2, 1, 3, 4, 5, 6]
    assert pte_list_add(RULES, head, entry(9)) == 2
    assert numbers(head) == [2, 1, 9, 3, 4, 5, 6]


def test_an_emptied_descriptor_leaves_the_chain() -> None:
    head, _ = list_of(7)
    for number in (3, 4, 5):
        assert pte_list_remove(RULES, head, entry(number))
    assert numbers(head) == [0, 1, 2, 6]
    for number in (0, 1, 2):
        assert pte_list_remove(RULES, head, entry(number))
    assert numbers(head) == [6]
    assert not pte_list_remove(RULES, head, entry(0))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_in_the_list_is_what_was_put_there(seed: int) -> None:
    choose = random.Random(seed)
    head, inside = PteList(), set()
    for step in range(300):
        if inside and choose.random() < 0.45:
            gone = choose.choice(sorted(inside))
            inside.remove(gone)
            assert pte_list_remove(RULES, head, gone)
        else:
            inside.add(entry(step))
            assert 0 <= pte_list_add(RULES, head, entry(step)) < len(inside)
        assert sorted(pte_list_entries(head)) == sorted(inside)
        assert all(1 <= len(desc) <= 3 for desc in head.chain)
        assert head.direct is None or not head.chain


@pytest.mark.parametrize(
    ("gfn", "bucket"),
    [
        (0, 0),
        (1, 1564),
        (2, 3129),
        (3, 597),
        (0x100, 3208),
        (0x101, 676),
        (0x1000, 2182),
        (0x12345, 1210),
        (0xE0000, 1405),
        (0xFFFFF, 41),
    ],
)
def test_hash_of_a_gfn(gfn: int, bucket: int) -> None:
    assert kvm_page_table_hashfn(gfn) == bucket


def test_longer_descriptors_are_counted_whole() -> None:
    head = PteList()
    assert [pte_list_add(kernel("v6.1"), head, entry(number)) for number in range(30)] == list(range(30))
    assert [len(desc) for desc in head.chain] == [14, 14, 2]


def test_a_newer_descriptor_stands_in_front_and_fills_every_hole() -> None:
    rules = kernel("v6.12")
    head = PteList()
    assert [pte_list_add(rules, head, entry(number)) for number in range(16)] == list(range(16))
    assert numbers(head) == [14, 15, *range(14)]
    assert pte_list_remove(rules, head, entry(3))
    assert numbers(head) == [14, 0, 1, 2, 15, *range(4, 14)]
    assert pte_list_remove(rules, head, entry(14))
    assert [len(desc) for desc in head.chain] == [14]
