//! The rows and the facts as Python values.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::{arguments, errors};
use crate::kernels::{FACTS, FaultOrder, Kernel, Value, resolve};
use crate::mmu::{PLAN_FIELDS, ZapPlan};

fn value(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        Value::Bool(is_so) => is_so.into_pyobject(py)?.to_owned().into_any(),
        Value::Number(number) => number.into_pyobject(py)?.into_any(),
        Value::Word(word) => word.into_pyobject(py)?.into_any(),
    })
}

fn row<'py>(py: Python<'py>, kernel: &Kernel) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", kernel.text())?;
    dict.set_item("release", kernel.release)?;
    dict.set_item("title", kernel.title)?;
    let (plans, tdp_plans) = (PyDict::new(py), PyDict::new(py));
    let chosen = kernel.plans;
    let name_of =
        |plan: ZapPlan| ZapPlan::NAMED.iter().find(|(_, candidate, _)| *candidate == plan).map(|(name, ..)| *name);
    for (event, plan) in [
        ("wrap", chosen.wrap),
        ("slot_removal", chosen.slot_removal),
        ("teardown", chosen.teardown),
        ("flush_all", chosen.flush_all),
    ] {
        plans.set_item(event, name_of(plan))?;
        if kernel.has_tdp_mmu {
            tdp_plans.set_item(event, plan.on_roots().and_then(name_of))?;
        }
    }
    dict.set_item("plans", plans)?;
    dict.set_item("tdp_plans", tdp_plans)?;
    dict.set_item("fault_order", FaultOrder::of(kernel).steps().iter().map(|step| step.word()).collect::<Vec<_>>())?;
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

/// The text of the kernel that a text means, and what was assumed ("" if nothing was).
#[pyfunction]
pub fn resolve_kernel(py: Python<'_>, text: &str) -> PyResult<(String, String)> {
    let kernel = Kernel::by_name(text).map_err(|error| errors::from_core(py, &error))?;
    let assumed = text.split(':').next().and_then(resolve).map_or_else(String::new, |row| row.assumed);
    Ok((kernel.text(), assumed))
}

/// One row, also one of which facts were changed (`v6.12:stale_test=before_reclaim`).
#[pyfunction]
pub fn kernel_row<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyDict>> {
    row(py, &Kernel::by_name(text).map_err(|error| errors::from_core(py, &error))?)
}

fn words<'py>(py: Python<'py>, plan: &ZapPlan) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (field, word) in plan.words() {
        dict.set_item(field, word)?;
    }
    Ok(dict)
}

/// The fields of a plan's text, in its order, each with the words it takes, the default first.
#[pyfunction]
pub fn plan_fields() -> Vec<(&'static str, Vec<&'static str>)> {
    PLAN_FIELDS.iter().map(|(field, words)| (*field, words.to_vec())).collect()
}

/// The named plans: name, fields with their words, a sentence.
#[pyfunction]
pub fn named_plans(py: Python<'_>) -> PyResult<Vec<(&'static str, Bound<'_, PyDict>, &'static str)>> {
    ZapPlan::NAMED.iter().map(|(name, plan, said)| Ok((*name, words(py, plan)?, *said))).collect()
}

/// The plan of some fields and words, with every field; refused where a walk has no use for one.
#[pyfunction]
pub fn plan_words<'py>(py: Python<'py>, given: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
    words(py, &arguments::plan_of(py, given)?)
}
