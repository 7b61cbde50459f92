//! Replay of recordings at the speed of the reader: typed events of a trace drive the model, the model's own events are
//! compared with the recorded ones field by field, and text is made nowhere.
//!
//! A *lane* ([`lane`]) goes over the text of a recording until something comes that its caller must decide: an operation
//! of the recorder, a host notifier, the end of the bytes. Which events are inputs, what each of them is to the VM and
//! which operations the caller wants to hear of is data of the caller's ([`rules`]): policy stays in Python's recorders.
//!
//! Owns: the cutting of the text ([`text`]), the markers' texts ([`marker`], [`operations`]), the first pass over a
//! recording ([`survey`]), the meaning of an output ([`output`]) and the pairing of both sides ([`comparison`]), and which
//! host pages a recorder has touched ([`host_pages`]). Knows the reader (`ftrace`) and the facade of the model; neither knows
//! it. Invariant: a lane says *equal* or that it is not sure; whatever it is not sure of, the slow way decides, so that no
//! answer of a replay depends on whether a lane was tried.

pub mod comparison;
mod faults;
pub mod host_pages;
pub mod lane;
pub mod marker;
pub mod operations;
pub mod output;
pub mod rules;
pub mod survey;
mod tdp;
pub mod text;

pub use lane::{Lane, Stop};
pub use rules::{Deed, Kinds, PageWording, Rules, SpteWords};
pub use survey::Survey;

/// Why a lane leaves a recording to the slow way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsure(pub &'static str);
