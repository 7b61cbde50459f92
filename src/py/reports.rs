//! What goes back to Python: dicts of the core's reports, under the core's names.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::mmu::{MemoryReport, PageView, Progress, RunOutcome, RunReport, Work};

/// Exact work counters by name, with the weighted sum as `units`.
pub fn work<'py>(py: Python<'py>, work: &Work) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in work.named() {
        dict.set_item(name, value)?;
    }
    dict.set_item("units", work.units())?;
    Ok(dict)
}

/// A finished run.
pub fn run_report<'py>(py: Python<'py>, report: &RunReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("ret", report.ret)?;
    let (outcome, page, step) = match report.outcome {
        RunOutcome::Done => ("done", None, None),
        RunOutcome::Livelock => ("livelock", None, None),
        RunOutcome::Abandoned => ("abandoned", None, None),
        RunOutcome::StaleNext { page, step } => ("stale_next", Some(page), Some(step)),
    };
    dict.set_item("outcome", outcome)?;
    dict.set_item("page", page)?;
    dict.set_item("step", step)?;
    dict.set_item("work", work(py, &report.work)?)?;
    dict.set_item("longest_hold", report.longest_hold)?;
    dict.set_item("shared_units", report.shared_units)?;
    dict.set_item("longest_shared_hold", report.longest_shared_hold)?;
    dict.set_item("lock_breaks", report.lock_breaks)?;
    dict.set_item("nr_zapped", report.nr_zapped)?;
    Ok(dict)
}

/// (run, None) at a lock break, (None, report) at the end.
pub fn progress<'py>(py: Python<'py>, progress: &Progress) -> PyResult<Bound<'py, PyTuple>> {
    match progress {
        // A run that waits, for whatever; the border itself goes on after a slice.
        Progress::LockBreak(run) | Progress::Slice(run) => (Some(run.0), None::<u8>).into_pyobject(py),
        Progress::Done(report) => (None::<u32>, Some(run_report(py, report)?)).into_pyobject(py),
    }
}

/// A shadow page.
pub fn page<'py>(py: Python<'py>, view: &PageView) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", view.id)?;
    dict.set_item("gfn", view.gfn)?;
    dict.set_item("role", view.role)?;
    dict.set_item("level", view.level)?;
    dict.set_item("root_count", view.root_count)?;
    dict.set_item("unsync", view.unsync)?;
    dict.set_item("unsync_children", view.unsync_children)?;
    dict.set_item("valid_gen", view.valid_gen)?;
    dict.set_item("mmio_cached", view.mmio_cached)?;
    dict.set_item("invalid", view.invalid)?;
    dict.set_item("parents", view.parents.clone())?;
    dict.set_item("sptes", view.sptes.clone())?;
    Ok(dict)
}

/// Bytes by kind, with their sum and the bytes of one shadow page.
pub fn memory<'py>(py: Python<'py>, report: &MemoryReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in [
        ("shadow_pages", report.shadow_pages),
        ("tdp_tables", report.tdp_tables),
        ("headers", report.headers),
        ("tables", report.tables),
        ("hash", report.hash),
        ("pte_list_descs", report.pte_list_descs),
        ("rmap", report.rmap),
        ("slots", report.slots),
        ("events", report.events),
        ("other", report.other),
        ("total", report.total()),
        ("bytes_per_page", report.bytes_per_page()),
    ] {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
