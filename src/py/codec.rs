//! `_core.Codec`: SPTE words of one kernel and one set of masks, one value at a time.

use pyo3::prelude::*;

/// Placeholder until the core's codec has landed.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct Codec {}
