//! Words and values that come from Python: plans, layouts, kinds.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::usage;
use crate::mmu::{
    AccessKind, EventMode, GenerationField, GenerationLayout, GfnHash, GuestWork, HostHuge, HostState, Plans, PtMasked,
    SlotWalk, ZapPlan,
};

fn word<T: Copy>(py: Python<'_>, what: &str, text: &str, words: &[(&str, T)]) -> PyResult<T> {
    words.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        usage(py, format!("{what} {text:?}: expected one of {}", names.join(", ")))
    })
}

/// `r`, `w` or `x`.
pub fn access_kind(py: Python<'_>, text: &str) -> PyResult<AccessKind> {
    word(py, "access kind", text, &[("r", AccessKind::Read), ("w", AccessKind::Write), ("x", AccessKind::Exec)])
}

/// What a vCPU that is entered does.
pub fn guest_work(py: Python<'_>, text: &str, gva: u64, kind: AccessKind, is_user: bool) -> PyResult<GuestWork> {
    word(
        py,
        "guest work",
        text,
        &[
            ("enter", GuestWork::Enter),
            ("load", GuestWork::Load),
            ("access", GuestWork::Access { gva, kind, is_user }),
            ("invlpg", GuestWork::Invlpg { gva }),
            ("sync_roots", GuestWork::SyncRoots),
        ],
    )
}

/// What host memory says.
pub fn host_state(py: Python<'_>, text: &str) -> PyResult<HostState> {
    word(
        py,
        "host state",
        text,
        &[
            ("rw", HostState::Rw),
            ("cow", HostState::Cow),
            ("fault", HostState::Fault),
            ("hwpoison", HostState::Hwpoison),
            ("absent", HostState::Absent),
            ("zero", HostState::Zero),
            ("ro", HostState::ReadOnly),
            ("on_demand", HostState::OnDemand),
            ("cow_copy", HostState::CowCopy),
        ],
    )
}

/// How host memory is mapped.
pub fn host_huge(py: Python<'_>, text: &str) -> PyResult<HostHuge> {
    word(
        py,
        "host mapping",
        text,
        &[
            ("none", HostHuge::None),
            ("thp", HostHuge::Thp),
            ("hugetlb2m", HostHuge::Hugetlb2m),
            ("hugetlb1g", HostHuge::Hugetlb1g),
        ],
    )
}

/// What a whole-slot walk does.
pub fn slot_walk(py: Python<'_>, text: &str) -> PyResult<SlotWalk> {
    word(
        py,
        "slot walk",
        text,
        &[
            ("remove_write_access", SlotWalk::RemoveWriteAccess),
            ("leaf_clear_dirty", SlotWalk::LeafClearDirty),
            ("largepage_remove_write_access", SlotWalk::LargepageRemoveWriteAccess),
            ("set_dirty", SlotWalk::SetDirty),
            ("zap_collapsible", SlotWalk::ZapCollapsible),
            ("split_4k", SlotWalk::Split { to: 1 }),
            ("split_2m", SlotWalk::Split { to: 2 }),
        ],
    )
}

/// What is done to the gfns of a mask.
pub fn pt_masked(py: Python<'_>, text: &str) -> PyResult<PtMasked> {
    word(
        py,
        "masked operation",
        text,
        &[
            ("write_protect", PtMasked::WriteProtect),
            ("clear_dirty", PtMasked::ClearDirty),
            ("enable_log_dirty", PtMasked::EnableLogDirty),
        ],
    )
}

/// Which hash of shadow pages.
pub fn gfn_hash(py: Python<'_>, text: &str) -> PyResult<GfnHash> {
    word(py, "gfn hash", text, &[("kernel", GfnHash::Kernel), ("wide", GfnHash::Wide)])
}

/// -1: all events, 0: none, n: a ring.
pub fn event_mode(py: Python<'_>, limit: i64) -> PyResult<EventMode> {
    match limit {
        -1 => Ok(EventMode::All),
        0 => Ok(EventMode::Off),
        _ => usize::try_from(limit)
            .map(EventMode::Ring)
            .map_err(|_| usage(py, format!("events {limit}: expected -1, 0 or a length"))),
    }
}

/// A `kvm_mmu.machine.zap_plan.ZapPlan`, by its fields and their words.
pub fn zap_plan(plan: &Bound<'_, PyAny>) -> PyResult<ZapPlan> {
    plan_of(plan.py(), &plan.getattr("words")?.cast_into::<PyDict>()?)
}

/// The plan of a dict of fields and words.
pub fn plan_of(py: Python<'_>, given: &Bound<'_, PyDict>) -> PyResult<ZapPlan> {
    let words: Vec<(String, String)> =
        given.iter().map(|(field, word)| Ok((field.extract()?, word.extract()?))).collect::<PyResult<_>>()?;
    let words: Vec<(&str, &str)> = words.iter().map(|(field, word)| (field.as_str(), word.as_str())).collect();
    ZapPlan::of(&words).map_err(|error| super::errors::from_core(py, &error))
}

/// The plans of a profile; events that the core does not know (`create_move`) stay in Python.
pub fn plans(given: &Bound<'_, PyDict>, defaults: Plans) -> PyResult<Plans> {
    let of = |name: &str, default: ZapPlan| -> PyResult<ZapPlan> {
        given.get_item(name)?.map_or(Ok(default), |plan| zap_plan(&plan))
    };
    Ok(Plans {
        wrap: of("wrap", defaults.wrap)?,
        slot_removal: of("slot_removal", defaults.slot_removal)?,
        teardown: of("teardown", defaults.teardown)?,
        flush_all: of("flush_all", defaults.flush_all)?,
    })
}

/// A `kvm_mmu.machine.generation.GenerationLayout`, field by field.
pub fn generation_layout(layout: &Bound<'_, PyAny>) -> PyResult<GenerationLayout> {
    let fields = layout
        .getattr("fields")?
        .try_iter()?
        .map(|field| {
            let field = field?;
            Ok(GenerationField {
                gen_shift: field.getattr("gen_shift")?.extract()?,
                bits: field.getattr("bits")?.extract()?,
                spte_shift: field.getattr("spte_shift")?.extract()?,
                read_bits: field.getattr("read_bits")?.extract()?,
            })
        })
        .collect::<PyResult<_>>()?;
    Ok(GenerationLayout {
        width: layout.getattr("width")?.extract()?,
        in_progress: layout.getattr("in_progress")?.extract()?,
        refuse_in_progress: layout.getattr("refuse_in_progress")?.extract()?,
        fields,
    })
}
