//! From what a user or a host says to a row: `v6.12`, `6.12.94`, `6.1.0-56-amd64`, `7.3.4+deb13-amd64`.

use std::fmt::Write;

use super::facts::{FACTS, Fact, Kernel, Value};
use super::fix_levels::{FixLevel, follow_levels};

/// A row and what had to be assumed to choose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The row.
    pub kernel: Kernel,
    /// What was assumed, a sentence; empty where the text names the row itself.
    pub assumed: String,
}

/// `major.minor[.patch]` in front of a text, and the rest.
fn numbers(text: &str) -> Option<(Vec<u32>, &str)> {
    let end = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let (version, rest) = text.split_at(end);
    let parts = version.split('.').map(|part| part.parse().ok().filter(|_| part.len() < 6));
    let parts: Option<Vec<u32>> = parts.collect();
    parts.filter(|parts| parts.len() == 2 || parts.len() == 3).map(|parts| (parts, rest))
}

fn release_of(kernel: &Kernel) -> Vec<u32> {
    kernel.release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// A Debian package name such as `6.1.0-56-amd64`: the third number is always 0 and says no patch level.
fn is_package_name(parts: &[u32], rest: &str) -> bool {
    parts.get(2) == Some(&0)
        && rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The row a text names, or nothing if no row is of its branch.
///
/// A release without a row is the newest row of its branch that is not newer; one before the oldest row is that row.
/// Where it is known in which release a fix came, its facts are those of the release.
#[must_use]
pub fn resolve(text: &str) -> Option<Resolved> {
    let named = |kernel: &&Kernel| kernel.name == text || kernel.name.strip_prefix('v') == Some(text);
    if let Some(kernel) = Kernel::ALL.iter().find(named) {
        return Some(Resolved { kernel: *kernel, assumed: String::new() });
    }
    if text == "seed" {
        return Some(Resolved { kernel: Kernel::V5_0_SEED, assumed: String::new() });
    }
    let (parts, rest) = numbers(text.strip_prefix('v').unwrap_or(text))?;
    if !(rest.is_empty() || rest.starts_with(['-', '+'])) || rest.chars().any(char::is_control) {
        return None;
    }
    let branch: Vec<&Kernel> = Kernel::ALL
        .iter()
        .filter(|kernel| kernel.name != Kernel::V5_0_SEED.name && release_of(kernel)[..2] == parts[..2])
        .collect();
    let newest = **branch.last()?;
    let is_candidate = rest.starts_with("-rc");
    Some(match parts.get(2) {
        Some(&patch) if !is_package_name(&parts, rest) => at_patch_level(&branch, &parts[..2], patch),
        // A candidate comes before the branch's first release.
        None if is_candidate => at_patch_level(&branch, &parts[..2], 0),
        None if rest.is_empty() => Resolved { kernel: newest, assumed: String::new() },
        _ => Resolved { kernel: newest, assumed: format!("{text} says no patch level: taken as {}", newest.release) },
    })
}

/// The row of a branch for a patch level, with the fixes that came until then.
fn at_patch_level(branch: &[&Kernel], numbers: &[u32], patch: u32) -> Resolved {
    let patch_of = |kernel: &Kernel| release_of(kernel)[2];
    let found = branch.iter().rposition(|kernel| patch_of(kernel) <= patch);
    let row = branch[found.unwrap_or(0)];
    let mut kernel = *row;
    if patch_of(row) == patch {
        return Resolved { kernel, assumed: String::new() };
    }
    let told = follow_levels(&mut kernel, [numbers[0], numbers[1]], patch_of(row), patch);
    let which = if found.is_some() {
        "the nearest row that is not newer"
    } else {
        "the oldest row of its branch, which is newer"
    };
    let mut assumed = format!("{}.{}.{patch} taken as {}, {which}", numbers[0], numbers[1], row.release);
    if !told.fixes.is_empty() {
        let of = |fix: &&FixLevel| format!("{} of {}.{}.{}", fix.commit, fix.branch[0], fix.branch[1], fix.first);
        let fixes: Vec<String> = told.fixes.iter().map(of).collect();
        let word = if found.is_some() { "with" } else { "without" };
        let _ = write!(assumed, ", {word} {}", fixes.join(", "));
    }
    // Facts that are other in the next row, and of which no level tells when they changed.
    let next = found.and_then(|at| branch.get(at + 1));
    let changed = next.map_or_else(Vec::new, |next| difference(row, next));
    let open: Vec<&str> =
        changed.iter().map(|(fact, ..)| fact.name).filter(|name| !told.facts.contains(name)).collect();
    let _ = match next {
        Some(next) if !open.is_empty() => {
            write!(assumed, "; assumed: what {} has otherwise came later ({})", next.release, open.join(", "))
        }
        Some(_) => Ok(()),
        None if found.is_some() => write!(assumed, "; assumed: no other rule changed since"),
        None => write!(assumed, "; assumed: no other rule changed between them"),
    };
    Resolved { kernel, assumed }
}

/// The facts that differ, with both values, in the order of [`FACTS`].
#[must_use]
pub fn difference(from: &Kernel, to: &Kernel) -> Vec<(&'static Fact, Value, Value)> {
    let values = from.values().into_iter().zip(to.values());
    FACTS.iter().zip(values).filter(|(_, (a, b))| a != b).map(|(fact, (a, b))| (fact, a, b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Option<(&'static str, bool)> {
        resolve(text).map(|found| (found.kernel.name, found.assumed.is_empty()))
    }

    #[test]
    fn a_text_names_the_row_that_is_not_newer() {
        for (text, name, is_exact) in [
            ("v6.12", "v6.12", true),
            ("6.12", "v6.12", true),
            ("6.12.94", "v6.12.0", false),
            ("6.12-amd64", "v6.12", false),
            ("7.2-rc5", "v7.2.6", false),
            ("5.10.100", "v5.10", false),
            ("6.12.117", "v6.12", true),
            ("v6.12.300+deb14-amd64", "v6.12", false),
            ("6.1.0-56-amd64", "v6.1", false),
            ("6.1.0", "v6.1.0", true),
            ("7.3.4+deb13-amd64", "v7.3", true),
            ("7.2.6+deb13-amd64", "v7.2.6", true),
            ("7.2.9", "v7.2.6", false),
            ("7.2", "v7.2", true),
            ("5.2.0", "v5.2", false),
            ("5.0.1", "v5.0", true),
            ("seed", "v5.0-seed", true),
        ] {
            assert_eq!(named(text), Some((name, is_exact)), "{text}");
        }
        for text in [
            "",
            "v",
            "6",
            "6.6",
            "6.6.30",
            "6.12.x",
            "6.12..1",
            "6.12.1.1",
            "v6.12 ",
            "6.12.99999999999",
            "6.12.3-\u{1b}",
        ] {
            assert_eq!(named(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_release_between_rows_has_the_fixes_that_came_until_then() {
        for (text, kernel) in [
            ("6.12.94", "v6.12.0"),
            ("6.12.95", "v6.12.0:child_reuse=gfn_role:large_in_way=zapped_full"),
            (
                "6.12.103",
                "v6.12.0:stale_test=after_reclaim:child_role_valid=yes:child_reuse=gfn_role:large_in_way=zapped_full",
            ),
            ("6.1.176", "v6.1.0"),
            ("6.1.177+deb12-amd64", "v6.1.0:child_reuse=gfn_role:large_in_way=zapped_full"),
            ("5.10.100", "v5.10"),
            ("5.10.260", "v5.10:child_reuse=gfn_role"),
            ("6.18.3", "v6.18"),
            ("6.18.30", "v6.18:child_reuse=gfn"),
            ("6.18.38", "v6.18:child_reuse=gfn_role:large_in_way=zapped_range"),
        ] {
            let found = resolve(text).expect(text);
            assert_eq!(found.kernel.text(), kernel, "{text}");
            assert!(found.assumed.contains("assumed: "), "{}", found.assumed);
        }
        let said = resolve("6.12.101").expect("a row").assumed;
        assert!(said.contains("with 81ccda30b4e8 of 6.12.95; assumed: what 6.12.117"), "{said}");
        assert!(said.contains("stale_test") && !said.contains("child_reuse"), "{said}");
        assert!(resolve("5.10.9").expect("a row").assumed.contains("which is newer"));
    }

    #[test]
    fn every_row_names_itself_and_has_one_value_a_fact() {
        for kernel in Kernel::ALL {
            assert_eq!(named(kernel.name), Some((kernel.name, true)));
            assert_eq!(kernel.values().len(), FACTS.len());
            for (fact, value) in FACTS.iter().zip(kernel.values()) {
                match value {
                    Value::Word(word) => assert!(fact.words.contains(&word), "{}", fact.name),
                    Value::Bool(_) | Value::Number(_) => assert!(fact.words.is_empty(), "{}", fact.name),
                }
            }
        }
    }

    #[test]
    fn two_rows_differ_in_their_facts() {
        let names = |a, b| difference(a, b).iter().map(|(fact, ..)| fact.name).collect::<Vec<_>>();
        assert_eq!(names(&Kernel::V7_2_6, &Kernel::V7_2), ["mmio_cache_space"]);
        assert_eq!(names(&Kernel::V7_2, &Kernel::V7_3), ["walk_bound"]);
        assert!(names(&Kernel::V7_3, &Kernel::V7_3).is_empty());
    }
}
