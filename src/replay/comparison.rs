//! Predicted and recorded outputs, paired in their order.
//!
//! Owns the pairing and the counts. A difference is none of its answers: it says that the slow way must look.

use std::collections::VecDeque;

use super::Unsure;
use super::output::Output;
use super::rules::{KINDS, SpteWords};
use super::tdp::step_on;
use crate::ftrace::Kind;

/// How far one side may be ahead of the other, in outputs.
const WAITS_MAX: usize = 1 << 17;

/// Both sides, in any order of arrival.
#[derive(Debug)]
pub struct Comparison {
    recorded: VecDeque<(Kind, Output)>,
    /// And how many neighbours the last field says.
    predicted: VecDeque<(Kind, Output, u32)>,
    /// Recorded outputs of each kind.
    pub counts: [u64; KINDS],
}

impl Default for Comparison {
    fn default() -> Self {
        Self { recorded: VecDeque::new(), predicted: VecDeque::new(), counts: [0; KINDS] }
    }
}

impl Comparison {
    /// An output of the recording.
    #[inline]
    pub fn add_recorded(&mut self, kind: Kind, output: Output, words: &SpteWords) -> Result<(), Unsure> {
        self.counts[kind as usize] += 1;
        let Some((own_kind, own, left)) = self.predicted.front_mut() else {
            return wait(&mut self.recorded, (kind, output));
        };
        let answer = pair(&(kind, output), &(*own_kind, *own), words);
        *left -= 1;
        step_on(own);
        if *left == 0 {
            self.predicted.pop_front();
        }
        answer
    }

    /// One of the model.
    #[inline]
    pub fn add_predicted(&mut self, kind: Kind, output: Output, words: &SpteWords) -> Result<(), Unsure> {
        self.add_predicted_run(kind, output, 1, words)
    }

    /// So many neighbours of the model, of which this is the first.
    pub fn add_predicted_run(
        &mut self,
        kind: Kind,
        mut output: Output,
        n: u32,
        words: &SpteWords,
    ) -> Result<(), Unsure> {
        for done in 0..n {
            let Some(theirs) = self.recorded.pop_front() else {
                return wait(&mut self.predicted, (kind, output, n - done));
            };
            pair(&theirs, &(kind, output), words)?;
            step_on(&mut output);
        }
        Ok(())
    }

    /// Both sides have ended.
    pub fn finish(&self) -> Result<(), Unsure> {
        if self.recorded.is_empty() && self.predicted.is_empty() { Ok(()) } else { Err(DIFFERENT) }
    }
}

const DIFFERENT: Unsure = Unsure("an output differs");

fn pair(theirs: &(Kind, Output), own: &(Kind, Output), words: &SpteWords) -> Result<(), Unsure> {
    if theirs.0 == own.0 && theirs.1.is_like(&own.1, words) { Ok(()) } else { Err(DIFFERENT) }
}

fn wait<T>(side: &mut VecDeque<T>, one: T) -> Result<(), Unsure> {
    if side.len() >= WAITS_MAX {
        return Err(Unsure("one side is far ahead of the other"));
    }
    side.push_back(one);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_in_order_whoever_comes_first() {
        let words = SpteWords::default();
        let mut both = Comparison::default();
        let one = |value| Output::Plain([value, 0, 0, 0]);
        both.add_predicted(Kind::ZapOldestRet, one(1), &words).expect("waits");
        both.add_predicted(Kind::CommitZap, one(0), &words).expect("waits");
        both.add_recorded(Kind::ZapOldestRet, one(1), &words).expect("equal");
        assert!(both.finish().is_err());
        both.add_recorded(Kind::CommitZap, one(0), &words).expect("equal");
        both.finish().expect("nothing waits");
        both.add_recorded(Kind::ZapOldestRet, one(2), &words).expect("waits");
        assert_eq!(both.add_predicted(Kind::ZapOldestRet, one(3), &words), Err(DIFFERENT));
        assert_eq!((both.counts[Kind::ZapOldestRet as usize], both.counts[Kind::CommitZap as usize]), (2, 1));
    }

    #[test]
    fn kinds_must_agree() {
        let mut both = Comparison::default();
        both.add_predicted(Kind::CommitZap, Output::Plain([0; 4]), &SpteWords::default()).expect("waits");
        let other = both.add_recorded(Kind::ZapAllFastEnter, Output::Plain([0; 4]), &SpteWords::default());
        assert_eq!(other, Err(DIFFERENT));
    }
}
