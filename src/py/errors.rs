//! The only place where the core's errors become Python exceptions (`kvm_mmu.errors`).

use pyo3::PyErr;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::mmu::Error;

fn class(py: Python<'_>, name: &'static str, cell: &'static PyOnceLock<Py<PyType>>) -> PyResult<Py<PyType>> {
    cell.get_or_try_init(py, || Ok(py.import("kvm_mmu.errors")?.getattr(name)?.cast_into::<PyType>()?.unbind()))
        .map(|found| found.clone_ref(py))
}

fn raise(py: Python<'_>, name: &'static str, cell: &'static PyOnceLock<Py<PyType>>, text: String) -> PyErr {
    match class(py, name, cell) {
        Ok(class) => PyErr::from_type(class.into_bound(py), text),
        Err(error) => error,
    }
}

static USAGE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static RUN_STATE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static SNAPSHOT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static STALE_NEXT: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// An argument outside what the model accepts.
pub fn usage(py: Python<'_>, text: impl Into<String>) -> PyErr {
    raise(py, "UsageError", &USAGE, text.into())
}

/// A run, batch or walk used after its end.
pub fn run_state(py: Python<'_>, text: impl Into<String>) -> PyErr {
    raise(py, "RunStateError", &RUN_STATE, text.into())
}

/// The next page of a walk has left the list.
pub fn stale_next(py: Python<'_>, text: impl Into<String>) -> PyErr {
    raise(py, "StaleNextError", &STALE_NEXT, text.into())
}

/// A refused facade call as an exception.
pub fn from_core(py: Python<'_>, error: &Error) -> PyErr {
    match error {
        Error::Run(_) | Error::Batch(_) => run_state(py, error.to_string()),
        Error::Saved(_) => raise(py, "SnapshotError", &SNAPSHOT, error.to_string()),
        Error::KernelBug { line, .. } => {
            let stopped = usage(py, error.to_string());
            let place = format!("mmu.c:{line} gfn != kvm_mmu_page_get_gfn(sp, index)");
            match stopped.value(py).setattr("where", place) {
                Ok(()) => stopped,
                Err(other) => other,
            }
        }
        _ => usage(py, error.to_string()),
    }
}
