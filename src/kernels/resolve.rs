//! From what a user or a host says to a row: `v6.12`, `6.12.94`, `6.1.0-56-amd64`, `7.3.4+deb13-amd64`.

use super::facts::{FACTS, Fact, Kernel, Value};

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
    let (oldest, newest) = (*branch.first()?, *branch.last()?);
    let (kernel, assumed) = if is_package_name(&parts, rest) {
        (newest, format!("{text} says no patch level: taken as {}", newest.release))
    } else if let Some(&patch) = parts.get(2) {
        let not_newer = branch.iter().rev().find(|kernel| release_of(kernel)[2] <= patch);
        match not_newer {
            Some(kernel) if release_of(kernel)[2] == patch => (*kernel, String::new()),
            Some(kernel) => (
                *kernel,
                format!(
                    "{}.{}.{patch} taken as {}, the nearest row that is not newer",
                    parts[0], parts[1], kernel.release
                ),
            ),
            None => (
                oldest,
                format!("{}.{}.{patch} taken as {}, the oldest row of its branch", parts[0], parts[1], oldest.release),
            ),
        }
    } else {
        (newest, String::new())
    };
    Some(Resolved { kernel: *kernel, assumed })
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
        let names: Vec<_> = difference(&Kernel::V7_2_6, &Kernel::V7_2).iter().map(|(fact, ..)| fact.name).collect();
        assert_eq!(names, ["mmio_cache_space"]);
        assert!(difference(&Kernel::V7_2, &Kernel::V7_3).is_empty());
    }
}
