//! SPTE words: layout, run-time masks, pure construction, MMIO codec. Knows no structure.

pub mod layout;
pub mod make;
pub mod masks;
pub mod mmio;
