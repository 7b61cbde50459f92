//! The border's part of the feature `mutants`: one planted fault is chosen when the module is loaded, by the environment
//! variable `KVM_MMU_MUTANT`, and `_core.MUTANTS` names all. No other build has this file.

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

use crate::mmu::words::mutants;

/// Names the mutants, and chooses the one asked for.
pub fn announce(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MUTANTS", mutants::NAMES.to_vec())?;
    match std::env::var("KVM_MMU_MUTANT") {
        Ok(name) if !mutants::choose(&name) => {
            Err(PyImportError::new_err(format!("KVM_MMU_MUTANT={name}: no such mutant")))
        }
        _ => Ok(()),
    }
}
