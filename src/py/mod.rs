//! The border: convert, release the GIL, lock, call one facade method, map the error.
use pyo3::prelude::*;

/// The native half of `kvm_mmu`.
#[pymodule]
mod _core {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
