//! `_core.Codec`: the words of one kernel and one set of masks, one value or an array at a time.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{arguments, errors};
use crate::mmu::words::spte::masks::is_shadow_present;
use crate::mmu::words::spte::mmio;
use crate::mmu::{Config, Family, GenerationLayout, Kernel, Masks, named_masks};

/// Decoded columns: is MMIO, shadow present, gfn, access, generation.
type Columns<'py> = (
    Bound<'py, PyArray1<bool>>,
    Bound<'py, PyArray1<bool>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
);

/// SPTE words of one kernel, family and physical width.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct Codec {
    masks: Masks,
    layout: GenerationLayout,
}

impl Codec {
    fn decode(&self, spte: u64) -> (bool, bool, u64, u64, u64) {
        let is_mmio = mmio::is_mmio(&self.masks, spte);
        (
            is_mmio,
            is_shadow_present(&self.masks, spte),
            mmio::mmio_gfn(&self.masks, spte),
            mmio::mmio_access(&self.masks, &self.layout, spte).into(),
            mmio::mmio_gen(&self.masks, &self.layout, spte),
        )
    }

    fn encode(&self, py: Python<'_>, gfn: u64, access: u64, generation: u64) -> PyResult<u64> {
        if gfn >> 52 != 0 {
            return Err(errors::usage(py, format!("gfn {gfn:#x}: expected at most 52 bits")));
        }
        let access = u32::try_from(access)
            .ok()
            .filter(|access| *access <= 7)
            .ok_or_else(|| errors::usage(py, format!("access {access}: expected 0 to 7")))?;
        Ok(mmio::make_mmio_spte(&self.masks, &self.layout, gfn, access, generation))
    }
}

#[pymethods]
impl Codec {
    #[new]
    #[pyo3(signature = (*, kernel, family, phys_bits, execonly, generation, l1tf, mmio_caching))]
    #[expect(clippy::too_many_arguments, reason = "the scenario header's keys")]
    fn new(
        py: Python<'_>,
        kernel: &str,
        family: &str,
        phys_bits: i64,
        execonly: bool,
        generation: &Bound<'_, PyAny>,
        l1tf: Option<bool>,
        mmio_caching: bool,
    ) -> PyResult<Self> {
        let core = |error| errors::from_core(py, &error);
        let layout = arguments::generation_layout(generation)?;
        let profile = Kernel::by_name(kernel).map_err(core)?;
        let family = Family::by_name(family).map_err(core)?;
        let config = Config {
            family,
            guest_paging: family != Family::Shadow,
            l1tf: l1tf.unwrap_or(profile.l1tf),
            mmio_caching,
            phys_bits: u8::try_from(phys_bits)
                .map_err(|_| errors::usage(py, format!("phys_bits={phys_bits}: expected 36 to 52")))?,
            execonly,
            generation: layout.clone(),
            ..Config::new(profile)
        };
        config.check().map_err(core)?;
        Ok(Self { masks: Masks::of(profile.spte_layout.layout(), config.host()), layout })
    }

    fn masks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, value) in named_masks(&self.masks) {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    fn make_mmio_spte(&self, py: Python<'_>, gfn: u64, access: u64, generation: u64) -> PyResult<u64> {
        self.encode(py, gfn, access, generation)
    }

    #[expect(clippy::needless_pass_by_value, reason = "arrays from Python")]
    fn make_mmio_sptes<'py>(
        &self,
        py: Python<'py>,
        gfns: PyReadonlyArray1<'py, u64>,
        access: PyReadonlyArray1<'py, u64>,
        generations: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let (gfns, access, generations) = (gfns.as_array(), access.as_array(), generations.as_array());
        if gfns.len() != access.len() || gfns.len() != generations.len() {
            return Err(errors::usage(py, "gfns, access and generations: expected equal lengths"));
        }
        let words = gfns
            .iter()
            .zip(access.iter())
            .zip(generations.iter())
            .map(|((gfn, access), generation)| self.encode(py, *gfn, *access, *generation))
            .collect::<PyResult<Vec<u64>>>()?;
        Ok(PyArray1::from_vec(py, words))
    }

    fn decode_mmio_spte(&self, spte: u64) -> (bool, bool, u64, u64, u64) {
        self.decode(spte)
    }

    #[expect(clippy::needless_pass_by_value, reason = "an array from Python")]
    fn decode_mmio_sptes<'py>(&self, py: Python<'py>, sptes: PyReadonlyArray1<'py, u64>) -> Columns<'py> {
        let rows: Vec<_> = sptes.as_array().iter().map(|spte| self.decode(*spte)).collect();
        (
            PyArray1::from_iter(py, rows.iter().map(|row| row.0)),
            PyArray1::from_iter(py, rows.iter().map(|row| row.1)),
            PyArray1::from_iter(py, rows.iter().map(|row| row.2)),
            PyArray1::from_iter(py, rows.iter().map(|row| row.3)),
            PyArray1::from_iter(py, rows.iter().map(|row| row.4)),
        )
    }

    fn kvm_gen(&self, generation: u64) -> u64 {
        self.layout.compared(generation)
    }

    fn is_fresh(&self, spte: u64, generation: u64) -> bool {
        mmio::is_fresh(&self.masks, &self.layout, spte, generation)
    }
}
