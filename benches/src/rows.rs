//! The table: which case of which row is measured how, for which kernels. The names are keys of `kernel_speed.json`.

use kvm_mmu::mmu::GfnHash;

use crate::map::{Order, fast_page_fault, map, write_protect};
use crate::{Timed, guest, lists, machine, mmio, shadow, whole, zap};

const KERNELS: [&str; 2] = ["v5.0", "v5.2"];
const WITH_SEED: [&str; 3] = ["v5.0", "v5.2", "v5.0-seed"];

/// One measured case.
pub struct Case {
    /// `row/case`, as in `kernel_speed.json`.
    pub name: String,
    /// Kernel profile, or the plan of a case that is ours alone.
    pub kernel: &'static str,
    /// How often it is run for its median.
    pub runs: usize,
    /// Measures once.
    pub run: Box<dyn Fn() -> Timed>,
}

struct Table(Vec<Case>);

impl Table {
    fn add(&mut self, name: impl Into<String>, kernel: &'static str, runs: usize, run: impl Fn() -> Timed + 'static) {
        self.0.push(Case { name: name.into(), kernel, runs, run: Box::new(run) });
    }

    fn maps(&mut self, kernel: &'static str) {
        for (gib, runs) in [(1, 7), (4, 3), (16, 3)] {
            self.add(format!("map/{gib} GiB"), kernel, runs, move || map(kernel, gib, Order::Ascending, true));
            self.add(format!("map-no-prefetch/{gib} GiB"), kernel, runs, move || {
                map(kernel, gib, Order::Ascending, false)
            });
            self.add(format!("map-random/{gib} GiB"), kernel, runs, move || map(kernel, gib, Order::Random, false));
        }
        self.add("map-descending/1 GiB", kernel, 7, move || map(kernel, 1, Order::Descending, true));
        self.add("write-protect/writable", kernel, 7, move || write_protect(kernel, false));
        self.add("write-protect/again", kernel, 7, move || write_protect(kernel, true));
        self.add("fast-page-fault/", kernel, 7, move || fast_page_fault(kernel));
    }

    fn mmio(&mut self, kernel: &'static str) {
        self.add("mmio-first/", kernel, 7, move || mmio::first(kernel));
        self.add("mmio-hit/sequential", kernel, 7, move || mmio::hit(kernel, false));
        self.add("mmio-hit/random", kernel, 7, move || mmio::hit(kernel, true));
        self.add("mmio-cached/", kernel, 7, move || mmio::cached(kernel));
        self.add("mmio-stale/", kernel, 7, move || mmio::stale(kernel));
    }

    fn lists(&mut self, kernel: &'static str) {
        self.add("rmap/", kernel, 7, move || lists::rmap(kernel));
        for length in [1, 4, 16, 64, 256] {
            self.add(format!("pte-list-add/chain of {length}"), kernel, 7, move || lists::pte_list(length, false).0);
            self.add(format!("pte-list-remove/chain of {length}"), kernel, 7, move || lists::pte_list(length, false).1);
            self.add(format!("pte-list-remove-reverse/chain of {length}"), kernel, 7, move || {
                lists::pte_list(length, true).1
            });
        }
        for (tables, name) in [(1_000, "1k"), (10_000, "10k"), (100_000, "100k")] {
            self.add(format!("get-page/{name}"), kernel, 5, move || lists::get_page(kernel, tables, GfnHash::Kernel));
            self.add(format!("get-page-wide/{name}"), kernel, 5, move || {
                lists::get_page(kernel, tables, GfnHash::Wide)
            });
        }
    }

    fn zaps(&mut self, kernel: &'static str) {
        for (tables, runs, name) in [(1_000, 7, "1k"), (10_000, 3, "10k"), (100_000, 1, "100k")] {
            self.add(format!("zap-full/{name}"), kernel, runs, move || zap::everything(kernel, tables, 512));
        }
        for (tables, runs, name) in [(1_000, 7, "1k"), (10_000, 7, "10k"), (100_000, 3, "100k")] {
            self.add(format!("zap-sparse/{name}"), kernel, runs, move || zap::everything(kernel, tables, 1));
            self.add(format!("zap-15/{name}"), kernel, runs, move || zap::everything(kernel, tables, 15));
        }
    }

    /// Guests with page tables of their own.
    fn shadows(&mut self) {
        for kernel in ["v5.0", "v6.12"] {
            self.add("shadow-fault/64 tables", kernel, 5, move || shadow::fault(kernel, 64));
            self.add("shadow-sync/16 tables", kernel, 5, move || shadow::unsync_and_sync(kernel));
            self.add("shadow-switch/four roots", kernel, 5, move || shadow::switch(kernel));
            self.add("shadow-emulated/last level", kernel, 5, move || shadow::emulated_write(kernel));
        }
    }

    /// Rows of kernels that the figures of C do not have, and of what only we do.
    fn ours(&mut self) {
        for kernel in ["v6.12", "v6.12-tdp"] {
            for (gib, runs) in [(1, 7), (4, 3)] {
                self.add(format!("map-newer/{gib} GiB"), kernel, runs, move || {
                    map(kernel, gib, Order::Ascending, true)
                });
            }
            self.add("zap-newer/1k", kernel, 7, move || zap::everything(kernel, 1_000, 512));
        }
        for kernel in ["v5.0", "v6.12", "v6.12-tdp"] {
            self.add("access/a fault each", kernel, 7, move || guest::access(kernel, 1, false));
            self.add("access/a fault each, many", kernel, 7, move || guest::access_many(kernel, 1));
            self.add("access/hits", kernel, 7, move || guest::access(kernel, 1, true));
        }
        let sizes = [(100_000, 1, "100k of one entry"), (1_000, 512, "1k full"), (10_000, 512, "10k full")];
        for (tables, leaves, name) in sizes {
            self.add(format!("clone/{name}"), "v5.0", 5, move || whole::clone("v5.0", tables, leaves));
            self.add(format!("fork/{name}"), "v5.0", 5, move || whole::fork("v5.0", tables, leaves, false));
            self.add(format!("fork-again/{name}"), "v5.0", 5, move || whole::fork("v5.0", tables, leaves, true));
            self.add(format!("fork-step/{name}"), "v5.0", 5, move || {
                whole::fork_and_step("v5.0", tables, leaves, false)
            });
            self.add(format!("fork-new-page/{name}"), "v5.0", 5, move || {
                whole::fork_and_step("v5.0", tables, leaves, true)
            });
            self.add(format!("clone-step/{name}"), "v5.0", 5, move || whole::clone_and_step("v5.0", tables, leaves));
        }
        for (tables, leaves, name) in [(10_000, 1, "10k of one entry"), (1_000, 512, "1k full")] {
            self.add(format!("fingerprint/{name}"), "v5.0", 3, move || {
                whole::fingerprint("v5.0", tables, leaves, false)
            });
            self.add(format!("fingerprint-again/{name}"), "v5.0", 3, move || {
                whole::fingerprint("v5.0", tables, leaves, true)
            });
            self.add(format!("digest/{name}"), "v5.0", 3, move || whole::digest("v5.0", tables, leaves, false));
            self.add(format!("digest-again/{name}"), "v5.0", 3, move || whole::digest("v5.0", tables, leaves, true));
        }
    }

    fn wraps(&mut self, kernel: &'static str, shown: &'static str, plan: &'static str) {
        for (tables, runs, name) in [(1_000, 7, "1k"), (10_000, 7, "10k"), (100_000, 3, "100k")] {
            for percent in [1, 10] {
                // The seed's walk of 100,000 pages takes seconds.
                let runs = if plan == "seed" && tables == 100_000 { 1 } else { runs };
                self.add(format!("wrap-{name}/{percent} %"), shown, runs, move || {
                    zap::mmio_wrap(kernel, tables, percent, 1, plan)
                });
                if tables < 100_000 {
                    self.add(format!("wrap-15-{name}/{percent} %"), shown, runs, move || {
                        zap::mmio_wrap(kernel, tables, percent, 15, plan)
                    });
                }
            }
        }
    }
}

/// Every case, in the order of the kernel's own table.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut table = Table(Vec::new());
    for mib in [1, 4, 64] {
        table.add(format!("random-read/{mib} MiB"), "machine", 5, move || machine::random_read(mib << 20));
    }
    KERNELS.into_iter().for_each(|kernel| table.maps(kernel));
    WITH_SEED.into_iter().for_each(|kernel| table.mmio(kernel));
    KERNELS.into_iter().for_each(|kernel| table.zaps(kernel));
    table.wraps("v5.0", "v5.0", "v5.0-fast");
    table.wraps("v5.2", "v5.2", "merged");
    table.wraps("v5.0-seed", "v5.0-seed", "seed");
    table.wraps("v5.2", "indexed", "indexed");
    KERNELS.into_iter().for_each(|kernel| table.lists(kernel));
    table.ours();
    table.shadows();
    table.0
}
