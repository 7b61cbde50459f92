//! In which release of a branch a fix is there first: facts between two rows, and before the oldest one.
//!
//! Owns the table and what it changes of a row. A release that has no row of its own is the row before it with the fixes
//! that came up to it; a release before the oldest row is that row without those that came after. What no level is known
//! of stays as the row has it, and [`super::resolve()`] says so.

use super::facts::Kernel;

/// One fact that a fix changed: its name, its value before, its value after.
pub type Change = (&'static str, &'static str, &'static str);

/// A fix in one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixLevel {
    /// The upstream change.
    pub commit: &'static str,
    /// The branch: `[6, 12]`.
    pub branch: [u32; 2],
    /// The last patch level that is known to be without it.
    pub absent_to: u32,
    /// The first one that is known to have it.
    pub first: u32,
    /// What it changed.
    pub changes: &'static [Change],
}

const fn level(commit: &'static str, branch: [u32; 2], first: u32, changes: &'static [Change]) -> FixLevel {
    FixLevel { commit, branch, absent_to: first - 1, first, changes }
}

const ANY_TO_GFN_ROLE: &[Change] =
    &[("child_reuse", "any", "gfn_role"), ("large_in_way", "dropped_range", "zapped_full")];
/// The flush of a large leaf in the way is that of the next branch, which has been read; here it is assumed.
const GFN_TO_GFN_ROLE: &[Change] =
    &[("child_reuse", "gfn", "gfn_role"), ("large_in_way", "dropped_range", "zapped_range")];
const RECLAIM_FIRST: &[Change] =
    &[("stale_test", "before_reclaim", "after_reclaim"), ("child_role_valid", "no", "yes")];

/// Every level that is known, oldest first within a branch.
pub const FIX_LEVELS: &[FixLevel] = &[
    // 5.10.262 was recorded with large leaves in the way: there the flush is as before the fix.
    level("81ccda30b4e8", [5, 10], 260, &[("child_reuse", "access", "gfn_role")]),
    level("81ccda30b4e8", [6, 1], 177, ANY_TO_GFN_ROLE),
    level("81ccda30b4e8", [6, 12], 95, ANY_TO_GFN_ROLE),
    FixLevel { commit: "2abd5287f083", branch: [6, 12], absent_to: 99, first: 103, changes: RECLAIM_FIRST },
    level("0cb2af2ea66a", [6, 18], 30, &[("child_reuse", "any", "gfn")]),
    level("81ccda30b4e8", [6, 18], 38, GFN_TO_GFN_ROLE),
    level("81ccda30b4e8", [7, 1], 3, GFN_TO_GFN_ROLE),
    level("2abd5287f083", [7, 1], 6, RECLAIM_FIRST),
];

/// What the levels of a branch say of one patch level, told from a row of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The fixes that make the release other than the row.
    pub fixes: Vec<&'static FixLevel>,
    /// The facts of which a level says the value, also where it is the row's.
    pub facts: Vec<&'static str>,
}

/// Makes a row of patch level `of_row` what is known of patch level `patch` of its branch.
pub(super) fn follow_levels(kernel: &mut Kernel, branch: [u32; 2], of_row: u32, patch: u32) -> Told {
    let mut told = Told::default();
    let mut set = |fix: &'static FixLevel, is_there: bool| {
        for (fact, before, after) in fix.changes {
            kernel.set(fact, if is_there { after } else { before });
        }
        told.fixes.push(fix);
    };
    let of_branch = || FIX_LEVELS.iter().filter(|fix| fix.branch == branch);
    for fix in of_branch().filter(|fix| of_row < fix.first && fix.first <= patch) {
        set(fix, true);
    }
    for fix in of_branch().rev().filter(|fix| patch <= fix.absent_to && fix.first <= of_row) {
        set(fix, false);
    }
    let is_known = |fix: &&FixLevel| patch <= fix.absent_to || fix.first <= patch;
    told.facts = of_branch().filter(is_known).flat_map(|fix| fix.changes.iter().map(|(fact, ..)| *fact)).collect();
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::FACTS;

    #[test]
    fn every_change_names_a_fact_and_two_of_its_values() {
        for fix in FIX_LEVELS {
            assert!(fix.absent_to < fix.first, "{}", fix.commit);
            for (fact, before, after) in fix.changes {
                let mut kernel = Kernel::V5_0;
                assert!(FACTS.iter().any(|known| known.name == *fact), "{fact}");
                assert!(before != after && kernel.set(fact, before) && kernel.set(fact, after), "{fact}");
            }
        }
    }

    #[test]
    fn a_fix_in_doubt_leaves_the_row() {
        let mut kernel = Kernel::V6_12_0;
        let told = follow_levels(&mut kernel, [6, 12], 0, 101);
        assert_eq!(told.fixes.iter().map(|fix| fix.first).collect::<Vec<_>>(), [95]);
        assert_eq!(told.facts, ["child_reuse", "large_in_way"]);
        assert_eq!(kernel.text(), "v6.12.0:child_reuse=gfn_role:large_in_way=zapped_full");
    }
}
