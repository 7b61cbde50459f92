//! The rows and the facts as Python values.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::errors;
use crate::kernels::{FACTS, Kernel, Value, resolve};
use crate::mmu::ZapPlan;

fn value(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        Value::Bool(is_so) => is_so.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => number.into_pyobject(py)?.into_any(),
        Value::Word(word) => word.into_pyobject(py)?.into_any(),
    })
}

fn row<'py>(py: Python<'py>, kernel: &Kernel) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", kernel.name)?;
    dict.set_item("release", kernel.release)?;
    dict.set_item("title", kernel.title)?;
    let plans = PyDict::new(py);
    let chosen = kernel.plans;
    for (event, plan) in [
        ("wrap", chosen.wrap),
        ("slot_removal", chosen.slot_removal),
        ("teardown", chosen.teardown),
        ("flush_all", chosen.flush_all),
    ] {
        let named = ZapPlan::NAMED.iter().find(|(_, candidate)| *candidate == plan);
        plans.set_item(event, named.map(|(name, _)| *name))?;
    }
    dict.set_item("plans", plans)?;
    let facts = PyDict::new(py);
    for (fact, held) in FACTS.iter().zip(kernel.values()) {
        facts.set_item(fact.name, value(py, held)?)?;
    }
    dict.set_item("facts", facts)?;
    Ok(dict)
}

/// Every row, oldest first: name, release, title, plans by event, facts by name.
#[pyfunction]
pub fn kernels(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let rows = Kernel::ALL.iter().map(|kernel| row(py, kernel)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, rows)
}

/// Every fact: name, rule, commit, cve, known, words.
#[pyfunction]
pub fn facts(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let described = FACTS.iter().map(|fact| {
        let dict = PyDict::new(py);
        dict.set_item("name", fact.name)?;
        dict.set_item("rule", fact.rule)?;
        dict.set_item("commit", fact.commit)?;
        dict.set_item("cve", fact.cve)?;
        dict.set_item("known", fact.known.word())?;
        dict.set_item("words", fact.words.to_vec())?;
        Ok(dict)
    });
    PyList::new(py, described.collect::<PyResult<Vec<_>>>()?)
}

/// The name of the row that a text means, and what was assumed ("" if nothing was).
#[pyfunction]
pub fn resolve_kernel(py: Python<'_>, text: &str) -> PyResult<(&'static str, String)> {
    let found = resolve(text)
        .ok_or_else(|| errors::from_core(py, &crate::mmu::Error::UnknownKernel(text.chars().take(80).collect())))?;
    Ok((found.kernel.name, found.assumed))
}
