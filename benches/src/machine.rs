//! What the machine itself costs at this moment: one dependent random read. The rows of random order are little else.

use std::hint::black_box;

use crate::{Timed, permutation, timed};

/// Reads that each wait for the one before, all over a buffer of so many bytes.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a few million at most")]
pub fn random_read(bytes: u64) -> Timed {
    // One word a cache line, each holding the line to read next: one cycle through all of them.
    let lines = bytes / 64;
    let order = permutation(lines);
    let mut buffer = vec![0_u64; lines as usize * 8];
    for (at, &line) in order.iter().enumerate() {
        buffer[line as usize * 8] = order[(at + 1) % order.len()] * 8;
    }
    let count = 1 << 20;
    timed(count, || {
        let mut at = 0;
        for _ in 0..count {
            at = buffer[at as usize];
        }
        black_box(at);
    })
}
