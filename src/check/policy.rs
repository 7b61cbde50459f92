//! A generation policy as data: how a generation is marked, stepped and found to wrap. A ring of few bits is the world's
//! choice; a policy of a caller's own comes as a table of its first updates.

/// One update of a table: the generation before, in flight, after, and whether that is a wrap.
pub type Row = (u64, u64, u64, bool);

/// How generations step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The mark of an update in flight.
    pub mark: u64,
    /// The mark is added, and not set.
    pub is_mark_added: bool,
    /// What an update adds.
    pub step: u64,
    /// A wrap is a generation without any of these bits.
    pub wrap_mask: u64,
    /// The wrap is looked for before the generation is visible.
    pub is_checked_first: bool,
    /// Updates one by one, in place of the above.
    pub table: Vec<Row>,
}

impl Policy {
    /// The update of a generation: in flight, after, whether it wraps; nothing where a table ends.
    #[must_use]
    pub fn update(&self, generation: u64) -> Option<(u64, u64, bool)> {
        if !self.table.is_empty() {
            let row = self.table.iter().find(|row| row.0 == generation)?;
            return Some((row.1, row.2, row.3));
        }
        let in_flight = if self.is_mark_added { generation.wrapping_add(self.mark) } else { generation | self.mark };
        let next = generation.wrapping_add(self.step);
        Some((in_flight, next, next & self.wrap_mask == 0))
    }
}
