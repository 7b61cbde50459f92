"""Zap plans as values: what each named plan visits and zaps, the end `stale_next`, every plan of the space."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from kvm_mmu.reference import Engine, ScenarioError
from kvm_mmu.reference.common.zap_plan import NAMED_PLANS, parse_plan

from structure import assert_structure  # isort: skip

PAGE = 0x1000
TABLE = 0x200000  # what one level-1 table translates
SLOT = {"op": "set_memslot", "id": 0, "gpa": 0, "size": 64 * TABLE, "hva": 0x200000000}
MMIO_BASE = 0xC0000000


def vm(kernel: str = "v5.2", tables: int = 6, mmio: int = 3, **plans: Any) -> Engine:
    """A VM with some level-1 tables that map memory and then some that cache MMIO."""
    engine = Engine(kernel, {"family": "npt"}, plans)
    engine.apply(SLOT)
    engine.apply({"op": "set_max_raw", "n": 10000})
    for number in range(tables):
        engine.apply({"op": "access", "gpa": number * TABLE, "kind": "w"})
    for number in range(mmio):
        engine.apply({"op": "access", "gpa": MMIO_BASE + number * TABLE, "kind": "r"})
    return engine


def zap(engine: Engine, plan: Any, **fields: Any) -> dict[str, Any]:
    line = engine.apply({"op": "zap", "plan": plan, **fields})
    return {"ret": line["ret"], **line["out"], "line": line}


def zapped(line: dict[str, Any]) -> list[int]:
    return [event[1] for event in line["events"] if event[0] == "prepare_zap"]


def test_the_seed_restarts_after_every_page_and_the_merged_walk_never() -> None:
    engine = vm(tables=6, mmio=3)
    pages, flagged = engine.kvm.n_used_mmu_pages, 3
    seed, merged = engine.clone(), engine.clone()
    by_seed, by_merged = zap(seed, "seed"), zap(merged, "merged")
    assert by_seed["ret"] == by_merged["ret"] == flagged
    assert zapped(by_seed["line"]) == zapped(by_merged["line"])
    assert by_seed["restarts"] == flagged
    assert by_merged["restarts"] == 0
    assert by_merged["line"]["ctr"]["walk_visited"] == pages
    assert by_seed["line"]["ctr"]["walk_starts"] == flagged + 1
    # The flagged tables are newest but for nothing: each pass finds the next one at once, the last sees the rest.
    assert by_seed["line"]["ctr"]["walk_visited"] > pages - flagged
    assert seed.digest() == merged.digest()


def test_the_index_visits_only_flagged_pages_and_ends_as_merged() -> None:
    engine = vm(tables=10, mmio=4)
    merged = engine.clone()
    by_index, by_merged = zap(engine, "indexed"), zap(merged, "merged")
    assert by_index["line"]["ctr"]["walk_visited"] == 4
    assert set(zapped(by_index["line"])) == set(zapped(by_merged["line"]))
    assert engine.digest() == merged.digest()
    assert by_index["line"]["ctr"]["cond_resched"] == 4


def test_the_index_also_takes_what_a_lock_break_marked() -> None:
    """As the merged walk does by restarting: an entry marked in a break still has the old generation."""
    engine = vm(tables=2, mmio=3)
    again = [{"op": "access", "gpa": MMIO_BASE + 9 * TABLE, "kind": "r"}]
    engine.apply({"op": "lock_break", "cond": 2, "do": [again]})
    merged = engine.clone()
    by_index, by_merged = zap(engine, "indexed"), zap(merged, "merged")
    assert by_index["ret"] == by_merged["ret"] == 4
    assert engine.digest() == merged.digest()


def test_the_fast_invalidate_zaps_all_and_offers_the_lock_after_ten() -> None:
    engine = vm("v5.0", tables=20)
    pages = engine.kvm.n_used_mmu_pages
    run = zap(engine, "v5.0-fast")
    root = engine.kvm.vcpus[0].roots[0]
    assert run["ret"] == pages - 1  # the root is in use
    assert [event[0] for event in run["line"]["events"][:2]] == ["invalidate_zap_all", "reload_mmus"]
    # One offer before each prepare from the eleventh zapped page on: none drops the lock, so the batch stays full.
    assert run["line"]["ctr"]["cond_resched"] == pages - 1 - 10
    assert engine.kvm.pages[root or 0].root_count == 1
    assert_structure(engine.kvm)


def test_only_an_offer_that_drops_the_lock_starts_the_batch_again() -> None:
    engine = vm("v5.0", tables=40)
    engine.apply({"op": "lock_break", "cond": 2, "do": []})
    run = zap(engine, "v5.0-fast")
    # Ten pages, two offers (the second drops), one page between them; and so on.
    pages = run["ret"]
    assert run["line"]["ctr"]["lock_breaks"] == pages // 11
    assert run["line"]["ctr"]["cond_resched"] in (2 * (pages // 11), 2 * (pages // 11) + 1)


def test_the_smallest_stale_next() -> None:
    """Two flagged pages; while the first one's lock break runs, the second is zapped by somebody else."""
    engine = vm(tables=0, mmio=2)
    newest_first = [page for page in engine.state()["active"] if page["mmio_cached"]]
    assert len(newest_first) == 2
    engine.apply({"op": "lock_break", "cond": 1, "do": [[{"op": "zap", "plan": "seed"}]]})
    plan = {"walk": "head", "only": "mmio_cached", "offer": "each_page"}
    run = zap(engine, plan)
    assert run["outcome"] == "stale_next"
    assert run["page"] == newest_first[1]["id"]
    assert run["step"] == 2  # the second visit found it gone
    assert run["ret"] == 1
    assert run["line"]["nested"][0]["ret"] == 1
    assert_structure(engine.kvm)


def test_a_next_that_only_moved_is_followed_to_its_new_place() -> None:
    """The root is in use: zapped in a break it stays on the list, at the head, and is zapped there again."""
    engine = vm(tables=1, mmio=0)
    root = engine.kvm.vcpus[0].roots[0]
    pages = len(engine.state()["active"])
    engine.apply({"op": "lock_break", "cond": pages - 1, "do": [[{"op": "change_mmu_pages", "n": 0}]]})
    run = zap(engine, {"walk": "head", "only": "all", "offer": "each_page"})
    assert run["outcome"] == "done"
    assert zapped(run["line"])[-2:] == [root, root]
    assert_structure(engine.kvm)


def test_a_plan_that_restarts_on_a_drop_is_never_stale() -> None:
    engine = vm(tables=3, mmio=2)
    engine.apply({"op": "lock_break", "cond": 1, "do": [[{"op": "zap", "plan": "seed"}]]})
    run = zap(engine, "merged")
    assert run["outcome"] == "done"
    assert run["restarts"] >= 1


def test_before_drop_commit_frees_before_the_lock_goes() -> None:
    engine = vm(tables=0, mmio=3)
    engine.apply({"op": "lock_break", "cond": 1})
    keep, commit = engine.clone(), engine.clone()
    kept = zap(keep, {"only": "mmio_cached", "offer": "each_page"})["line"]["events"]
    committed = zap(commit, {"only": "mmio_cached", "offer": "each_page", "before_drop": "commit"})["line"][
        "events"
    ]
    assert [event[0] for event in kept].count("flush") == 1
    assert [event[0] for event in committed].count("flush") == 3
    assert [e[0] for e in committed[:3]] == ["prepare_zap", "flush", "lock_break"]
    assert keep.digest() == commit.digest()


def test_when_wanted_polls_once_for_each_page_to_be_zapped() -> None:
    engine = vm(tables=4, mmio=2)
    run = zap(engine, {"only": "mmio_cached", "offer": "when_wanted"})
    assert run["line"]["ctr"]["need_resched"] == 2
    assert "cond_resched" not in run["line"]["ctr"]


def test_a_plan_for_a_slot_or_a_range_takes_only_its_pages() -> None:
    engine = vm(tables=6, mmio=0)
    by_range = engine.clone()
    levels = {page["id"]: page["level"] for page in engine.state()["active"]}
    line = zap(by_range, {"only": "gfn_range"}, start=2 * 512, end=4 * 512)["line"]
    assert [levels[page] for page in zapped(line)] == [1, 1]
    by_slot = zap(engine.clone(), {"only": "slot"}, id=0)
    assert by_slot["ret"] == len(levels) - 1
    assert engine.apply({"op": "zap", "plan": "v5.2-slot", "id": 7})["ret"] == -2


def test_reload_after_comes_after_the_flush() -> None:
    events = [event[0] for event in zap(vm(), "v3.10-mmio")["line"]["events"]]
    assert events[-2:] == ["flush", "reload_mmus"]


def test_configured_plans_replace_the_kernels_own() -> None:
    engine = vm("v5.0", wrap="indexed")
    engine.apply({"op": "set_generation", "as": 0, "gen": 0})
    line = engine.apply({"op": "invalidate_mmio", "as": 0})
    assert len(zapped(line)) == 3
    assert not engine.kvm.mmu_valid_gen
    assert vm("v5.2").kvm.filters_obsolete is False
    assert vm("v5.2", teardown="v5.3-fast").kvm.filters_obsolete is True


@pytest.mark.parametrize("kernel", ["v5.0", "v5.0-seed", "v5.2"])
def test_teardown_leaves_no_page(kernel: str) -> None:
    engine = vm(kernel)
    assert engine.apply({"op": "teardown"})["ret"] == 0
    assert engine.kvm.pages == {}
    assert engine.kvm.page_hash == {}
    assert all(not heads for heads in engine.kvm.memslots[0].memslots[0].rmap.values())
    work = engine.work()
    assert work["pages_freed"] == work["get_page_created"]


def plan_space() -> list[dict[str, Any]]:
    """Every combination of walk, filter, skip, restart, offer and commit rule."""
    restarts = [
        c for n in range(4) for c in itertools.combinations(("on_nonzero", "on_unstable", "on_lock_drop"), n)
    ]
    return [
        {
            "walk": walk,
            "only": only,
            "stop": "first_not_obsolete" if only == "obsolete" and walk == "tail" else "none",
            "skip": skip,
            "restart": list(restart),
            "offer": offer,
            "before_drop": before,
            "bump_valid_gen": only == "obsolete",
            "reload_roots": only == "obsolete",
        }
        for walk, only, skip, restart, offer, before in itertools.product(
            ("head", "tail", "index"),
            ("all", "mmio_cached", "obsolete"),
            ("none", "invalid", "invalid_in_use"),
            restarts,
            ("never", "each_page", "when_wanted", "batch:3"),
            ("keep", "commit"),
        )
        # The index lists MMIO-caching pages only.
        if not (walk == "index" and only != "mmio_cached")
        # An unconditional restart over pages it never stops zapping has no end; no kernel had that either.
        if not (skip == "none" and only == "all" and offer != "never" and "on_lock_drop" in restart)
    ]


@pytest.mark.parametrize("kernel", ["v5.0", "v5.2"])
def test_every_plan_of_the_space_leaves_a_sound_structure(kernel: str) -> None:
    base = vm(kernel, tables=5, mmio=3)
    again = [
        [{"op": "access", "gpa": MMIO_BASE, "kind": "r"}],
        [{"op": "zap", "plan": "merged"}],
        [{"op": "unload"}],
    ]
    base.apply({"op": "lock_break", "cond": 2, "need": 3, "do": again})
    for plan in plan_space():
        engine = base.clone()
        run = zap(engine, plan)
        assert_structure(engine.kvm)
        # S8: what caches MMIO has no children that a zap could take along.
        if (
            plan["only"] == "mmio_cached"
            and "on_lock_drop" not in plan["restart"]
            and plan["walk"] != "index"
        ):
            assert run["restarts"] == (run["ret"] if "on_nonzero" in plan["restart"] else 0)


def test_what_is_no_plan_is_refused_with_a_sentence() -> None:
    for bad in (
        "fastest",
        7,
        {"walk": "sideways"},
        {"only": "young"},
        {"offer": "batch:0"},
        {"offer": []},
        {"restart": "on_monday"},
        {"restart": [["on_nonzero"]]},
        {"bump_valid_gen": "perhaps"},
        {"reload_roots": {}},
        {"speed": 3},
        "walk=head,only",
    ):
        with pytest.raises(ScenarioError):
            parse_plan(bad)
    for plans in ({"wrap": {"only": "slot"}}, {"birthday": "seed"}, {"teardown": {"only": "gfn_range"}}):
        with pytest.raises(ScenarioError):
            Engine("v5.0", {}, plans)
    with pytest.raises(ScenarioError, match="id"):
        vm().apply({"op": "zap", "plan": "v5.2-slot"})


def test_a_plan_reads_the_same_from_its_name_its_text_and_its_fields() -> None:
    text = "walk=head,only=mmio_cached,restart=on_nonzero,reload_roots=after"
    fields = {"only": "mmio_cached", "restart": ["on_nonzero"], "reload_roots": "after", "name": "mine"}
    assert parse_plan(text) == parse_plan(fields) == NAMED_PLANS["v3.10-mmio"]
    assert parse_plan({"offer": ["batch", 10]}).batch == 10
