//! `_core.Search`: a world, searched exhaustively level by level or at random round by round. The GIL is released; signals
//! are looked for by the calling thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::machine::Mmu;
use super::{arguments, errors};
use crate::check::bfs::{Bfs, Found};
use crate::check::policy::{Policy, Row};
use crate::check::random::{Random, replay, waits};
use crate::check::state::GOALS;
use crate::check::world::{Action, Choice, World};
use crate::mmu::{self, HostHuge, HostState, Premises};

/// An operation: its word, numbers and words.
type Operation = (String, Vec<u64>, String);
/// Property, detail, owner, path.
type FoundRow = (&'static str, String, &'static str, Vec<(u8, u8)>);

/// A search of one world.
#[pyclass(frozen, module = "kvm_mmu._core")]
pub struct Search {
    start: Mutex<mmu::Mmu>,
    world: World,
    bfs: Mutex<Option<Bfs>>,
    random: Mutex<Option<Random>>,
}

fn action(py: Python<'_>, (name, numbers, word): &Operation) -> PyResult<Action> {
    let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
    let vcpu = || u16::try_from(at(0)).unwrap_or(u16::MAX);
    let as_id = || u8::try_from(at(0)).unwrap_or(u8::MAX);
    let id = || u32::try_from(at(1)).unwrap_or(u32::MAX);
    Ok(match name.as_str() {
        "access" => Action::Access { vcpu: vcpu(), gpa: at(1), kind: arguments::access_kind(py, word)? },
        "vaccess" => {
            Action::Vaccess { vcpu: vcpu(), gva: at(1), kind: arguments::access_kind(py, word)?, is_user: at(2) != 0 }
        }
        "poke" => Action::Poke { vcpu: vcpu(), gpa: at(1), value: at(2) },
        "gwrite" => Action::Gwrite { vcpu: vcpu(), gva: at(1), gpa: at(2), value: at(3) },
        "emul_write" => Action::EmulWrite { vcpu: vcpu(), gpa: at(1), value: at(2) },
        "invlpg" => Action::Invlpg { vcpu: vcpu(), gva: at(1) },
        "set_cr3" => Action::SetCr3 { vcpu: vcpu(), cr3: at(1) },
        "sync_roots" => Action::SyncRoots { vcpu: vcpu() },
        "init" => Action::Init { vcpu: vcpu() },
        "set_regs" => Action::SetRegs { vcpu: vcpu(), cr0: at(1), cr4: at(2), efer: at(3) },
        "set_memslot" => Action::SetSlot {
            as_id: as_id(),
            id: id(),
            base: at(2),
            npages: at(3),
            hva: at(4),
            flags: u32::try_from(at(5)).unwrap_or(0),
        },
        "delete" => Action::Delete { as_id: as_id(), id: id() },
        "unmap_hva" => Action::Unmap { start: at(0), end: at(1) },
        "age_hva" => Action::Age { start: at(0), end: at(1) },
        "change_pte" => Action::ChangePte { hva: at(0), pfn: at(1), write: at(2) != 0 },
        "host_state" => {
            let state = match word.as_str() {
                "cow" => HostState::Cow,
                "ro" => HostState::ReadOnly,
                _ => HostState::Rw,
            };
            Action::HostState { hva: at(0), npages: at(1), state }
        }
        "host_huge" => {
            let kind = match word.as_str() {
                "none" => HostHuge::None,
                "thp" => HostHuge::Thp,
                "hugetlb1g" => HostHuge::Hugetlb1g,
                _ => HostHuge::Hugetlb2m,
            };
            Action::HostHuge { hva: at(0), npages: at(1), kind }
        }
        "get_dirty_log" => Action::GetLog { as_id: as_id(), id: id() },
        "clear_dirty_log" => Action::ClearLog { as_id: as_id(), id: id() },
        "track" => Action::Track { as_id: as_id(), gfn: at(1), on: at(2) != 0 },
        "smm" => Action::Smm { vcpu: vcpu(), on: at(1) != 0 },
        "unload" => Action::Unload { vcpu: vcpu() },
        "enter" => Action::Enter { vcpu: vcpu() },
        "zap_all" => Action::ZapAll,
        "set_nx" => Action::SetNx { on: at(0) != 0 },
        "nx_recover" => Action::Recover,
        "shrink" => Action::Shrink { pages: at(0) },
        "set_max_raw" => Action::SetMax { pages: at(0) },
        "set_nr_mmu_pages" => Action::SetLimit { pages: at(0) },
        _ => return Err(errors::usage(py, format!("operation {name}: not one that a world can have"))),
    })
}

fn rows(found: &[Found]) -> Vec<FoundRow> {
    found
        .iter()
        .map(|Found { violation, path }| {
            let path = path.iter().map(|choice| (choice.action, choice.poll)).collect();
            (violation.property, violation.detail.clone(), violation.owner, path)
        })
        .collect()
}

fn premises<'py>(py: Python<'py>, counted: &Premises) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in [
        ("mmio", counted.mmio),
        ("writes", counted.writes),
        ("harvests", counted.harvests),
        ("debts", counted.debts),
        ("freed", counted.freed),
        ("leaves", counted.leaves),
        ("links", counted.links),
        ("tracked", counted.tracked),
        ("roots", counted.roots),
    ] {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}

fn path_of(path: Vec<(u8, u8)>) -> Vec<Choice> {
    path.into_iter().map(|(action, poll)| Choice { action, poll }).collect()
}

#[pymethods]
impl Search {
    #[new]
    #[pyo3(signature = (mmu, actions, *, mark, is_mark_added, step, wrap_mask, is_checked_first, table, has_windows, polls, inside, nesting, has_accessed, splits_eagerly, is_pml))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        clippy::needless_pass_by_value,
        reason = "a world's values, as Python gives them"
    )]
    fn new(
        py: Python<'_>,
        mmu: &Mmu,
        actions: Vec<Operation>,
        mark: u64,
        is_mark_added: bool,
        step: u64,
        wrap_mask: u64,
        is_checked_first: bool,
        table: Vec<Row>,
        has_windows: bool,
        polls: u8,
        inside: u8,
        nesting: u8,
        has_accessed: bool,
        splits_eagerly: bool,
        is_pml: bool,
    ) -> PyResult<Self> {
        let actions = actions.iter().map(|given| action(py, given)).collect::<PyResult<Vec<_>>>()?;
        if actions.len() > 200 {
            return Err(errors::usage(py, "a world has at most 200 operations".to_owned()));
        }
        let start = mmu.call(py, |mmu| {
            let mut start = mmu.clone();
            start.set_slice(0);
            start.clear_events();
            start.set_judged(true);
            start
        })?;
        let policy = Policy { mark, is_mark_added, step, wrap_mask, is_checked_first, table };
        let world =
            World { actions, policy, has_windows, polls, inside, nesting, has_accessed, splits_eagerly, is_pml };
        Ok(Self { start: Mutex::new(start), world, bfs: Mutex::new(None), random: Mutex::new(None) })
    }

    /// One level more of the exhaustive search, within so many seconds; whether it was complete.
    fn level(&self, py: Python<'_>, jobs: usize, seconds: f64, keeps_all: bool) -> PyResult<bool> {
        let end = Instant::now().checked_add(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        let (is_stopped, raised) = (AtomicBool::new(false), Mutex::new(None));
        let caller = std::thread::current().id();
        let complete = py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut bfs = self.bfs.lock().unwrap_or_else(PoisonError::into_inner);
            let bfs = bfs.get_or_insert_with(|| Bfs::new(&start, self.world.clone(), keeps_all));
            let stop = || {
                if end.is_some_and(|end| Instant::now() > end) {
                    is_stopped.store(true, Ordering::Relaxed);
                }
                let signals = |py: Python<'_>| py.check_signals();
                if std::thread::current().id() == caller
                    && let Err(exception) = Python::attach(signals)
                {
                    *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(exception);
                    is_stopped.store(true, Ordering::Relaxed);
                }
                is_stopped.load(Ordering::Relaxed)
            };
            bfs.level(jobs, &stop)
        });
        match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(exception) => Err(exception),
            None => Ok(complete),
        }
    }

    /// What the exhaustive search has found so far.
    fn so_far<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let bfs = self.bfs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bfs) = bfs.as_ref() else { return Ok(dict) };
        dict.set_item("states", bfs.states())?;
        dict.set_item("transitions", bfs.transitions)?;
        dict.set_item("depth", bfs.depth)?;
        dict.set_item("closed", bfs.is_closed())?;
        dict.set_item("over", bfs.is_over())?;
        dict.set_item("cut", bfs.is_cut)?;
        dict.set_item("widest", bfs.widest)?;
        dict.set_item("found", rows(&bfs.found))?;
        let goals: Vec<(&str, Option<u32>)> = GOALS.iter().copied().zip(bfs.goals).collect();
        dict.set_item("goals", goals)?;
        dict.set_item("premises", premises(py, &bfs.premises)?)?;
        Ok(dict)
    }

    /// The states of the exhaustive search as bytes, and where the last level begins.
    fn saved<'py>(&self, py: Python<'py>) -> (Bound<'py, PyBytes>, usize) {
        let bfs = self.bfs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bfs) = bfs.as_ref() else { return (PyBytes::new(py, &[]), 0) };
        let (bytes, first) = bfs.saved();
        (PyBytes::new(py, &bytes), first)
    }

    /// Goes on from such bytes; false if they are not of this world.
    fn load(&self, py: Python<'_>, bytes: &[u8], first: usize, depth: u32, transitions: u64, keeps_all: bool) -> bool {
        py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut made = Bfs::new(&start, self.world.clone(), keeps_all);
            let is_loaded = made.load(&start, bytes, first, depth, transitions);
            if is_loaded {
                *self.bfs.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
            }
            is_loaded
        })
    }

    /// One round more of the random search.
    #[pyo3(signature = (seed, jobs, keeps_all))]
    fn random_round<'py>(
        &self,
        py: Python<'py>,
        seed: u64,
        jobs: usize,
        keeps_all: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        py.check_signals()?;
        py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.get_or_insert_with(|| Random::new(start, self.world.clone(), seed)).round(jobs, keeps_all);
        });
        let random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let dict = PyDict::new(py);
        let Some(random) = random.as_ref() else { return Ok(dict) };
        dict.set_item("round", random.round)?;
        dict.set_item("runs", random.runs)?;
        dict.set_item("steps", random.steps)?;
        dict.set_item("coverage", random.coverage())?;
        dict.set_item("found", rows(&random.found))?;
        let goals: Vec<(&str, bool)> =
            GOALS.iter().enumerate().map(|(bit, &goal)| (goal, random.goals >> bit & 1 != 0)).collect();
        dict.set_item("goals", goals)?;
        dict.set_item("premises", premises(py, &random.premises)?)?;
        Ok(dict)
    }

    /// Prefixes that the next round of the random search begins with.
    fn corpus(&self) -> Vec<Vec<(u8, u8)>> {
        let random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let corpus = random.as_ref().map_or(&[][..], Random::corpus);
        corpus.iter().map(|path| path.iter().map(|choice| (choice.action, choice.poll)).collect()).collect()
    }

    /// Goes on from a round of the random search.
    fn resume_random(&self, py: Python<'_>, seed: u64, round: u64, steps: u64, corpus: Vec<Vec<(u8, u8)>>) {
        py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut made = Random::new(start, self.world.clone(), seed);
            made.resume(round, steps, corpus.into_iter().map(path_of).collect());
            *self.random.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        });
    }

    /// What waits after each choice of a path: how many, and for what the last one (1 a window, 2 the lock, 3 the host).
    fn waits(&self, py: Python<'_>, path: Vec<(u8, u8)>) -> Vec<(u8, u8)> {
        let path = path_of(path);
        py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            waits(&start, &self.world, &path)
        })
    }

    /// Plays a path with every check after every step: where it breaks a property, which, how, whose.
    fn replay(&self, py: Python<'_>, path: Vec<(u8, u8)>) -> Option<(usize, &'static str, String, &'static str)> {
        let path = path_of(path);
        py.detach(|| {
            let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            replay(&start, &self.world, &path)
                .map(|(at, violation)| (at, violation.property, violation.detail, violation.owner))
        })
    }
}

/// Every property of the judge: name, sentence, when it must hold.
#[pyfunction]
pub fn properties() -> Vec<(&'static str, &'static str, &'static str)> {
    mmu::PROPERTIES.to_vec()
}

/// Every invariant of the audit: name, sentence.
#[pyfunction]
pub fn invariants() -> Vec<(&'static str, &'static str)> {
    mmu::INVARIANTS.to_vec()
}
