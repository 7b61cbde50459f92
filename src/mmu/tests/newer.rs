//! What v5.4 to v6.12 do otherwise than the kernels before: words, roots in use, reclaim, four roots, requested levels.

use super::*;

/// A VM under NPT with 40 physical bits and four 2 MiB regions of slot.
fn npt(kernel: &str) -> Mmu {
    let mut mmu = vm_with(kernel, |config| {
        config.family = Family::Npt;
        config.phys_bits = 40;
    });
    put(&mut mmu, 0, 0, 2048, 0);
    mmu
}

fn leaf_bits(mmu: &Mmu, level: u8) -> Vec<u64> {
    let pages = mmu.active_page_ids().into_iter().filter_map(|id| mmu.page(id));
    pages.filter(|page| page.level == level).flat_map(|page| page.sptes).map(|(_, spte, _)| spte & 0xfff).collect()
}

#[test]
fn a_leaf_has_the_bits_the_recordings_show() {
    for kernel in ["v6.1", "v6.12"] {
        let mut mmu = npt(kernel);
        mmu.enter(0).expect("vcpu 0 exists");
        mmu.fault(0, 0x1000, 6).expect("vcpu 0 exists");
        assert_eq!(leaf_bits(&mmu, 1), [0xe47, 0xe67, 0xe47, 0xe47, 0xe47, 0xe47, 0xe47, 0xe47], "{kernel}");
        assert_eq!(leaf_bits(&mmu, 2), [0x827], "{kernel}");
        mmu.fault(0, 0xd000_0000, 4).expect("vcpu 0 exists");
        assert!(leaf_bits(&mmu, 1).contains(&0x27), "an MMIO SPTE of generation 4 in {kernel}");
        assert_clean(&mmu);
    }
}

#[test]
fn a_zapped_root_in_use_leaves_the_list_and_stays_counted() {
    let mut mmu = npt("v6.1");
    touch(&mut mmu, 1);
    let root = mmu.vcpu(0).expect("vcpu 0 exists").root.expect("a root");
    finish(&mut mmu, zap(ZapPlan::V5_4_FAST));
    assert_eq!((mmu.active_page_ids(), mmu.used_mmu_pages()), (Vec::new(), 1));
    assert!(mmu.page(root).is_some_and(|page| page.invalid && page.root_count == 1));
    assert_clean(&mmu);
    touch(&mut mmu, 1);
    assert!(mmu.page(root).is_none());
    assert_eq!(mmu.used_mmu_pages(), 4);
    assert_clean(&mmu);
}

#[test]
fn the_valid_generation_has_one_bit_from_v5_4_on() {
    for (kernel, gens) in [("v5.3", [1, 2, 3]), ("v5.4", [1, 0, 1]), ("v6.12", [1, 0, 1])] {
        let mut mmu = npt(kernel);
        for expected in gens {
            finish(&mut mmu, zap(ZapPlan::V5_4_FAST));
            touch(&mut mmu, 1);
            let newest = mmu.active_page_ids()[0];
            assert_eq!(mmu.page(newest).map(|page| page.valid_gen), Some(expected), "{kernel}");
        }
        assert_clean(&mmu);
    }
}

#[test]
fn reclaim_passes_over_roots_in_use() {
    let mut mmu = npt("v6.1");
    for gfn in [0, 512, 1024, 1536] {
        touch(&mut mmu, gfn);
    }
    assert_eq!(mmu.zap_oldest(2), Ok(2));
    let root = mmu.vcpu(0).expect("vcpu 0 exists").root.expect("a root");
    assert!(mmu.page(root).is_some_and(|page| !page.invalid));
    assert_eq!(mmu.zap_oldest(100), Ok(4));
    assert_eq!(mmu.active_page_ids(), [root]);
    assert_clean(&mmu);
    assert!(matches!(npt("v5.2").zap_oldest(1), Err(Error::NeedsKernel { .. })));
}

#[test]
fn four_roots_map_a_guest_without_paging() {
    let mut mmu = vm_with("v6.12", |config| {
        config.family = Family::Shadow;
        config.guest_paging = false;
    });
    put(&mut mmu, 0, 0, 512, 0);
    touch(&mut mmu, 1);
    touch(&mut mmu, 0xd_0000);
    let roots = mmu.active_page_ids().into_iter().rev().filter_map(|id| mmu.page(id)).filter(|page| page.level == 2);
    assert_eq!(roots.map(|page| page.gfn).collect::<Vec<_>>(), [0, 0x4_0000, 0x8_0000, 0xc_0000]);
    assert_clean(&mmu);
    mmu.unload(0).expect("vcpu 0 exists");
    assert_clean(&mmu);
    let refused = Config { family: Family::Shadow, ..Config::new(Kernel::V5_10) };
    assert!(matches!(Mmu::new(refused), Err(Error::ConfigNeeds { .. })));
}

#[test]
fn a_requested_level_never_leaves_the_slot() {
    let mut mmu = npt("v6.1");
    put(&mut mmu, 1, 0x1_0000, 513, 0);
    mmu.enter(0).expect("vcpu 0 exists");
    let host = HostLookup::Found { level: 3, writable: true, neighbours: None, is_written: None, frame: None };
    assert_eq!(mmu.fault_with(0, 0x1_0200 << 12, 6, &host), Ok(1));
    assert_eq!(mmu.fault_with(0, 0x1_0000 << 12, 6, &host), Ok(1));
    assert_eq!(mmu.fault_with(0, 0x20_0000, 6, &HostLookup::Retry), Ok(1));
    assert_eq!(leaf_bits(&mmu, 2).iter().filter(|&&bits| bits == 0xee7).count(), 1);
    assert_clean(&mmu);
}
