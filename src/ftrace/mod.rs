//! Text of the kvmmmu and kvm tracepoints: bytes to events and back.
//!
//! A trace is read line by line from chunks of bytes ([`reader`]), a line is split without copying ([`line`]), its body is
//! matched against the wordings that kernels have had for that event ([`wording`]), and the same table writes it back
//! ([`format`]). [`activity`] and [`named_lines`] pick the events that somebody else works on. Owns no model of anything: it knows words only. Never panics on any bytes, and its memory does not grow
//! with the input. Texts of the kernels v5.0, v5.1-v5.3, v5.4+, v6.1 and v6.12, and of kprobes a recording set-up adds.

pub mod activity;
pub mod columns;
pub mod event;
pub mod format;
#[cfg(test)]
mod hostile;
pub mod kernel;
pub mod line;
mod meanings;
pub mod named_lines;
pub mod page_text;
pub mod parts;
pub mod reader;
mod scan;
pub mod vcpus;
pub mod window;
pub mod wording;

pub use columns::Columns;
pub use event::{Event, MAX_NUMBERS, MAX_TEXTS};
pub use line::Line;
pub use reader::{Reader, Summary};
pub use wording::Kind;
