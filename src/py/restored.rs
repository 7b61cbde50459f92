//! What was read of a real VM, as rows from Python: tuples become the core's plain values.

use pyo3::prelude::*;

use super::errors;
use crate::mmu::{Found, FoundEntry, FoundInSlot, FoundMapping, FoundOn, FoundPage, FoundVcpu};

/// gfn, role, valid generation, root count, place (0 active, 1 zapped root, 2 TDP root, 3 TDP table), unsync.
type PageRow = (u64, u32, u64, u32, u8, bool);
/// Address space, slot, level, index, value.
type ArrayRow = (u8, u32, u8, u64, u64);
/// Roots, previous ones, role, SMM, CR3, requests, MMIO cache.
type VcpuRow = ([u32; 4], [u32; 3], u32, bool, u64, u64, (u64, u64, u32, u64));

/// Everything by name, each a list of tuples.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Rows {
    pages: Vec<PageRow>,
    entries: Vec<(u32, u16, u64, u64, u32)>,
    parents: Vec<(u32, u32, u16)>,
    marks: Vec<(u32, u16)>,
    rmaps: Vec<(ArrayRow, u32, u16)>,
    arrays: Vec<ArrayRow>,
    vcpus: Vec<VcpuRow>,
    numbers: [u64; 4],
}

const fn in_slot((as_id, slot, level, index, value): ArrayRow) -> FoundInSlot {
    FoundInSlot { as_id, slot, level, index, value }
}

/// The core's values of these rows.
pub fn found(py: Python<'_>, rows: Rows) -> PyResult<Found> {
    let mut pages = Vec::with_capacity(rows.pages.len());
    for (gfn, role, valid_gen, root_count, place, unsync) in rows.pages {
        let place = match place {
            0 => FoundOn::Active,
            1 => FoundOn::ZappedRoot,
            2 => FoundOn::TdpRoot,
            3 => FoundOn::TdpTable,
            _ => return Err(errors::usage(py, format!("place {place} of a page: expected 0 to 3"))),
        };
        pages.push(FoundPage { gfn, role, valid_gen, root_count, place, unsync });
    }
    let entry = |(page, index, raw, gfn, child)| FoundEntry { page, index, raw, gfn, child };
    let vcpu = |(roots, prev_roots, role, smm, cr3, requests, mmio)| FoundVcpu {
        roots,
        prev_roots,
        role,
        smm,
        cr3,
        requests,
        mmio,
    };
    let mapping = |(head, page, entry)| FoundMapping { head: in_slot(head), page, entry };
    Ok(Found {
        pages,
        entries: rows.entries.into_iter().map(entry).collect(),
        parents: rows.parents,
        marks: rows.marks,
        rmaps: rows.rmaps.into_iter().map(mapping).collect(),
        arrays: rows.arrays.into_iter().map(in_slot).collect(),
        vcpus: rows.vcpus.into_iter().map(vcpu).collect(),
        numbers: rows.numbers,
    })
}
