//! The border: convert, release the GIL, lock, call one facade method, map the error. Nothing is decided here.

mod arguments;
mod check;
mod codec;
mod errors;
mod ftrace;
mod guest;
mod kernels;
mod machine;
#[cfg(feature = "mutants")]
mod mutants;
mod replay;
mod reports;
mod restored;
mod trace_lines;

use pyo3::prelude::*;

/// The native half of `kvm_mmu`: the core behind a lock, and the codec over arrays.
#[pymodule]
mod _core {
    #[pymodule_export]
    use super::check::{Search, invariants, properties};
    #[pymodule_export]
    use super::codec::Codec;
    #[pymodule_export]
    use super::ftrace::TraceReader;
    #[pymodule_export]
    use super::machine::{ActiveWalk, Mmu};
    #[pymodule_export]
    use super::replay::{ReplayLane, ReplaySurvey, Unsure};
    #[pymodule_export]
    use super::trace_lines::{NamedLines, TraceActivity};

    #[pymodule_export]
    use super::guest::guest_permissions;

    #[pymodule_export]
    use super::kernels::{facts, kernel_row, kernels, named_plans, plan_fields, plan_words, resolve_kernel};

    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Nothing without the feature: the macro wants the function in every build.
    #[pymodule_init]
    #[cfg_attr(not(feature = "mutants"), expect(clippy::unnecessary_wraps, reason = "the macro's signature"))]
    fn announce_mutants(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        #[cfg(feature = "mutants")]
        super::mutants::announce(module)?;
        let _ = module;
        Ok(())
    }
}
