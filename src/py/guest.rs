//! `_core.guest_permissions`: what the walk of a guest's tables says of entries, an array at a time.

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

use super::errors;
use crate::mmu::{GuestMode, GuestWalk, Registers, Wanted};

/// Rows between two looks for Ctrl-C.
const CHUNK: usize = 1 << 18;

/// Error code or -1, level, gfn and entries of each row.
type Columns<'py> =
    (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<u64>>, Bound<'py, PyArray2<u64>>);

/// Rows by column: error code, CR0, CR4, EFER, PKRU, `EFLAGS.AC`, whether the access is implicit, gva.
type Row = [u64; 8];

/// One row; its entries get their accessed and dirty bits where the access is allowed. The error is what to say of it.
fn judge(row: &Row, phys_bits: u8, entries: &mut [u64], known: &mut Known) -> Result<(i64, u8, u64), String> {
    let &[error_code, cr0, cr4, efer, pkru, ac, is_implicit, gva] = row;
    let pkru = u32::try_from(pkru).map_err(|_| format!("pkru {pkru:#x}: expected at most 32 bits"))?;
    let registers = Registers { cr0, cr3: 0, cr4, efer, pkru, ac: ac != 0 };
    let mode = known.mode(&registers, phys_bits);
    let wanted = Wanted { is_implicit: is_implicit != 0, ..Wanted::of_error_code(error_code) };
    let (top, name) = (mode.paging.top_level(), mode.paging.name());
    if usize::from(top) > entries.len() {
        return Err(format!("mode {name} walks {top} entries, the row has {}", entries.len()));
    }
    if mode.paging.entry_size() == 4
        && let Some(entry) = entries[entries.len() - 2..].iter().find(|&&entry| entry >> 32 != 0)
    {
        return Err(format!("entry {entry:#x}: mode p32 has entries of 4 bytes"));
    }
    let walk = GuestWalk::over(&mode, &registers, gva, wanted, entries);
    let Some(code) = walk.error_code else {
        for level in walk.level..=top {
            let at = entries.len() - usize::from(level);
            entries[at] = walk.marked(level);
        }
        return Ok((-1, if top == 0 { 0 } else { walk.level }, walk.gfn.0));
    };
    Ok((i64::try_from(code).unwrap_or(i64::MAX), walk.level, 0))
}

/// The mode of the row before: neighbours mostly have the same.
struct Known(Option<(Registers, GuestMode)>);

impl Known {
    fn mode(&mut self, registers: &Registers, phys_bits: u8) -> GuestMode {
        let key = Registers { pkru: 0, ac: false, ..*registers };
        match self.0 {
            Some((known, mode)) if known == key => mode,
            _ => self.0.insert((key, GuestMode::of(registers, phys_bits, false))).1,
        }
    }
}

/// What the walk of a guest's tables says of each row of entries; the columns are of equal length.
#[pyfunction]
#[pyo3(signature = (entries, columns, phys_bits))]
#[expect(clippy::needless_pass_by_value, reason = "arrays from Python")]
pub fn guest_permissions<'py>(
    py: Python<'py>,
    entries: PyReadonlyArray2<'py, u64>,
    columns: [PyReadonlyArray1<'py, u64>; 8],
    phys_bits: u8,
) -> PyResult<Columns<'py>> {
    let given = entries.as_array();
    let (rows, width) = given.dim();
    if columns.iter().any(|column| column.as_array().len() != rows) {
        return Err(errors::usage(py, "entries and columns: expected equal lengths"));
    }
    let columns = columns.each_ref().map(PyReadonlyArray1::as_array);
    let mut marked: Vec<u64> = given.iter().copied().collect();
    let (mut codes, mut levels, mut gfns) = (vec![-1; rows], vec![0; rows], vec![0; rows]);
    let mut known = Known(None);
    for first in (0..rows).step_by(CHUNK) {
        py.check_signals()?;
        let end = rows.min(first + CHUNK);
        let failed = py.detach(|| {
            for at in first..end {
                let row = columns.each_ref().map(|column| column[at]);
                match judge(&row, phys_bits, &mut marked[at * width..(at + 1) * width], &mut known) {
                    Ok(found) => (codes[at], levels[at], gfns[at]) = found,
                    Err(why) => return Some((at, why)),
                }
            }
            None
        });
        if let Some((at, why)) = failed {
            return Err(errors::usage(py, format!("row {at}: {why}")));
        }
    }
    let marked = PyArray1::from_vec(py, marked).reshape([rows, width])?;
    Ok((PyArray1::from_vec(py, codes), PyArray1::from_vec(py, levels), PyArray1::from_vec(py, gfns), marked))
}
