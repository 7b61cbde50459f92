//! Words: encodings, plans and configuration. They know no structures.

pub mod access;
pub mod addr;
pub mod config;
pub mod error;
pub mod generation;
pub mod guest_mode;
pub mod guest_permission;
pub mod level;
pub mod mutants;
pub mod plan;
mod plan_text;
pub mod role;
pub mod spte;
pub mod stats;
pub mod views;
pub mod work;
