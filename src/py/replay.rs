//! `_core.ReplayLane` and `_core.ReplaySurvey`: the passes over a recording that no Python looks at line by line.
//!
//! The GIL is released while a lane runs. `Unsure` says that a lane leaves the recording to the slow way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::errors::usage;
use super::machine::Mmu;
use crate::ftrace::Kind;
use crate::replay::operations::Operations;
use crate::replay::rules::KINDS;
use crate::replay::{self, Deed, Kinds, Lane, PageWording, Rules, SpteWords, Stop, Survey};

pyo3::create_exception!(kvm_mmu._core, Unsure, PyException, "A lane leaves a recording to the slow way; why.");

fn unsure(why: replay::Unsure) -> PyErr {
    Unsure::new_err(why.0)
}

fn operations_of(texts: Option<&Bound<'_, PyBytes>>) -> PyResult<Option<Operations>> {
    texts.map(|texts| Operations::new(texts.as_bytes().to_vec())).transpose().map_err(unsure)
}

fn field<'py, T>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let value = dict.get_item(key)?.ok_or_else(|| usage(dict.py(), format!("rules of a lane: no {key:?}")))?;
    value.extract().map_err(|_| usage(dict.py(), format!("rules of a lane: {key:?} is {value}")))
}

fn inner<'py>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<Bound<'py, PyDict>> {
    let found = dict.get_item(key)?.and_then(|value| value.cast_into::<PyDict>().ok());
    found.ok_or_else(|| usage(dict.py(), format!("rules of a lane: {key:?}: expected a dict")))
}

/// The kind of an event's name; names of no known event are passed over, as no line can have them.
fn kind_of(name: &str) -> Option<Kind> {
    Kind::by_name(name.as_bytes())
}

fn kinds(dict: &Bound<'_, PyDict>, key: &str) -> PyResult<Kinds> {
    let mut found = Kinds::NONE;
    for name in field::<Vec<String>>(dict, key)? {
        if let Some(kind) = kind_of(&name) {
            found.insert(kind);
        }
    }
    Ok(found)
}

fn bytes(texts: Vec<String>) -> Vec<Vec<u8>> {
    texts.into_iter().map(String::into_bytes).collect()
}

fn words(dict: &Bound<'_, PyDict>, key: &str) -> PyResult<SpteWords> {
    let dict = inner(dict, key)?;
    Ok(SpteWords {
        accessed: field(&dict, "accessed")?,
        dirty: field(&dict, "dirty")?,
        host_writable: field(&dict, "host_writable")?,
        mmio: field(&dict, "mmio")?,
        executable: field(&dict, "executable")?,
        user: field(&dict, "user")?,
    })
}

fn wording(dict: &Bound<'_, PyDict>) -> PyResult<PageWording> {
    let dict = inner(dict, "wording")?;
    let access: Vec<(u32, char)> = field(&dict, "access")?;
    Ok(PageWording {
        has_gen: field(&dict, "has_gen")?,
        gpte_bytes: field(&dict, "gpte_bytes")?,
        bit4_is_four: field(&dict, "bit4_is_four")?,
        access: access.into_iter().map(|(bit, letter)| (bit, u8::try_from(letter).unwrap_or(0))).collect(),
        invalid: field(&dict, "invalid")?,
        flags: field(&dict, "flags")?,
        error_mask: field(&dict, "error_mask")?,
        try_unsync_inverted: field(&dict, "try_unsync_inverted")?,
        says_places: field(&dict, "says_places")?,
        fast_by_writable: field(&dict, "fast_by_writable")?,
    })
}

fn rules(dict: &Bound<'_, PyDict>) -> PyResult<Rules> {
    let mut deeds = [Deed::Ignored; KINDS];
    for (name, deed) in field::<Vec<(String, String)>>(dict, "deeds")? {
        let deed =
            Deed::by_name(&deed).ok_or_else(|| usage(dict.py(), format!("rules of a lane: no deed {deed:?}")))?;
        if let Some(kind) = kind_of(&name) {
            deeds[kind as usize] = deed;
        }
    }
    let tasks: Vec<(String, u16)> = field(dict, "tasks")?;
    let (numeric, fields): (String, Vec<(String, Option<u64>)>) = field(dict, "numeric")?;
    Ok(Rules {
        deeds,
        compared: kinds(dict, "compared")?,
        told: kinds(dict, "told")?,
        numbered: field(dict, "numbered")?,
        heard: bytes(field(dict, "heard")?),
        numeric: (
            numeric.into_bytes(),
            fields.into_iter().map(|(name, lacking)| (name.into_bytes(), lacking)).collect(),
        ),
        enters: bytes(field(dict, "enters")?),
        news_field: field::<String>(dict, "news_field")?.into_bytes(),
        enter_loads: field(dict, "enter_loads")?,
        is_whole_fault: field(dict, "is_whole_fault")?,
        qualification: field(dict, "qualification")?,
        misconfiguration: field(dict, "misconfiguration")?,
        tasks: tasks.into_iter().map(|(task, vcpu)| (task.into_bytes(), vcpu)).collect(),
        answers: field(dict, "answers")?,
        answer_words: words(dict, "answer_words")?,
        level_max: field(dict, "level_max")?,
        publication_step: field(dict, "publication_step")?,
        refill_pages: field(dict, "refill_pages")?,
        group: field::<u64>(dict, "group")?.max(1),
        is_tdp: field(dict, "is_tdp")?,
        has_nx_huge_pages: field(dict, "has_nx_huge_pages")?,
        has_pml: field(dict, "has_pml")?,
        yields_unseen: field(dict, "yields_unseen")?,
        notes: bytes(field(dict, "notes")?),
        words: words(dict, "words")?,
        wording: wording(dict)?,
    })
}

/// What a stop is called, its event's name, its text, and numbers.
type StopRow<'py> = (&'static str, &'static str, Option<Bound<'py, PyBytes>>, Vec<u64>);

fn stop_row(py: Python<'_>, stop: Stop) -> StopRow<'_> {
    match stop {
        Stop::NeedText => ("text", "", None, Vec::new()),
        Stop::Ended => ("ended", "", None, Vec::new()),
        Stop::Quiet => ("quiet", "", None, Vec::new()),
        Stop::Operation(text) => ("operation", "", Some(PyBytes::new(py, &text)), Vec::new()),
        Stop::Input { name, body } => ("input", name, Some(PyBytes::new(py, &body)), Vec::new()),
        Stop::Numbers(numbers) => ("numbers", "", None, numbers),
        Stop::Fault(gpa, error_code) => ("fault", "", None, vec![gpa, error_code]),
    }
}

/// The second pass: inputs drive a model, outputs are compared.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct ReplayLane {
    state: Mutex<Lane>,
}

impl ReplayLane {
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl ReplayLane {
    #[new]
    #[pyo3(signature = (rules, operations = None))]
    fn new(rules: &Bound<'_, PyDict>, operations: Option<&Bound<'_, PyBytes>>) -> PyResult<Self> {
        let lane = Lane::new(self::rules(rules)?, operations_of(operations)?);
        Ok(Self { state: Mutex::new(lane) })
    }

    fn feed(&self, py: Python<'_>, chunk: &Bound<'_, PyBytes>) {
        let bytes = chunk.as_bytes();
        py.detach(|| self.lane().feed(bytes));
    }

    fn finish(&self) {
        self.lane().finish();
    }

    fn run<'py>(&self, py: Python<'py>, mmu: &Mmu) -> PyResult<StopRow<'py>> {
        let stop = mmu.call(py, |mmu| self.lane().run(mmu))?.map_err(unsure)?;
        Ok(stop_row(py, stop))
    }

    fn take(&self, py: Python<'_>, mmu: &Mmu, is_expected: bool) -> PyResult<()> {
        mmu.call(py, |mmu| self.lane().take(mmu, is_expected))?.map_err(unsure)?;
        Ok(())
    }

    fn begin_vm(&self) {
        self.lane().begin_vm();
    }

    fn add_backing(&self, first: u64, npages: u64, thp: bool, is_written: bool) {
        self.lane().pages.add(first, npages, thp, is_written);
    }

    #[setter]
    fn set_waiting(&self, on: bool) {
        self.lane().is_waiting = on;
    }

    #[setter]
    fn set_hides_flushes(&self, on: bool) {
        self.lane().hides_flushes = on;
    }

    fn add_hugetlb(&self, first: u64, npages: u64) {
        self.lane().pages.add_hugetlb(first, npages);
    }

    fn unmap_pages(&self, py: Python<'_>, mmu: &Mmu, first: u64, end: u64) -> PyResult<()> {
        mmu.call(py, |mmu| self.lane().unmap_pages(mmu, first, end))
    }

    fn touch(&self, py: Python<'_>, mmu: &Mmu, page: u64) -> PyResult<()> {
        mmu.call(py, |mmu| self.lane().touch(mmu, page))
    }

    fn set_odd_pages(&self, ranges: Vec<(u64, u64)>) {
        self.lane().odd_pages = ranges;
    }

    #[getter]
    fn current(&self) -> u16 {
        self.lane().current
    }

    #[setter]
    fn set_current(&self, vcpu: u16) {
        self.lane().current = vcpu;
    }

    #[getter]
    fn begun(&self) -> bool {
        self.lane().is_begun
    }

    #[setter]
    fn set_begun(&self, on: bool) {
        self.lane().is_begun = on;
    }

    #[getter]
    fn announced(&self) -> bool {
        self.lane().is_announced
    }

    #[setter]
    fn set_announced(&self, on: bool) {
        self.lane().is_announced = on;
    }

    #[getter]
    fn last_number(&self) -> i64 {
        self.lane().last_number
    }

    #[setter]
    fn set_last_number(&self, number: i64) {
        self.lane().last_number = number;
    }

    #[getter]
    fn pending(&self) -> (u64, u8) {
        self.lane().pending
    }

    #[setter]
    fn set_pending(&self, pending: (u64, u8)) {
        self.lane().pending = pending;
    }

    #[getter]
    fn predicted(&self) -> u64 {
        self.lane().nr_predicted
    }

    #[getter]
    fn answers(&self) -> u64 {
        self.lane().nr_answers
    }

    fn equal_outputs(&self) -> PyResult<Vec<(&'static str, u64)>> {
        self.lane().equal_outputs().map_err(unsure)
    }
}

/// The first pass: which events there are, how many vCPUs, which task is which.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct ReplaySurvey {
    state: Mutex<Survey>,
}

impl ReplaySurvey {
    fn survey(&self) -> MutexGuard<'_, Survey> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl ReplaySurvey {
    #[new]
    #[pyo3(signature = (*, numbered, operations = None, tdp = false))]
    fn new(numbered: bool, operations: Option<&Bound<'_, PyBytes>>, tdp: bool) -> PyResult<Self> {
        let survey = Survey::new(numbered, operations_of(operations)?);
        Ok(Self { state: Mutex::new(if tdp { survey.of_tdp() } else { survey }) })
    }

    fn feed(&self, py: Python<'_>, chunk: &Bound<'_, PyBytes>) -> PyResult<()> {
        let bytes = chunk.as_bytes();
        py.detach(|| self.survey().feed(bytes)).map_err(unsure)
    }

    fn finish(&self) -> PyResult<()> {
        self.survey().finish().map_err(unsure)
    }

    #[getter]
    fn events(&self) -> Vec<&'static str> {
        let survey = self.survey();
        Kind::ALL.iter().filter(|kind| survey.seen.has(**kind)).map(|kind| kind.name()).collect()
    }

    #[getter]
    fn highest_vcpu(&self) -> u64 {
        self.survey().highest_vcpu
    }

    #[getter]
    fn tasks(&self) -> Vec<(String, u64)> {
        let named = |(task, vcpu): (Vec<u8>, u64)| (String::from_utf8_lossy(&task).into_owned(), vcpu);
        self.survey().tasks().into_iter().map(named).collect()
    }
}
