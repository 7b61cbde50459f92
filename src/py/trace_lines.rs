//! `_core.TraceActivity` and `_core.NamedLines`: chunks of a trace in, what the Python layer must look at out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::ftrace::activity::{Activity, Names, Passed, Window};
use crate::ftrace::named_lines::{self, Piece};
use crate::ftrace::vcpus::Span;

/// What a lock guards cannot be left half changed in a way that matters: a panic ends the use of its object anyway.
fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The vCPUs of a trace, and the events that its work on the MMU is made of.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct TraceActivity {
    state: Mutex<Activity>,
    /// Names of tasks as Python has them.
    tasks: Mutex<Vec<Py<PyString>>>,
}

fn names(given: &Bound<'_, PyDict>) -> PyResult<Names> {
    fn take<'py, T: for<'a> FromPyObject<'a, 'py, Error = PyErr>>(
        given: &Bound<'py, PyDict>,
        key: &str,
    ) -> PyResult<T> {
        given.as_any().get_item(key)?.extract()
    }
    Ok(Names {
        begins: take(given, "begins")?,
        continues: take(given, "continues")?,
        returns: take(given, "returns")?,
        elsewhere: take(given, "elsewhere")?,
        not_elsewhere: take(given, "not_elsewhere")?,
        of_fault: take(given, "of_fault")?,
        counted: take(given, "counted")?,
        returning_mark: take(given, "returning_mark")?,
        return_of_mark: take(given, "return_of_mark")?,
        ends: take(given, "ends")?,
        recovery_task: take(given, "recovery_task")?,
    })
}

/// From and to in nanoseconds, CPUs, processes.
type Only = (u64, Option<u64>, Option<Vec<u32>>, Option<Vec<u64>>);

#[pymethods]
impl TraceActivity {
    #[new]
    #[pyo3(signature = (*, names, only = None))]
    fn new(names: &Bound<'_, PyDict>, only: Option<Only>) -> PyResult<Self> {
        let window = only.map(|(from_ns, to_ns, cpus, vms)| Window { from_ns, to_ns, cpus, vms });
        let state = Mutex::new(Activity::new(self::names(names)?, window));
        Ok(Self { state, tasks: Mutex::new(Vec::new()) })
    }

    /// Read the next chunk of decompressed bytes with so many threads; the GIL is released.
    ///
    /// Gives the events that work is made of: flags, number of the line, task, nanoseconds, name, text.
    fn feed<'py>(&self, py: Python<'py>, chunk: &Bound<'py, PyBytes>, threads: usize) -> PyResult<Bound<'py, PyList>> {
        let bytes = chunk.as_bytes();
        let passed = py.detach(|| locked(&self.state).feed(bytes, threads.max(1)));
        self.events(py, &passed)
    }

    /// The trace ends: read what is left of its last line.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let passed = py.detach(|| locked(&self.state).finish());
        self.events(py, &passed)
    }

    /// What was read: counts, names of tasks and of reasons, and the columns of waits, runs and halts.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = locked(&self.state);
        let vcpus = &state.vcpus;
        let dict = PyDict::new(py);
        dict.set_item("events", state.events)?;
        dict.set_item("outside", state.outside)?;
        dict.set_item("other_lines", state.other_lines)?;
        dict.set_item("span_ns", state.span_ns)?;
        dict.set_item("cut", vcpus.cut)?;
        dict.set_item("unfinished", vcpus.unfinished())?;
        dict.set_item("has_entries", vcpus.has_entries)?;
        dict.set_item("tasks", state.tasks().collect::<Vec<_>>())?;
        dict.set_item("reasons", vcpus.reasons())?;
        dict.set_item("tasks_of", vcpus.tasks_of.iter().collect::<Vec<_>>())?;
        for (name, spans) in [("waits", &vcpus.waits), ("runs", &vcpus.runs), ("halts", &vcpus.halts)] {
            dict.set_item(name, columns(py, spans)?)?;
        }
        Ok(dict)
    }
}

impl TraceActivity {
    fn events<'py>(&self, py: Python<'py>, passed: &Passed) -> PyResult<Bound<'py, PyList>> {
        let mut tasks = locked(&self.tasks);
        let known = tasks.len();
        let state = locked(&self.state);
        tasks.extend(state.tasks().skip(known).map(|name| PyString::new(py, name).unbind()));
        drop(state);
        let list = PyList::empty(py);
        for event in &passed.events {
            let task = tasks.get(event.task as usize).map(|name| name.bind(py).clone());
            let name = PyString::intern(py, &String::from_utf8_lossy(passed.name(event)));
            let body = PyString::new(py, &String::from_utf8_lossy(passed.body(event)));
            list.append((event.flags, event.number, task, event.time_ns, name, body))?;
        }
        Ok(list)
    }
}

fn columns<'py>(py: Python<'py>, spans: &[Span]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let vcpus = spans.iter().map(|span| span.vcpu.map_or(-1, i64::from));
    dict.set_item("vcpu", PyArray1::from_iter(py, vcpus))?;
    dict.set_item("task", PyArray1::from_iter(py, spans.iter().map(|span| span.task)))?;
    dict.set_item("start_ns", PyArray1::from_iter(py, spans.iter().map(|span| span.start_ns)))?;
    dict.set_item("end_ns", PyArray1::from_iter(py, spans.iter().map(|span| span.end_ns)))?;
    dict.set_item("line", PyArray1::from_iter(py, spans.iter().map(|span| span.line)))?;
    dict.set_item("reason", PyArray1::from_iter(py, spans.iter().map(|span| span.reason)))?;
    Ok(dict)
}

/// Lines of some events, and what stands between them.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct NamedLines {
    state: Mutex<named_lines::NamedLines>,
    names: Vec<Py<PyString>>,
}

#[pymethods]
impl NamedLines {
    #[new]
    #[pyo3(signature = (names, dropped = Vec::new()))]
    #[expect(clippy::needless_pass_by_value, reason = "the macro hands the lists over")]
    fn new(py: Python<'_>, names: Vec<String>, dropped: Vec<String>) -> Self {
        let state = Mutex::new(named_lines::NamedLines::new(&names, &dropped));
        Self { state, names: names.iter().map(|name| PyString::intern(py, name).unbind()).collect() }
    }

    /// The next chunk of decompressed bytes in pieces, as far as its lines have ended.
    ///
    /// A piece is `(text, task, event, event_at, body_at)` for a line of one of the events, a `str` for a line that the
    /// line reader must look at, `(count, bytes)` for lines of anything else, with their ends.
    fn feed<'py>(&self, py: Python<'py>, chunk: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyList>> {
        self.pieces(py, |lines, visit| lines.feed(chunk.as_bytes(), visit))
    }

    /// The text ends: its last line, if it has no line feed.
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.pieces(py, named_lines::NamedLines::finish)
    }
}

impl NamedLines {
    fn pieces<'py>(
        &self,
        py: Python<'py>,
        give: impl FnOnce(&mut named_lines::NamedLines, &mut dyn FnMut(Piece<'_>)),
    ) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        let mut last_task: (Vec<u8>, Bound<'py, PyString>) = (Vec::new(), PyString::new(py, ""));
        let mut result = Ok(());
        let mut visit = |piece: Piece<'_>| {
            let added = self.piece(py, piece, &mut last_task).and_then(|piece| list.append(piece));
            if result.is_ok() {
                result = added;
            }
        };
        give(&mut locked(&self.state), &mut visit);
        result.map(|()| list)
    }

    fn piece<'py>(
        &self,
        py: Python<'py>,
        piece: Piece<'_>,
        last_task: &mut (Vec<u8>, Bound<'py, PyString>),
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(match piece {
            Piece::Others(count, text) => (count, PyBytes::new(py, text)).into_pyobject(py)?.into_any(),
            Piece::Named(name, prefix, line) => {
                let task = &line[prefix.task.0..prefix.task.1];
                if last_task.0 != task {
                    *last_task = (task.to_vec(), PyString::new(py, &String::from_utf8_lossy(task)));
                }
                let text = PyString::new(py, &String::from_utf8_lossy(line)).into_any();
                let name = self.names[name].bind(py).clone().into_any();
                let event_at = prefix.event.0.into_pyobject(py)?.into_any();
                let body_at = prefix.body_at.into_pyobject(py)?.into_any();
                let task = last_task.1.clone().into_any();
                PyTuple::new(py, [text, task, name, event_at, body_at])?.into_any()
            }
            Piece::Unread(line, is_cut) => {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let text = String::from_utf8_lossy(line);
                if is_cut {
                    let limit = crate::ftrace::reader::LINE_MAX;
                    PyString::new(py, &format!("{text} ... (cut: longer than {limit} bytes)")).into_any()
                } else {
                    PyString::new(py, &text).into_any()
                }
            }
        })
    }
}
