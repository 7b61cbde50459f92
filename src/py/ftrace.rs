//! `_core.TraceReader`: chunks of a trace in, counts and columns out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::ftrace::columns::{Column, Columns, Table, Timeline};
use crate::ftrace::{Kind, Reader};

/// Reads a trace chunk by chunk. Without columns its memory does not grow.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct TraceReader {
    state: Mutex<State>,
}

struct State {
    reader: Reader,
    columns: Option<Columns>,
}

impl State {
    fn finish(&mut self) {
        let Self { reader, columns } = self;
        reader.finish(&mut |record| {
            if let Some(columns) = columns.as_mut() {
                columns.push(record);
            }
        });
    }
}

impl TraceReader {
    /// Nothing that holds the lock can leave the state half changed in a way that matters: a panic ends the process's
    /// use of this reader anyway.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl TraceReader {
    #[new]
    #[pyo3(signature = (*, columns = false))]
    fn new(columns: bool) -> Self {
        let columns = columns.then(Columns::default);
        Self { state: Mutex::new(State { reader: Reader::new(), columns }) }
    }

    /// Read the next chunk of decompressed bytes with so many threads; the GIL is released. The result is the same.
    #[pyo3(signature = (chunk, threads = 1))]
    fn feed(&self, py: Python<'_>, chunk: &Bound<'_, PyBytes>, threads: usize) {
        let bytes = chunk.as_bytes();
        py.detach(|| {
            let State { reader, columns } = &mut *self.lock();
            reader.feed_parts(bytes, threads, columns);
        });
    }

    /// The trace ends: read what is left of its last line.
    fn finish(&self, py: Python<'_>) {
        py.detach(|| self.lock().finish());
    }

    /// Counts of everything read so far.
    fn summary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = self.lock();
        let read = &state.reader.summary;
        let events = PyDict::new(py);
        for kind in Kind::ALL {
            if read.count(*kind) > 0 {
                events.set_item(kind.name(), read.count(*kind))?;
            }
        }
        let opaque = PyDict::new(py);
        for (name, count) in &read.opaque {
            opaque.set_item(String::from_utf8_lossy(name), count)?;
        }
        let examples = PyList::empty(py);
        for example in &read.examples {
            examples.append((example.line, String::from_utf8_lossy(&example.text)))?;
        }
        let dict = PyDict::new(py);
        dict.set_item("lines", read.lines)?;
        dict.set_item("bytes", read.bytes)?;
        dict.set_item("events", events)?;
        dict.set_item("opaque", opaque)?;
        dict.set_item("not_understood", read.not_understood)?;
        dict.set_item("examples", examples)?;
        dict.set_item("notes", read.notes)?;
        dict.set_item("blank", read.blank)?;
        dict.set_item("overlong", read.overlong)?;
        dict.set_item("first_overlong", read.first_overlong)?;
        dict.set_item("lost_notes", read.lost_notes)?;
        dict.set_item("lost", read.lost)?;
        dict.set_item("raw", read.raw)?;
        dict.set_item("plugin", read.plugin)?;
        dict.set_item("span_ns", read.span_ns)?;
        dict.set_item("kernels", read.eras.iter().map(crate::ftrace::kernel::Era::name).collect::<Vec<_>>())?;
        Ok(dict)
    }

    /// Take the columns read since the last call: a list of tables and the timeline of all events.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyDict>)> {
        let (tables, timeline) = match self.lock().columns.as_mut() {
            Some(columns) => columns.take(),
            None => (Vec::new(), Timeline::default()),
        };
        let list = PyList::empty(py);
        for table in tables {
            list.append(table_dict(py, table)?)?;
        }
        let all = PyDict::new(py);
        all.set_item("line", PyArray1::from_vec(py, timeline.line))?;
        all.set_item("time_ns", PyArray1::from_vec(py, timeline.time_ns))?;
        all.set_item("cpu", PyArray1::from_vec(py, timeline.cpu))?;
        all.set_item("task", PyArray1::from_vec(py, timeline.task))?;
        all.set_item("kind", PyArray1::from_vec(py, timeline.kind))?;
        Ok((list, all))
    }

    /// Names of tasks by the numbers that the timeline holds.
    fn tasks(&self) -> Vec<String> {
        let state = self.lock();
        let names = state.columns.as_ref().map(Columns::tasks).unwrap_or_default();
        names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// Names of the events by the codes that the timeline holds.
    #[staticmethod]
    fn kinds() -> Vec<&'static str> {
        Kind::ALL.iter().map(|kind| kind.name()).collect()
    }
}

fn table_dict(py: Python<'_>, table: Table) -> PyResult<Bound<'_, PyDict>> {
    let columns = PyDict::new(py);
    columns.set_item("line", PyArray1::from_vec(py, table.line))?;
    columns.set_item("time_ns", PyArray1::from_vec(py, table.time_ns))?;
    columns.set_item("cpu", PyArray1::from_vec(py, table.cpu))?;
    columns.set_item("task", PyArray1::from_vec(py, table.task))?;
    for (name, column) in table.fields {
        match column {
            Column::U64(rows) => columns.set_item(name, PyArray1::from_vec(py, rows))?,
            Column::I64(rows) => columns.set_item(name, PyArray1::from_vec(py, rows))?,
            Column::U8(rows) => columns.set_item(name, PyArray1::from_vec(py, rows))?,
            Column::Text { ends, bytes } => {
                columns.set_item(name, (PyArray1::from_vec(py, ends), PyBytes::new(py, &bytes)))?;
            }
        }
    }
    let dict = PyDict::new(py);
    dict.set_item("event", table.kind.name())?;
    dict.set_item("wording", table.wording.kernels)?;
    dict.set_item("columns", columns)?;
    Ok(dict)
}
