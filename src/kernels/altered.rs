//! A row of which single facts were changed: `v6.12:stale_test=before_reclaim:child_reuse=any`.
//!
//! Such a kernel shows what one rule does: everything else is as in its row. Its name stays the row's; its text has the
//! changes, and is what a snapshot keeps of it.

use super::facts::{FACTS, Kernel};
use super::resolve::{difference, resolve};
use crate::mmu::{Error, Result};

/// What is shown of a text that was refused.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Kernel {
    /// The row that a text names, with the facts that follow it changed.
    pub fn by_name(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let row = parts.next().and_then(resolve).ok_or_else(|| Error::UnknownKernel(cut(text)))?;
        let mut kernel = row.kernel;
        for part in parts {
            kernel.change(part)?;
        }
        Ok(kernel)
    }

    /// Changes one fact: `name=value`.
    fn change(&mut self, part: &str) -> Result<()> {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(fact) = FACTS.iter().find(|fact| fact.name == name) else {
            return Err(Error::UnknownFact {
                text: cut(part),
                expected: "fact=value with a fact of this kernel".to_owned(),
            });
        };
        if self.set(name, value) {
            return Ok(());
        }
        let expected = if !fact.words.is_empty() {
            format!("one of {}", fact.words.join(", "))
        } else if matches!(self.value_of(name), Some(super::Value::Number(_))) {
            "a number".to_owned()
        } else {
            "yes or no".to_owned()
        };
        Err(Error::UnknownFact { text: cut(part), expected })
    }

    /// The value of a fact by its name.
    #[must_use]
    pub fn value_of(&self, name: &str) -> Option<super::Value> {
        FACTS.iter().zip(self.values()).find_map(|(fact, value)| (fact.name == name).then_some(value))
    }

    /// The text that [`Kernel::by_name`] reads back: the row's name, and each fact that is not the row's.
    #[must_use]
    pub fn text(&self) -> String {
        let row = Self::ALL.iter().find(|row| row.name == self.name);
        let changes = row.map_or_else(Vec::new, |row| difference(row, self));
        changes.iter().fold(self.name.to_owned(), |text, (fact, _, value)| format!("{text}:{}={value}", fact.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::StaleTest;

    #[test]
    fn a_text_changes_single_facts_of_a_row() {
        let changed =
            Kernel::by_name("6.12.117:stale_test=before_reclaim:mem_slots=40:has_valid_gen=yes").expect("a kernel");
        let wanted = Kernel { stale_test: StaleTest::BeforeReclaim, mem_slots: 40, ..Kernel::V6_12 };
        assert_eq!(changed, wanted);
        assert_eq!(changed.text(), "v6.12:mem_slots=40:stale_test=before_reclaim");
        assert_eq!(Kernel::by_name(&changed.text()), Ok(changed));
        assert_eq!(Kernel::V7_2.text(), "v7.2");
    }

    #[test]
    fn every_fact_takes_the_values_that_rows_have() {
        for row in Kernel::ALL {
            for other in Kernel::ALL {
                let mut kernel = row;
                for (fact, value) in FACTS.iter().zip(other.values()) {
                    assert!(kernel.set(fact.name, &value.to_string()), "{} {value}", fact.name);
                }
                assert_eq!(kernel.values(), other.values());
            }
        }
    }

    #[test]
    fn what_is_no_change_is_refused_with_what_was_expected() {
        for (text, said) in [
            ("v6.12:", "fact=value"),
            ("v6.12:nothing=1", "fact=value"),
            ("v6.12:stale_test", "none, before_reclaim, after_reclaim"),
            ("v6.12:stale_test=no", "none, before_reclaim, after_reclaim"),
            ("v6.12:mem_slots=yes", "a number"),
            ("v6.12:mem_slots=+4", "a number"),
            ("v6.12:has_valid_gen=1", "yes or no"),
            ("v6.6:has_valid_gen=yes", "expected one of v5.0"),
        ] {
            let error = Kernel::by_name(text).expect_err(text).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
