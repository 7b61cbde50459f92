//! `_core.Mmu`: one VM's MMU behind a lock. Every method converts, releases the GIL, locks, calls one facade method and
//! maps its error.
//!
//! The lock is held while Python code runs in one place: a run that takes long looks for signals. A signal handler that
//! then calls the same VM is refused, for the run holds `mmu_lock`.
//!
//! Long: one method for each of the facade's, and nothing else.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::ThreadId;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::{arguments, errors, reports, restored};
use crate::mmu::{
    self, AccessKind, AccessResult, BatchId, Config, DirtyLogTask, Error, Family, FlagUpdate, GuestWork, HostLookup,
    Kernel, Progress, RunId, SlotChange, SlotSpec, Task, ZapPlan, named_masks, stepped_masks,
};

/// Accesses between two looks for Ctrl-C, and how long another thread waits for the lock at most.
const CHUNK: usize = 1 << 15;

/// Steps of a run between two looks for Ctrl-C: some milliseconds.
const SLICE: u64 = 1 << 21;

/// One row of each result column.
type Columns<'py> = (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i32>>);

/// A memslot: id, base gfn, pages, host address, flags.
type SlotRow = (u32, u64, u64, u64, u32);
/// The slot as it is published, whether vCPUs switch the processor's log, walks of its reverse maps, whether it is flushed
/// behind them.
type FlagUpdateRow = (SlotRow, bool, Vec<String>, bool);
/// Return value, how many words there are, and those that are not zero: the first, how many, what each is.
type DirtyLogSpans = (i32, u64, Vec<(u64, u64, u64)>);

/// A walk over the active list with its next page cached.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct ActiveWalk {
    next: Mutex<Option<u32>>,
    from_tail: bool,
}

/// One VM's MMU. Methods are those of the core's facade.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct Mmu {
    state: Mutex<mmu::Mmu>,
    /// The thread that looks for signals with the lock held.
    attending: Mutex<Option<ThreadId>>,
}

/// The thread's own signal handler called a VM in the middle of its run.
struct Held;

impl Mmu {
    fn over(mut mmu: mmu::Mmu) -> Self {
        mmu.set_slice(SLICE);
        Self { state: Mutex::new(mmu), attending: Mutex::new(None) }
    }

    fn lock(&self) -> Result<MutexGuard<'_, mmu::Mmu>, Held> {
        match self.state.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        if *self.attending.lock().unwrap_or_else(PoisonError::into_inner) == Some(std::thread::current().id()) {
            return Err(Held);
        }
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn call<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut mmu::Mmu) -> T + Send) -> PyResult<T> {
        py.detach(|| self.lock().map(|mut mmu| work(&mut mmu))).map_err(|Held| {
            errors::run_state(
                py,
                "this VM is in the middle of a run: a signal handler cannot use it until the run ends",
            )
        })
    }

    fn try_call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut mmu::Mmu) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        self.call(py, work)?.map_err(|error| errors::from_core(py, &error))
    }

    /// Runs the signal handlers of Python, in the main thread; their exception.
    fn attend(&self) -> PyResult<()> {
        let note = |thread| *self.attending.lock().unwrap_or_else(PoisonError::into_inner) = thread;
        note(Some(std::thread::current().id()));
        let answer = Python::attach(|py| {
            py.check_signals()?;
            Ok(())
        });
        note(None);
        answer
    }

    /// To the next lock break or the end, with a look for signals now and then: an exception gives the run up.
    fn advance<'py>(
        &self,
        py: Python<'py>,
        begin: impl FnOnce(&mut mmu::Mmu) -> Result<Progress, Error> + Send,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let advanced = self.try_call(py, |mmu| {
            let mut progress = begin(mmu)?;
            loop {
                // Also at the end: the interpreter would raise there, and nobody would know of the run that waits.
                let answer = self.attend();
                match (progress, answer) {
                    (Progress::Slice(run) | Progress::LockBreak(run), Err(exception)) => {
                        mmu.abandon(run)?;
                        return Ok(Err(exception));
                    }
                    (Progress::Done(_), Err(exception)) => return Ok(Err(exception)),
                    (Progress::Slice(run), Ok(())) => progress = mmu.resume(run)?,
                    (Progress::LockBreak(_) | Progress::Done(_), Ok(())) => return Ok(Ok(progress)),
                }
            }
        });
        reports::progress(py, &advanced??)
    }
}

/// One access; from privilege level 3 only where the guest's own tables say what a user may do.
fn access(mmu: &mut mmu::Mmu, vcpu: u16, addr: u64, kind: AccessKind, is_user: bool) -> Result<AccessResult, Error> {
    if is_user { mmu.guest(vcpu, GuestWork::Access { gva: addr, kind, is_user }) } else { mmu.access(vcpu, addr, kind) }
}

/// Level, whether writable, and the gfns that the lookup of neighbours finds.
type Found = (u8, bool, Option<Vec<u64>>);

/// What the host's lookup said; without anything it failed.
fn host_lookup(found: Option<Found>, is_written: Option<bool>, frame: Option<u64>) -> HostLookup {
    found.map_or(HostLookup::Retry, |(level, writable, neighbours)| HostLookup::Found {
        level,
        writable,
        neighbours,
        is_written,
        frame,
    })
}

#[pymethods]
impl Mmu {
    #[new]
    #[pyo3(signature = (*, kernel, family, phys_bits, execonly, pml, tdp_level, lpage_level, vcpus, flush_range, generation, plans, events, gfn_hash, max_memslots, l1tf, nx_huge_pages, mmio_caching, guest_paging, tdp_mmu=false, probes=None, format=1))]
    #[expect(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "the scenario header's keys")]
    fn new(
        py: Python<'_>,
        kernel: &str,
        family: &str,
        phys_bits: i64,
        execonly: bool,
        pml: bool,
        tdp_level: i64,
        lpage_level: i64,
        vcpus: i64,
        flush_range: bool,
        generation: &Bound<'_, PyAny>,
        plans: &Bound<'_, PyDict>,
        events: i64,
        gfn_hash: &str,
        max_memslots: u32,
        l1tf: Option<bool>,
        nx_huge_pages: bool,
        mmio_caching: bool,
        guest_paging: bool,
        tdp_mmu: bool,
        probes: Option<bool>,
        format: i64,
    ) -> PyResult<Self> {
        let core = |error: Error| errors::from_core(py, &error);
        let small = |name: &str, value: i64| {
            u8::try_from(value).map_err(|_| errors::usage(py, format!("{name}={value}: expected a small number")))
        };
        let profile = Kernel::by_name(kernel).map_err(core)?;
        let config = Config {
            kernel: profile,
            family: Family::by_name(family).map_err(core)?,
            phys_bits: small("phys_bits", phys_bits)?,
            execonly,
            pml,
            tdp_level: small("tdp_level", tdp_level)?,
            lpage_level: small("lpage_level", lpage_level)?,
            vcpus: u16::try_from(vcpus).map_err(|_| errors::usage(py, format!("vcpus={vcpus}: expected 1 to 4096")))?,
            flush_range,
            generation: arguments::generation_layout(generation)?,
            plans: arguments::plans(plans, profile.plans)?,
            events: arguments::event_mode(py, events)?,
            gfn_hash: arguments::gfn_hash(py, gfn_hash)?,
            max_memslots,
            l1tf: l1tf.unwrap_or(profile.l1tf),
            nx_huge_pages,
            mmio_caching,
            guest_paging,
            tdp_mmu,
            probes: probes.unwrap_or(profile.logs_silent_calls && format == 1),
            format: small("format", format)?,
        };
        Ok(Self::over(mmu::Mmu::new(config).map_err(core)?))
    }

    fn clone(&self, py: Python<'_>) -> PyResult<Self> {
        Ok(Self::over(self.call(py, mmu::Mmu::fork)?))
    }

    fn to_bytes<'py>(&self, py: Python<'py>, note: &str) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.try_call(py, |mmu| mmu.to_bytes(note))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, bytes: &Bound<'_, PyBytes>) -> PyResult<(Self, String)> {
        let bytes = bytes.as_bytes();
        let (mmu, note) = py.detach(|| mmu::Mmu::from_bytes(bytes)).map_err(|error| errors::from_core(py, &error))?;
        Ok((Self::over(mmu), note))
    }

    fn restore(&self, py: Python<'_>, rows: restored::Rows) -> PyResult<()> {
        let found = restored::found(py, rows)?;
        self.try_call(py, |mmu| mmu.restore(&found))
    }

    // -- guest side ---------------------------------------------------------------------------------------------

    #[pyo3(signature = (vcpu, gpa, kind, is_user=false))]
    fn access(&self, py: Python<'_>, vcpu: u16, gpa: u64, kind: &str, is_user: bool) -> PyResult<(u8, u8, i32)> {
        let kind = arguments::access_kind(py, kind)?;
        let done = self.try_call(py, |mmu| access(mmu, vcpu, gpa, kind, is_user))?;
        Ok((done.outcome as u8, done.faults, done.ret))
    }

    #[pyo3(signature = (vcpu, gpas, kind, is_user=false))]
    #[expect(clippy::needless_pass_by_value, reason = "an array from Python")]
    fn access_many<'py>(
        &self,
        py: Python<'py>,
        vcpu: u16,
        gpas: PyReadonlyArray1<'py, u64>,
        kind: &str,
        is_user: bool,
    ) -> PyResult<Columns<'py>> {
        let kind = arguments::access_kind(py, kind)?;
        let gpas = gpas.as_slice().map_err(|_| errors::usage(py, "access_many: gpas is not contiguous"))?;
        let mut outcomes = Vec::with_capacity(gpas.len());
        let mut faults = Vec::with_capacity(gpas.len());
        let mut rets = Vec::with_capacity(gpas.len());
        for chunk in gpas.chunks(CHUNK) {
            // A copy, because other threads may write to the caller's array while the GIL is released.
            let chunk = chunk.to_vec();
            self.try_call(py, |mmu| {
                let mut keep = |done: AccessResult| {
                    outcomes.push(done.outcome as u8);
                    faults.push(done.faults);
                    rets.push(done.ret);
                };
                if !is_user {
                    return mmu.access_many(vcpu, &chunk, kind, keep);
                }
                for &addr in &chunk {
                    keep(access(mmu, vcpu, addr, kind, is_user)?);
                }
                Ok(())
            })?;
            py.check_signals()?;
        }
        Ok((PyArray1::from_vec(py, outcomes), PyArray1::from_vec(py, faults), PyArray1::from_vec(py, rets)))
    }

    fn fault(&self, py: Python<'_>, vcpu: u16, gpa: u64, error_code: u64) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.fault(vcpu, gpa, error_code))
    }

    #[pyo3(signature = (vcpu, gpa, error_code, found, is_written=None, frame=None))]
    #[expect(clippy::too_many_arguments, reason = "those of a Python method")]
    fn fault_with(
        &self,
        py: Python<'_>,
        vcpu: u16,
        gpa: u64,
        error_code: u64,
        found: Option<Found>,
        is_written: Option<bool>,
        frame: Option<u64>,
    ) -> PyResult<i32> {
        let host = host_lookup(found, is_written, frame);
        self.try_call(py, |mmu| mmu.fault_with(vcpu, gpa, error_code, &host))
    }

    #[expect(clippy::needless_pass_by_value, reason = "an array from Python")]
    fn fault_many<'py>(
        &self,
        py: Python<'py>,
        vcpu: u16,
        gpas: PyReadonlyArray1<'py, u64>,
        error_code: u64,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let gpas = gpas.as_slice().map_err(|_| errors::usage(py, "fault_many: gpas is not contiguous"))?;
        let mut rets = Vec::with_capacity(gpas.len());
        for chunk in gpas.chunks(CHUNK) {
            let chunk = chunk.to_vec();
            self.try_call(py, |mmu| {
                for &gpa in &chunk {
                    rets.push(mmu.fault(vcpu, gpa, error_code)?);
                }
                Ok(())
            })?;
            py.check_signals()?;
        }
        Ok(PyArray1::from_vec(py, rets))
    }

    fn enter(&self, py: Python<'_>, vcpu: u16) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.enter(vcpu))
    }

    fn load(&self, py: Python<'_>, vcpu: u16) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.load(vcpu))
    }

    fn unload(&self, py: Python<'_>, vcpu: u16) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.unload(vcpu))
    }

    fn set_smm(&self, py: Python<'_>, vcpu: u16, on: bool) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.set_smm(vcpu, on))
    }

    fn init(&self, py: Python<'_>, vcpu: u16) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.init(vcpu))
    }

    #[pyo3(signature = (vcpu, cr0, cr4, efer, smm))]
    fn set_regs(
        &self,
        py: Python<'_>,
        vcpu: u16,
        cr0: Option<u64>,
        cr4: Option<u64>,
        efer: Option<u64>,
        smm: Option<bool>,
    ) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.set_regs(vcpu, cr0, cr4, efer, smm))
    }

    // -- a guest with page tables of its own --------------------------------------------------------------------

    #[pyo3(signature = (vcpu, work, gva=0, kind="r", is_user=false))]
    fn start_guest<'py>(
        &self,
        py: Python<'py>,
        vcpu: u16,
        work: &str,
        gva: u64,
        kind: &str,
        is_user: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let kind = arguments::access_kind(py, kind)?;
        let work = arguments::guest_work(py, work, gva, kind, is_user)?;
        self.advance(py, |mmu| mmu.start(Task::Guest { vcpu, work }))
    }

    fn take_guest_result(&self, py: Python<'_>) -> PyResult<(u8, u8, i32)> {
        let done = self.try_call(py, mmu::Mmu::take_guest_result)?;
        Ok((done.outcome as u8, done.faults, done.ret))
    }

    /// CR0, CR3, CR4 and EFER.
    fn registers(&self, py: Python<'_>, vcpu: u16) -> PyResult<(u64, u64, u64, u64)> {
        let found = self.try_call(py, |mmu| mmu.registers(vcpu))?;
        Ok((found.cr0, found.cr3, found.cr4, found.efer))
    }

    fn set_pkru(&self, py: Python<'_>, vcpu: u16, pkru: u32) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.set_pkru(vcpu, pkru))
    }

    fn store_regs(&self, py: Python<'_>, vcpu: u16, cr3: Option<u64>, ac: Option<bool>) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.store_regs(vcpu, cr3, ac))
    }

    fn set_cr3(&self, py: Python<'_>, vcpu: u16, cr3: u64) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.set_cr3(vcpu, cr3))
    }

    fn new_pgd(&self, py: Python<'_>, vcpu: u16, cr3: u64) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.new_pgd(vcpu, cr3))
    }

    fn sync_prev_roots(&self, py: Python<'_>, vcpu: u16) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.sync_prev_roots(vcpu))
    }

    fn peek(&self, py: Python<'_>, vcpu: u16, gpa: u64, size: u8) -> PyResult<Option<u64>> {
        self.try_call(py, |mmu| mmu.peek(vcpu, gpa, size))
    }

    fn poke(&self, py: Python<'_>, vcpu: u16, gpa: u64, value: u64, size: u8) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.poke(vcpu, gpa, value, size))
    }

    fn write_guest(&self, py: Python<'_>, vcpu: u16, gpa: u64, value: u64, size: u8) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.write_guest(vcpu, gpa, value, size))
    }

    fn emulate_write(&self, py: Python<'_>, vcpu: u16, gpa: u64, value: u64, size: u8) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.emulate_write(vcpu, gpa, value, size))
    }

    fn track_write(&self, py: Python<'_>, vcpu: u16, gpa: u64, size: u8) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.track_write(vcpu, gpa, size))
    }

    fn emulator_walk(&self, py: Python<'_>, vcpu: u16, gva: u64, error_code: u64) -> PyResult<Option<u64>> {
        self.try_call(py, |mmu| mmu.emulator_walk(vcpu, gva, error_code))
    }

    fn processor_store(&self, py: Python<'_>, vcpu: u16, gva: u64, value: u64, size: u8, user: bool) -> PyResult<bool> {
        self.try_call(py, |mmu| mmu.processor_store(vcpu, gva, value, size, user))
    }

    fn request_sync(&self, py: Python<'_>, vcpu: u16) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.request_sync(vcpu))
    }

    fn unprotect(&self, py: Python<'_>, gfn: u64) -> PyResult<bool> {
        self.try_call(py, |mmu| mmu.unprotect(gfn))
    }

    fn clear_mmio_info(&self, py: Python<'_>, vcpu: u16) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.clear_mmio_info(vcpu))
    }

    // -- memslots and limits ------------------------------------------------------------------------------------

    #[expect(clippy::too_many_arguments, reason = "a slot is five numbers")]
    fn install_slot(
        &self,
        py: Python<'_>,
        as_id: u8,
        generation: u64,
        id: u32,
        base: u64,
        npages: u64,
        hva: u64,
        flags: u32,
    ) -> PyResult<()> {
        let change = SlotChange::Put(SlotSpec { id, base, npages, hva, flags });
        self.try_call(py, |mmu| mmu.install_slot(as_id, generation, change))
    }

    fn remove_slot(&self, py: Python<'_>, as_id: u8, generation: u64, id: u32) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.install_slot(as_id, generation, SlotChange::Remove(id)))
    }

    #[expect(clippy::needless_pass_by_value, reason = "arrays from Python")]
    fn repeat_flag_updates<'py>(
        &self,
        py: Python<'py>,
        as_id: u8,
        updates: [FlagUpdateRow; 2],
        in_flight: PyReadonlyArray1<'py, u64>,
        published: PyReadonlyArray1<'py, u64>,
    ) -> PyResult<()> {
        let update = |((id, base, npages, hva, flags), switches_cpu_log, walks, is_flushed): FlagUpdateRow| {
            let walks = walks.iter().map(|walk| arguments::slot_walk(py, walk)).collect::<PyResult<_>>()?;
            let spec = SlotSpec { id, base, npages, hva, flags };
            PyResult::Ok(FlagUpdate { spec, switches_cpu_log, walks, is_flushed })
        };
        let [first, second] = updates;
        let updates = [update(first)?, update(second)?];
        let pairs = in_flight.as_array().into_iter().copied().zip(published.as_array().into_iter().copied());
        let pairs: Vec<(u64, u64)> = pairs.collect();
        for chunk in pairs.chunks(CHUNK) {
            self.try_call(py, |mmu| mmu.repeat_flag_updates(as_id, &updates, chunk.iter().copied()))?;
            py.check_signals()?;
        }
        Ok(())
    }

    fn set_generation(&self, py: Python<'_>, as_id: u8, generation: u64) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.set_generation(as_id, generation))
    }

    fn generation(&self, py: Python<'_>, as_id: u8) -> PyResult<u64> {
        self.try_call(py, |mmu| mmu.generation(as_id))
    }

    fn slots(&self, py: Python<'_>, as_id: u8) -> PyResult<Vec<SlotRow>> {
        let found = self.try_call(py, |mmu| mmu.slots(as_id))?;
        Ok(found.into_iter().map(|s| (s.id, s.base, s.npages, s.hva, s.flags)).collect())
    }

    fn total_slot_pages(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |mmu| mmu.total_slot_pages())
    }

    fn change_mmu_pages(&self, py: Python<'_>, goal: u64) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.change_mmu_pages(goal))
    }

    fn requested_mmu_pages(&self, py: Python<'_>) -> PyResult<u64> {
        self.call(py, |mmu| mmu.requested_mmu_pages())
    }

    fn set_requested_mmu_pages(&self, py: Python<'_>, n: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_requested_mmu_pages(n))
    }

    fn set_max_raw(&self, py: Python<'_>, n: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_max_raw(n))
    }

    fn shrink(&self, py: Python<'_>, nr_to_scan: u64) -> PyResult<u64> {
        self.call(py, |mmu| mmu.shrink(nr_to_scan))
    }

    fn zap_oldest(&self, py: Python<'_>, nr_to_zap: u64) -> PyResult<u64> {
        self.try_call(py, |mmu| mmu.zap_oldest(nr_to_zap))
    }

    // -- what the policy did, for the event log -----------------------------------------------------------------

    fn push_memslots_updated(&self, py: Python<'_>, generation: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.push_memslots_updated(generation))
    }

    fn push_invalidate_mmio(&self, py: Python<'_>, generation: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.push_invalidate_mmio(generation))
    }

    fn push_flush_shadow_memslot(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, mmu::Mmu::push_flush_shadow_memslot)
    }

    // -- host memory, notifiers, dirty log ----------------------------------------------------------------------

    fn set_host_state(&self, py: Python<'_>, hva: u64, npages: u64, state: &str) -> PyResult<()> {
        let state = arguments::host_state(py, state)?;
        self.call(py, |mmu| mmu.set_host_state(hva, npages, state))
    }

    fn set_host_huge(&self, py: Python<'_>, hva: u64, npages: u64, kind: &str) -> PyResult<()> {
        let kind = arguments::host_huge(py, kind)?;
        self.call(py, |mmu| mmu.set_host_huge(hva, npages, kind))
    }

    fn unmap_hva(&self, py: Python<'_>, start: u64, end: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.unmap_hva(start, end))
    }

    fn start_unmap_hva<'py>(
        &self,
        py: Python<'py>,
        start: u64,
        end: u64,
        may_block: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.start(Task::UnmapHva { start, end, may_block }))
    }

    fn finish_unmap(&self, py: Python<'_>, start: u64, end: u64) -> PyResult<()> {
        self.call(py, |mmu| mmu.finish_unmap(start, end))
    }

    fn start_nx_recovery<'py>(&self, py: Python<'py>, ratio: u64) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.start(Task::NxRecover { ratio }))
    }

    fn set_nx_huge_pages(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_nx_huge_pages(on))
    }

    #[pyo3(signature = (vcpu, gpa, size, found=None, frame=None))]
    fn prefault(
        &self,
        py: Python<'_>,
        vcpu: u16,
        gpa: u64,
        size: u64,
        found: Option<Found>,
        frame: Option<u64>,
    ) -> PyResult<i64> {
        let host = if found.is_none() { HostLookup::Ask } else { host_lookup(found, None, frame) };
        self.try_call(py, |mmu| mmu.prefault(vcpu, gpa, size, &host))
    }

    fn flush_slot(&self, py: Python<'_>, as_id: u8, id: u32) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.flush_slot(as_id, id))
    }

    fn request_cpu_dirty_logging(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, mmu::Mmu::request_cpu_dirty_logging)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a list from Python")]
    fn processor_sets(&self, py: Python<'_>, as_id: u8, gfns: Vec<u64>, is_write: bool) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.processor_sets(as_id, &gfns, is_write))
    }

    fn age_hva(&self, py: Python<'_>, start: u64, end: u64, flush: bool) -> PyResult<i32> {
        self.call(py, |mmu| mmu.age_hva(start, end, flush))
    }

    fn test_age_hva(&self, py: Python<'_>, hva: u64) -> PyResult<i32> {
        self.call(py, |mmu| mmu.test_age_hva(hva))
    }

    fn change_pte(&self, py: Python<'_>, hva: u64, pfn: u64, write: bool) -> PyResult<()> {
        self.try_call(py, |mmu| mmu.change_pte(hva, pfn, write))
    }

    fn get_dirty_log(&self, py: Python<'_>, as_id: u8, id: u32, manual: bool) -> PyResult<DirtyLogSpans> {
        let log = self.try_call(py, |mmu| mmu.get_dirty_log(as_id, id, manual))?;
        Ok((log.ret, log.nr_words, log.spans))
    }

    #[expect(clippy::needless_pass_by_value, reason = "a list from Python")]
    fn clear_dirty_log(
        &self,
        py: Python<'_>,
        as_id: u8,
        id: u32,
        first: u64,
        num: u64,
        mask: Vec<u64>,
    ) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.clear_dirty_log(as_id, id, first, num, &mask))
    }

    fn start_get_dirty_log<'py>(
        &self,
        py: Python<'py>,
        as_id: u8,
        id: u32,
        manual: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.start(Task::DirtyLog { as_id, id, what: DirtyLogTask::Get { manual } }))
    }

    fn take_dirty_log(&self, py: Python<'_>) -> PyResult<DirtyLogSpans> {
        let log = self.call(py, mmu::Mmu::take_dirty_log)?;
        Ok((log.ret, log.nr_words, log.spans))
    }

    fn start_clear_dirty_log<'py>(
        &self,
        py: Python<'py>,
        as_id: u8,
        id: u32,
        first: u64,
        num: u64,
        mask: Vec<u64>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let what = DirtyLogTask::Clear { first, num, mask };
        self.advance(py, |mmu| mmu.start(Task::DirtyLog { as_id, id, what }))
    }

    fn start_dirty_masked<'py>(
        &self,
        py: Python<'py>,
        as_id: u8,
        id: u32,
        offset: u64,
        mask: u64,
    ) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.start(Task::DirtyLog { as_id, id, what: DirtyLogTask::Masked { offset, mask } }))
    }

    #[getter]
    fn eager_split(&self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, |mmu| mmu.is_eager_split())
    }

    fn set_eager_split(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_eager_split(on))
    }

    fn pt_masked(&self, py: Python<'_>, as_id: u8, id: u32, offset: u64, mask: u64, what: &str) -> PyResult<i32> {
        let what = arguments::pt_masked(py, what)?;
        self.try_call(py, |mmu| mmu.pt_masked(as_id, id, offset, mask, what))
    }

    fn flush_slot_tlbs(&self, py: Python<'_>, as_id: u8, id: u32) -> PyResult<bool> {
        self.try_call(py, |mmu| mmu.flush_slot_tlbs(as_id, id))
    }

    fn dirty_masked(&self, py: Python<'_>, as_id: u8, id: u32, offset: u64, mask: u64) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.dirty_masked(as_id, id, offset, mask))
    }

    #[getter]
    fn dirty_log_initially_set(&self, py: Python<'_>) -> PyResult<bool> {
        self.call(py, |mmu| mmu.is_dirty_log_initially_set())
    }

    fn set_dirty_log_initially_set(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_dirty_log_initially_set(on))
    }

    #[pyo3(signature = (as_id, gfn, least_level=1))]
    fn gfn_write_protect(&self, py: Python<'_>, as_id: u8, gfn: u64, least_level: u8) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.gfn_write_protect(as_id, gfn, least_level))
    }

    fn track(&self, py: Python<'_>, as_id: u8, gfn: u64, on: bool) -> PyResult<i32> {
        self.try_call(py, |mmu| mmu.track(as_id, gfn, on))
    }

    // -- what may drop the lock ---------------------------------------------------------------------------------

    #[pyo3(signature = (cond, need, contend=0, alloc=0))]
    fn set_lock_break(&self, py: Python<'_>, cond: u64, need: u64, contend: u64, alloc: u64) -> PyResult<()> {
        self.call(py, |mmu| {
            mmu.set_lock_break(cond, need);
            mmu.set_contended(contend);
            mmu.set_alloc_break(alloc);
        })
    }

    fn push_nested_begin(&self, py: Python<'_>, kind: u8) -> PyResult<()> {
        self.call(py, |mmu| mmu.push_nested_begin(kind))
    }

    fn push_nested_end(&self, py: Python<'_>, kind: u8) -> PyResult<()> {
        self.call(py, |mmu| mmu.push_nested_end(kind))
    }

    #[pyo3(signature = (plan, slot=None, gfn_range=None))]
    fn start_zap<'py>(
        &self,
        py: Python<'py>,
        plan: &Bound<'_, PyAny>,
        slot: Option<(u8, u32)>,
        gfn_range: Option<(u64, u64)>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let plan: ZapPlan = arguments::zap_plan(plan)?;
        self.advance(py, |mmu| mmu.start(Task::Zap { plan, slot, range: gfn_range }))
    }

    fn start_slot_walk<'py>(&self, py: Python<'py>, as_id: u8, id: u32, what: &str) -> PyResult<Bound<'py, PyTuple>> {
        let what = arguments::slot_walk(py, what)?;
        self.advance(py, |mmu| mmu.start(Task::SlotWalk { as_id, id, what }))
    }

    fn start_zap_gfn_range<'py>(&self, py: Python<'py>, start: u64, end: u64) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.start(Task::ZapGfnRange { start, end }))
    }

    fn resume<'py>(&self, py: Python<'py>, run: u32) -> PyResult<Bound<'py, PyTuple>> {
        self.advance(py, |mmu| mmu.resume(RunId(run)))
    }

    fn abandon<'py>(&self, py: Python<'py>, run: u32) -> PyResult<Bound<'py, PyDict>> {
        let report = self.try_call(py, |mmu| mmu.abandon(RunId(run)))?;
        reports::run_report(py, &report)
    }

    fn batch_begin(&self, py: Python<'_>) -> PyResult<u32> {
        self.call(py, |mmu| mmu.batch_begin().0)
    }

    fn batch_prepare(&self, py: Python<'_>, batch: u32, page: u32) -> PyResult<(u32, u32, bool)> {
        let prepared = self.try_call(py, |mmu| mmu.batch_prepare(BatchId(batch), page))?;
        Ok((prepared.nr_children, prepared.nr_zapped, prepared.is_list_unstable))
    }

    fn batch_commit<'py>(&self, py: Python<'py>, batch: u32) -> PyResult<Bound<'py, PyDict>> {
        let report = self.try_call(py, |mmu| mmu.batch_commit(BatchId(batch)))?;
        reports::run_report(py, &report)
    }

    fn active_walk(&self, py: Python<'_>, from_tail: bool) -> PyResult<ActiveWalk> {
        let first = self.call(py, |mmu| mmu.active_begin(from_tail))?;
        Ok(ActiveWalk { next: Mutex::new(first), from_tail })
    }

    fn active_walk_next(&self, py: Python<'_>, walk: &ActiveWalk) -> PyResult<Option<u32>> {
        // Not locked over the call: that waits for the VM, and others may hold that and wait for the GIL.
        let next = || walk.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = *next() else { return Ok(None) };
        let after = self.call(py, |mmu| mmu.active_visit(page, walk.from_tail))?.map_err(|_| {
            errors::stale_next(
                py,
                format!("shadow page {page} has left the active list while the walk had it cached as its next"),
            )
        })?;
        *next() = after;
        Ok(Some(page))
    }

    // -- observers ----------------------------------------------------------------------------------------------

    fn page<'py>(&self, py: Python<'py>, id: u32) -> PyResult<Option<Bound<'py, PyDict>>> {
        let view = self.call(py, |mmu| mmu.page(id))?;
        view.map(|view| reports::page(py, &view)).transpose()
    }

    fn page_facts(&self, py: Python<'_>, id: u32) -> PyResult<[bool; 4]> {
        self.call(py, |mmu| mmu.page_facts(id))?
            .ok_or_else(|| errors::usage(py, format!("shadow page {id}: there is no such page")))
    }

    fn count_mmio_sptes(&self, py: Python<'_>, last_page: u32) -> PyResult<u64> {
        self.call(py, |mmu| mmu.count_mmio_sptes(last_page))
    }

    fn count_mappings(&self, py: Python<'_>, as_id: u8, id: u32, last_page: u32) -> PyResult<u64> {
        self.try_call(py, |mmu| mmu.count_mappings(as_id, id, last_page))
    }

    #[getter]
    fn nr_tdp_tables(&self, py: Python<'_>) -> PyResult<(usize, u64)> {
        self.call(py, |mmu| mmu.nr_tdp_tables())
    }

    fn tdp_tables(&self, py: Python<'_>) -> PyResult<Vec<(u32, u8, bool)>> {
        self.call(py, |mmu| mmu.tdp_tables())
    }

    #[getter]
    fn paused_runs(&self, py: Python<'_>) -> PyResult<usize> {
        self.call(py, |mmu| mmu.nr_paused_runs())
    }

    fn active_page_ids(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.call(py, |mmu| mmu.active_page_ids())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, used, max) = self.call(py, |mmu| (mmu.stats(), mmu.used_mmu_pages(), mmu.max_mmu_pages()))?;
        let dict = PyDict::new(py);
        for (name, value) in stats.named() {
            dict.set_item(name, value)?;
        }
        dict.set_item("used", used)?;
        dict.set_item("max", max)?;
        Ok(dict)
    }

    fn work<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let work = self.call(py, |mmu| mmu.work())?;
        reports::work(py, &work)
    }

    fn masks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let masks = self.call(py, |mmu| named_masks(mmu.masks()))?;
        let dict = PyDict::new(py);
        for (name, value) in masks {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    fn stepped_masks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (masks, is_made) = self.call(py, |mmu| {
            let has_memtype = mmu.config().kernel.retry_before_pin;
            (stepped_masks(mmu.masks(), has_memtype), mmu.masks().mmio_mask != 0)
        })?;
        let dict = PyDict::new(py);
        for (name, value) in masks.into_iter().flatten() {
            dict.set_item(name, format!("{value:#x}"))?;
        }
        dict.set_item("mmio_caching", u8::from(is_made))?;
        Ok(dict)
    }

    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.call(py, |mmu| mmu.config().clone())?;
        let dict = PyDict::new(py);
        dict.set_item("family", config.family.name())?;
        dict.set_item("phys_bits", config.phys_bits)?;
        dict.set_item("execonly", u8::from(config.execonly))?;
        dict.set_item("pml", u8::from(config.pml))?;
        dict.set_item("tdp_level", config.tdp_level)?;
        dict.set_item("lpage_level", config.lpage_level)?;
        dict.set_item("vcpus", config.vcpus)?;
        dict.set_item("flush_range", u8::from(config.flush_range))?;
        dict.set_item("l1tf", u8::from(config.l1tf))?;
        dict.set_item("nx_huge_pages", u8::from(config.nx_huge_pages))?;
        dict.set_item("mmio_caching", u8::from(config.mmio_caching))?;
        dict.set_item("guest_paging", u8::from(config.guest_paging))?;
        dict.set_item("tdp_mmu", u8::from(config.tdp_mmu))?;
        dict.set_item("probes", u8::from(config.probes))?;
        Ok(dict)
    }

    #[getter]
    fn family(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.call(py, |mmu| mmu.config().family.name())
    }

    #[getter]
    fn nr_vcpus(&self, py: Python<'_>) -> PyResult<u16> {
        self.call(py, |mmu| mmu.config().vcpus)
    }

    #[getter]
    fn nr_active_pages(&self, py: Python<'_>) -> PyResult<usize> {
        self.call(py, |mmu| mmu.nr_active_pages())
    }

    fn events_json(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| mmu.events_json())
    }

    fn events_json_traced(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| mmu.events_json_traced())
    }

    fn events_json_rich(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| mmu.events_json_rich())
    }

    fn clear_events(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, mmu::Mmu::clear_events)
    }

    fn state_json(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| mmu.state_json())
    }

    fn digest(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| mmu.digest())
    }

    fn fingerprint(&self, py: Python<'_>) -> PyResult<String> {
        self.call(py, |mmu| format!("{:032x}", mmu.fingerprint()))
    }

    fn audit(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, String)>> {
        let found = self.call(py, |mmu| mmu.audit())?;
        Ok(found.into_iter().map(|found| (found.invariant, found.detail)).collect())
    }

    fn set_judged(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.call(py, |mmu| mmu.set_judged(on))
    }

    fn judge(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, String)>> {
        let found = self.call(py, |mmu| mmu.judge())?;
        Ok(found.into_iter().map(|found| (found.invariant, found.detail)).collect())
    }

    fn begin_update(&self, py: Python<'_>, as_id: u8, id: u32, takes: bool) -> PyResult<()> {
        self.call(py, |mmu| mmu.begin_update(as_id, id, takes))
    }

    fn end_update(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, crate::mmu::Mmu::end_update)
    }

    fn memory<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = self.call(py, |mmu| mmu.memory())?;
        reports::memory(py, &report)
    }
}
