"""The planted faults and the one test that kills each: what `make mutants` runs.

Core mutants are compiled in by the cargo feature `mutants` (src/mmu/words/mutants.rs holds the names), policy mutants
replace a method of a generation policy (broken_policies.py), both one at a time in a process of their own. The
reference's mutants live beside its vectors, in tests/reference/test_mutants.py.
"""

from __future__ import annotations

CORE_VECTOR = "tests/vectors/test_vectors.py::test_core[{}.jsonl.xz]"


FIXES = "tests/differential/test_shadow_fixes.py::"
KILLS = "tests/mutants/test_kills.py::"
SCENARIO = "tests/differential/test_scenarios.py::test_the_recorded_results_are_equal[core-{}]"


def vector(name: str) -> str:
    return CORE_VECTOR.format(name)


def scenario(name: str) -> str:
    return SCENARIO.format(name)


def judged(name: str) -> str:
    return f"tests/mutants/test_judged.py::test_the_judge_is_silent[{name}]"


#: Core mutant -> the test that kills it. The comment gives the verb where the issue asks for one mutant a verb.
CORE: dict[str, str] = {
    "restart-on-children-only": vector("seed/zap_all_no_vcpu_root.ept_ad"),
    "never-restart": vector("seed/mmio_cached_flag_stays.npt"),
    "flag-on-parent-table": vector("seed/mmio_gfn0.ept_ad"),
    "flag-cleared-on-overwrite": vector("seed/smm_stale_vcpu_mmio_cache.npt"),
    "parent-entry-kept": vector("v5.2/wrap_as0_offset2.npt"),
    "new-page-at-tail": vector("v5.0/fault_noslot_vm.npt"),
    "flush-skipped": vector("v5.0/zap_all_no_vcpu_root.ept_ad"),
    "in-use-root-freed": vector("v5.0/ro_slot.npt"),
    "batch-reset-without-drop": vector("v5.0/five_level.npt"),
    "obsolete-page-taken": vector("seed/random_68_mmio_500.npt"),  # get_page
    "root-count-kept": vector("v5.2/fault_noslot_vm.ept_ad"),  # roots
    "reload-forgotten": vector("v5.0/memslot_errors.ept_ad"),  # fast invalidate
    "newest-reclaimed": vector("v5.0/max_pages_tiny.npt"),  # reclaim
    "obsolete-list-forgotten": "tests/mutants/test_kills.py::test_the_shrinker_frees_what_the_fast_invalidate_left",
    "dirty-log-without-flush": vector("v5.2/prefetch_dirtylog_slot.npt"),  # dirty log
    "clear-log-from-start": vector("v5.0/dirty_log_manual.npt"),
    "pml-not-logged": vector("v5.2/dirty_log_pml.ept_ad"),  # PML
    "fast-fault-not-logged": vector("v5.2/aging_dirtylog.ept_ad"),  # fast page fault
    "prefetch-into-logged-slot": vector("v5.0/prefetch_dirtylog_slot.npt"),  # prefetch
    "unmap-without-flush": vector("v5.2/hugetlb_2m.npt"),  # notifiers
    "age-keeps-accessed": vector("v5.0/aging_dirtylog.ept_ad"),
    "changed-pte-writable": "tests/mutants/test_kills.py::test_a_mapping_that_follows_its_frame_is_read_only",
    "tracked-stays-writable": vector("v5.2/page_track_4k.npt"),  # write tracking
    "track-without-veto": vector("v5.0/largepages_page_track.ept_ad"),
    "walk-forgets-flush": vector("v5.0/slot_write_protect_lock_break.ept_ad"),  # slot walks
    "stale-mmio-accepted": vector("v5.2/mmio_gfn0.npt"),  # MMIO faults
    "mmio-cache-own-space": vector("v5.0/smm_stale_vcpu_mmio_cache.npt"),  # both address spaces
    "large-veto-ignored": vector("seed/huge_misaligned_slot.npt"),  # large pages
    "accessed-dirty-lost": vector("v5.2/hugetlb_1g.npt"),  # zap
    "valid-gen-counts": scenario("v5_4_fast_everywhere"),  # fast invalidate, v5.4
    "invalid-not-obsolete": KILLS + "test_a_root_that_was_zapped_does_not_come_to_life_again",
    "batch-counts-all": KILLS + "test_v5_4_counts_only_what_made_the_list_unstable",
    "obsolete-left-behind": KILLS + "test_nothing_obsolete_is_left_by_a_run_that_is_given_up",
    "dead-root-stays-listed": scenario("v6_dead_root"),  # roots, v6.1
    "dead-root-mapped": scenario("v6_dead_root"),
    "valid-root-reloaded": KILLS + "test_a_vcpu_asked_to_reload_keeps_a_root_that_is_valid",
    "root-reclaimed": scenario("v6_reclaim_and_limits"),  # reclaim
    "mmio-cache-space-zero": scenario("v6_smm_mmio_cache"),  # MMIO faults
    "mmio-without-caching-mapped": scenario("v6_mmio_caching_off"),
    "first-root-only": scenario("v6_four_roots"),
    "fast-fault-through-log": scenario("v6_large_leaf_with_dirty_log"),  # lock-free path
    "spurious-not-seen": KILLS + "test_a_write_fault_on_a_writable_entry_ends_at_once",
    "disallowed-mark-forgotten": scenario("v6_nx_huge_pages"),  # direct_map
    "large-leaf-executable": scenario("v6_nx_huge_pages"),
    "stale-mmio-not-writable": scenario("v6_mmio_gfn0_and_stale"),
    "prefetch-after-unchanged": KILLS + "test_a_leaf_that_does_not_change_brings_no_neighbours",  # prefetch
    "last-run-not-mapped": KILLS + "test_the_neighbours_up_to_the_end_of_the_eight_are_mapped",
    "prefetch-over-hole": scenario("v6_prefetch_edges"),
    "large-leaf-kept-by-clear": scenario("v6_initially_set_large_leaves"),  # dirty log
    "rmap-entry-kept": judged("rmap-entry-kept"),  # what the judge alone sees
    "invalidation-not-tested": judged("invalidation-not-tested"),
    "unmap-first-space-only": judged("unmap-first-space-only"),
    "unmap-rounds-down": judged("unmap-rounds-down"),
    "track-without-flush": judged("track-without-flush"),
    "read-only-mapped-writable": judged("read-only-mapped-writable"),
    "dirty-log-flush-first": judged("dirty-log-flush-first"),
    "log-keeps-writable": judged("log-keeps-writable"),
    "root-without-smm": judged("root-without-smm"),
    "tdp-dirty-lost": vector("v6.12/zap_all_active_roots.npt.tdp1"),  # TDP MMU: changes
    "tdp-nx-mark-kept": vector("v6.12/nx_huge_thp.npt.tdp1"),
    "tdp-empty-not-frozen": vector("v6.12/zap_all_active_roots.npt.tdp1"),
    "tdp-range-flush-short": vector("v6.12/flush_range_collapse.npt.tdp1"),
    "tdp-root-reference-lost": vector("v6.12/three_vcpus.npt.tdp1"),  # TDP MMU: roots
    "tdp-invalid-root-walked": KILLS + "test_a_walk_of_valid_roots_passes_over_one_that_a_vcpu_still_holds",
    "tdp-frozen-left": vector("v6.12/thp_dirty_eager.npt.tdp1"),
    "tdp-table-after-entries": vector("v6.12/thp_dirty_eager.npt.tdp1"),
    "tdp-root-put-twice": vector("v6.12/three_vcpus.npt.tdp1"),
    "tdp-collapse-dirty-lost": vector("v6.12/thp_dirty_eager.npt.tdp1"),  # TDP MMU: collapse
    "tdp-age-keeps-accessed": vector("v6.12/aging.npt.tdp1"),  # TDP MMU: aging
    "tdp-split-not-executable": vector("v6.12/nx_huge_thp.npt.tdp1"),  # TDP MMU: split
    "table-veto-kept": vector("v5.2/shadow_upper_write_zap_flood.shadow"),  # shadow paging: accounting
    "unsync-not-marked": vector("v5.2/shadow_basic.shadow"),  # unsync
    "unsync-children-spared": vector("v5.2/shadow_basic.shadow"),  # zap
    "sync-keeps-gfn": vector("v5.2/sx_alias_levels.shadow"),  # sync
    "sync-without-flush": vector("v5.2/shadow_unsync_and_sync.shadow"),
    "roots-not-synced": vector("v5.2/shadow_unsync_and_sync.shadow"),  # roots
    "cached-root-not-synced": vector("v5.2/shadow_unsync_cr3_switch.shadow"),  # CR3
    "invlpg-spares-cached": vector("v5.2/sx_invlpg.shadow"),  # INVLPG
    "write-without-flush": vector("v5.2/shadow_upper_write_zap_flood.shadow"),  # emulated write
    "flood-one-later": vector("v5.2/shadow_upper_write_zap_flood.shadow"),  # flooding
    "flood-kept": vector("v5.2/shadow_upper_write_zap_flood.shadow"),
    "gpte-prefetch-into-log": vector("v5.2/sk_slots_p32.shadow"),  # prefetch
    "no-gpte-prefetch": vector("v5.2/shadow_basic.shadow"),
    "write-through-wp-for-user": vector("v5.0/sx_perm_wp0_smep1_smap1_nx1.shadow"),  # fault
    "fault-leaves-entry": vector("v6.1/random_61_shadow_200.shadow.tdp0"),
    "clean-leaf-writable": vector("v5.2/shadow_accessed_dirty_in_guest.shadow"),  # guest walk
    "walked-table-not-dirty": FIXES + "test_a_walk_that_marks_an_entry_accessed_dirties_its_table",
    "misaligned-taken": vector("v5.2/sx_emulwrite_l1.shadow"),  # misalignment
    "unprotect-first-only": vector("v5.2/sx_p32.shadow"),  # unprotect
    "sync-unsyncs": FIXES + "test_a_sync_makes_no_other_table_unsync",
    "any-child-kept": FIXES + "test_a_child_of_another_gfn_or_role",  # the repairs of 2026
    "parents-one-more": FIXES + "test_a_bound_on_parents",
    "init-keeps-roots": FIXES + "test_init_in_smm",
}

#: Policy mutant -> the test that kills it.
POLICY: dict[str, str] = {
    "wrap-mask-short": "tests/mutants/test_kills.py::test_half_a_lap_is_no_wrap",
    "address-space-bit-kept": "tests/unit/test_generation.py::test_first_wrap_by_running_the_policy",
    "wrap-check-before-publication": "tests/unit/test_memory_region.py"
    "::test_v5_0_looks_for_a_wrap_after_publication_and_v5_2_before",
}

#: The reference's own: each of these tests plants its fault itself and is green when the fault is noticed.
REFERENCE = "tests/reference/test_mutants.py"
