//! Which host pages a recorder has touched: what a lookup of a page for a fault finds resident and writable, where the
//! recording carries no answers of the host.
//!
//! Owns the pages only. What a recorder touches, and which of its memory it wrote at once, its Python side says.

use rustc_hash::FxHashSet;

const PAGES_2M: u64 = 512;

/// Host memory of a recorder, by host page number.
#[derive(Clone, Copy, Debug)]
struct Backing {
    first: u64,
    npages: u64,
    thp: bool,
    is_written: bool,
    is_hugetlb: bool,
}

impl Backing {
    const fn holds(&self, page: u64) -> bool {
        page.wrapping_sub(self.first) < self.npages
    }

    /// Whether the aligned 2 MiB around a page can be one huge page.
    const fn is_huge(&self, page: u64) -> bool {
        let start = page & !(PAGES_2M - 1);
        self.thp && self.first <= start && start + PAGES_2M <= self.first + self.npages
    }
}

/// Resident host pages.
#[derive(Debug, Default)]
pub struct HostPages {
    backings: Vec<Backing>,
    pages: FxHashSet<u64>,
    /// First pages of 2 MiB that became resident as a whole, and of those that the host maps so.
    wholes: FxHashSet<u64>,
    pub(super) mapped_2m: FxHashSet<u64>,
    /// First pages of 2 MiB that the host maps with less, after it was known to map them at once.
    pub(super) split: FxHashSet<u64>,
}

impl HostPages {
    /// A recorder made memory; `is_written`: and wrote all of it.
    pub fn add(&mut self, first: u64, npages: u64, thp: bool, is_written: bool) {
        self.backings.push(Backing { first, npages, thp, is_written, is_hugetlb: false });
    }

    /// A recorder made memory of 1 GiB pages.
    pub fn add_hugetlb(&mut self, first: u64, npages: u64) {
        self.backings.push(Backing { first, npages, thp: false, is_written: true, is_hugetlb: true });
    }

    pub(super) fn is_hugetlb(&self, page: u64) -> bool {
        self.backings.iter().any(|backing| backing.is_hugetlb && backing.holds(page))
    }

    pub(super) fn is_huge(&self, page: u64) -> bool {
        self.find(page).is_some_and(|backing| backing.is_huge(page))
    }

    /// First page and end of what can be huge pages.
    pub(super) fn huge_backings(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let all = self.backings.iter().filter(|backing| backing.thp);
        all.map(|backing| (backing.first, backing.first + backing.npages))
    }

    /// Whether the page is there and writable.
    #[must_use]
    pub fn is_resident(&self, page: u64) -> bool {
        self.pages.contains(&page)
            || self.wholes.contains(&(page & !(PAGES_2M - 1)))
            || self.find(page).is_some_and(|backing| backing.is_written)
    }

    /// A write made the page resident; the first page of 2 MiB that the host maps as one from now on.
    pub fn touch(&mut self, page: u64) -> Option<u64> {
        let Some(backing) = self.find(page).filter(|backing| backing.is_huge(page)) else {
            self.pages.insert(page);
            return None;
        };
        let start = page & !(PAGES_2M - 1);
        self.wholes.insert(start);
        (!backing.is_written && self.mapped_2m.insert(start)).then_some(start)
    }

    /// A fault was told that the host maps this page with 2 MiB; the same.
    pub fn note_2m(&mut self, page: u64) -> Option<u64> {
        let is_known = self.find(page).is_some_and(|backing| backing.is_huge(page));
        let start = page & !(PAGES_2M - 1);
        (!is_known && self.mapped_2m.insert(start)).then_some(start)
    }

    fn find(&self, page: u64) -> Option<Backing> {
        self.backings.iter().find(|backing| backing.holds(page)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_resident_one_by_one_or_two_mib_at_once() {
        let mut pages = HostPages::default();
        pages.add(0x1000, 0x100, false, true);
        pages.add(0x2000, 0x400, true, false);
        pages.add(0x3100, 0x80, true, false);
        assert!(pages.is_resident(0x1001) && !pages.is_resident(0x1100));
        assert_eq!((pages.touch(0x2201), pages.touch(0x2202)), (Some(0x2200), None));
        assert!(pages.is_resident(0x23ff) && !pages.is_resident(0x2000));
        assert_eq!((pages.touch(0x3101), pages.is_resident(0x3102)), (None, false));
        assert_eq!((pages.note_2m(0x2000), pages.note_2m(0x9001), pages.note_2m(0x9001)), (None, Some(0x9000), None));
    }
}
