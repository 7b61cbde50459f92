//! The event log: what the kernel's tracepoints and the vectors' environment tell, in order of occurrence.
//!
//! The vectors' event list is closed; events carry more than it prints, so that ftrace text can be made from them.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crate::mmu::vm::shared::Shared;
use crate::mmu::words::config::EventMode;
use crate::mmu::words::level::pages_per;

/// The fields every page tracepoint has, at the moment of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub struct PageFacts {
    pub id: u32,
    pub gfn: u64,
    pub role: u32,
    pub root_count: u32,
    pub unsync: bool,
    pub valid_gen: u64,
}

impl PageFacts {
    /// What the form of v6.1 and v6.12 shows of it.
    const fn stepped(&self) -> (u32, u64, u32, u64, u32, u8) {
        (self.id, self.gfn, self.role, self.valid_gen, self.root_count, self.unsync as u8)
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the vectors' own names")]
#[non_exhaustive]
pub enum Event {
    GetPage {
        page: PageFacts,
        created: bool,
    },
    PrepareZap {
        page: PageFacts,
    },
    /// A page is in sync with its table again, or gone.
    Sync {
        page: PageFacts,
    },
    Unsync {
        page: PageFacts,
    },
    /// The guest gets a page fault.
    InjectPf {
        vcpu: u16,
        addr: u64,
        error_code: u64,
    },
    /// The kernel would warn; `line` of `paging_tmpl.h`.
    Warn {
        line: u32,
    },
    MarkMmio {
        page: u32,
        index: u16,
        gfn: u64,
        access: u32,
        mmio_gen: u64,
    },
    CheckMmio {
        spte: u64,
        kvm_gen: u64,
        spte_gen: u64,
    },
    HandleMmio {
        addr: u64,
        gfn: u64,
        access: u32,
    },
    FastPf {
        vcpu: u16,
        addr: u64,
        error_code: u64,
        page: u32,
        index: u16,
        old: u64,
        new: u64,
        handled: u8,
    },
    Flush,
    FlushRange {
        gfn: u64,
        pages: u64,
    },
    ReloadMmus,
    InvalidateZapAll {
        valid_gen: u64,
        used: u64,
    },
    Age {
        gfn: u64,
        level: u8,
    },
    PfnAccessed {
        pfn: u64,
    },
    PfnDirty {
        pfn: u64,
    },
    Pml {
        gfn: u64,
    },
    Emulate {
        vcpu: u16,
        addr: u64,
        kind: u16,
    },
    Fault {
        vcpu: u16,
        addr: u64,
        error_code: u64,
    },
    Ret {
        ret: i32,
    },
    LockBreak {
        kind: u8,
    },
    /// A flush of a range is asked for, whether a hook for it exists or not.
    FlushRemoteTlbsRange {
        gfn: u64,
        pages: u64,
    },
    /// A change of an entry of the TDP MMU, or `n` of neighbouring ones; `old_child` and `new_child` are 0 but for links.
    Spte {
        as_id: u8,
        gfn: u64,
        level: u8,
        old: u64,
        new: u64,
        old_child: u32,
        new_child: u32,
        n: u32,
    },
    /// A large leaf became a table.
    Split {
        gfn: u64,
        spte: u64,
        level: u8,
        errno: i32,
    },
    SrcuSync,
    HwpoisonSignal {
        hva: u64,
    },
    NestedBegin {
        kind: u8,
    },
    NestedEnd {
        kind: u8,
    },
    /// `rxu`: bit 0 readable, 1 executable, 2 for the user, as the tracepoint shows them.
    SetSpte {
        page: u32,
        index: u16,
        gfn: u64,
        spte: u64,
        level: u8,
        rxu: u8,
    },
    PageZapPte {
        page: u32,
        index: u16,
        spte: u64,
    },
    CommitZap,
    MakeMmioSpte {
        gfn: u64,
        access: u32,
    },
    MakeMmioSpteRet {
        spte: u64,
    },
    TryUnsync {
        gfn: u64,
        can_unsync: bool,
        prefetch: bool,
    },
    TryUnsyncRet {
        ret: i32,
    },
    ZapOldestRet {
        nr_zapped: u64,
    },
    ChangeMmuPages {
        goal: u64,
    },
    MemslotsUpdated {
        slots_gen: u64,
    },
    InvalidateMmio {
        slots_gen: u64,
    },
    FlushShadowMemslot,
    ZapAllFastEnter,
    ZapAllFast {
        valid_gen: u64,
        used: u64,
    },
    Requested {
        gfn: u64,
        pfn: u64,
        level: u8,
    },
    UnmapHva {
        start: u64,
        end: u64,
    },
    AgeHva {
        start: u64,
        end: u64,
    },
    TestAgeHva {
        hva: u64,
    },
    SetSpteHva {
        hva: u64,
    },
    /// A walk of the guest's own tables begins.
    GuestWalk {
        addr: u64,
        error_code: u64,
    },
    GuestWalkEntry {
        value: u64,
        level: u8,
    },
    GuestWalkError {
        code: u64,
    },
    /// The accessed bit of the guest's entry at this address is set.
    SetAccessed {
        gpa: u64,
    },
    SetDirty {
        gpa: u64,
    },
}

impl Event {
    /// The vectors' form: a JSON array.
    pub fn write_json(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = match *self {
            Self::GetPage { page, created } => {
                write!(out, r#"["get_page",{},{},"{:#x}",{}]"#, page.id, page.gfn, page.role, u8::from(created))
            }
            Self::PrepareZap { page } => write!(out, r#"["prepare_zap",{}]"#, page.id),
            Self::Sync { page } => write!(out, r#"["sync",{}]"#, page.id),
            Self::Unsync { page } => write!(out, r#"["unsync",{}]"#, page.id),
            Self::InjectPf { vcpu, addr, error_code } => {
                write!(out, r#"["inject_pf",{vcpu},{addr},{error_code}]"#)
            }
            Self::Warn { line } => write!(out, r#"["WARN","paging_tmpl.h:{line}","1"]"#),
            Self::MarkMmio { page, index, gfn, access, mmio_gen } => {
                write!(out, r#"["mark_mmio",{page},{index},{gfn},{access},{mmio_gen}]"#)
            }
            Self::CheckMmio { spte, kvm_gen, spte_gen } => {
                write!(out, r#"["check_mmio","{spte:#x}",{kvm_gen},{spte_gen}]"#)
            }
            Self::HandleMmio { addr, gfn, access } => write!(out, r#"["handle_mmio",{addr},{gfn},{access}]"#),
            Self::FastPf { vcpu, addr, error_code, page, index, old, new, handled } => {
                write!(out, r#"["fast_pf",{vcpu},{addr},{error_code},{page},{index},"{old:#x}","{new:#x}",{handled}]"#)
            }
            Self::Flush => write!(out, r#"["flush"]"#),
            Self::FlushRange { gfn, pages } => write!(out, r#"["flush_range",{gfn},{pages}]"#),
            Self::FlushRemoteTlbsRange { gfn, pages } => write!(out, r#"["flush_remote_tlbs_range",{gfn},{pages}]"#),
            Self::ReloadMmus => write!(out, r#"["reload_mmus"]"#),
            Self::InvalidateZapAll { .. } => write!(out, r#"["invalidate_zap_all"]"#),
            Self::Age { gfn, level } => write!(out, r#"["age",{gfn},{level}]"#),
            Self::PfnAccessed { pfn } => write!(out, r#"["pfn_accessed",{pfn}]"#),
            Self::PfnDirty { pfn } => write!(out, r#"["pfn_dirty",{pfn}]"#),
            Self::Pml { gfn } => write!(out, r#"["pml",{gfn}]"#),
            Self::Emulate { vcpu, addr, kind } => write!(out, r#"["emulate",{vcpu},{addr},{kind}]"#),
            Self::Fault { vcpu, addr, error_code } => write!(out, r#"["fault",{vcpu},{addr},"{error_code:#x}"]"#),
            Self::Ret { ret } => write!(out, r#"["ret",{ret}]"#),
            Self::LockBreak { .. } => write!(out, r#"["lock_break"]"#),
            Self::Spte { as_id, gfn, level, old, new, old_child, new_child, n } => {
                let child = |id: u32| if id == 0 { "null".to_owned() } else { id.to_string() };
                let (old_child, new_child) = (child(old_child), child(new_child));
                let times = if n > 1 { format!(",{n}") } else { String::new() };
                write!(out, r#"["spte",{as_id},{gfn},{level},"{old:#x}","{new:#x}",{old_child},{new_child}{times}]"#)
            }
            Self::Split { gfn, spte, level, errno } => write!(out, r#"["split",{gfn},"{spte:#x}",{level},{errno}]"#),
            Self::SrcuSync => write!(out, r#"["srcu_sync"]"#),
            Self::HwpoisonSignal { hva } => write!(out, r#"["hwpoison_signal",{hva}]"#),
            Self::NestedBegin { kind } => write!(out, r#"["nested_begin",{kind}]"#),
            Self::NestedEnd { kind } => write!(out, r#"["nested_end",{kind}]"#),
            Self::SetSpte { page, index, gfn, spte, level, .. } => {
                write!(out, r#"["set_spte",{page},{index},{gfn},"{spte:#x}",{level}]"#)
            }
            Self::PageZapPte { page, index, spte } => write!(out, r#"["page_zap_pte",{page},{index},"{spte:#x}"]"#),
            Self::CommitZap => write!(out, r#"["commit_zap"]"#),
            Self::MakeMmioSpte { gfn, access } => write!(out, r#"["make_mmio_spte",{gfn},{access}]"#),
            Self::MakeMmioSpteRet { spte } => write!(out, r#"["make_mmio_spte_ret","{spte:#x}"]"#),
            Self::TryUnsync { gfn, can_unsync, prefetch } => {
                write!(out, r#"["try_unsync",{gfn},{},{}]"#, u8::from(can_unsync), u8::from(prefetch))
            }
            Self::TryUnsyncRet { ret } => write!(out, r#"["try_unsync_ret",{ret}]"#),
            Self::ZapOldestRet { nr_zapped } => write!(out, r#"["zap_oldest_ret",{nr_zapped}]"#),
            Self::ChangeMmuPages { goal } => write!(out, r#"["change_mmu_pages",{goal}]"#),
            Self::MemslotsUpdated { slots_gen } => write!(out, r#"["memslots_updated","{slots_gen:#x}"]"#),
            Self::InvalidateMmio { slots_gen } => write!(out, r#"["invalidate_mmio","{slots_gen:#x}"]"#),
            Self::FlushShadowMemslot => write!(out, r#"["flush_shadow_memslot"]"#),
            Self::ZapAllFastEnter => write!(out, r#"["zap_all_fast_enter"]"#),
            Self::ZapAllFast { valid_gen, used } => write!(out, r#"["zap_all_fast",{valid_gen},{used}]"#),
            Self::Requested { gfn, pfn, level } => write!(out, r#"["requested",{gfn},"{pfn:#x}",{level}]"#),
            Self::UnmapHva { start, end } => write!(out, r#"["unmap_hva","{start:#x}","{end:#x}"]"#),
            Self::AgeHva { start, end } => write!(out, r#"["age_hva","{start:#x}","{end:#x}"]"#),
            Self::TestAgeHva { hva } => write!(out, r#"["test_age_hva","{hva:#x}"]"#),
            Self::SetSpteHva { hva } => write!(out, r#"["set_spte_hva","{hva:#x}"]"#),
            // Format 1 has no walks.
            Self::GuestWalk { .. }
            | Self::GuestWalkEntry { .. }
            | Self::GuestWalkError { .. }
            | Self::SetAccessed { .. }
            | Self::SetDirty { .. } => Ok(()),
        };
    }

    /// The form of the vectors of v6.1 and v6.12; nothing for what they do not list.
    pub fn write_json_stepped(&self, out: &mut String) {
        let _ = match *self {
            Self::GetPage { page, created } => {
                let unsync = u8::from(page.unsync);
                let (id, gfn, role, valid_gen) = (page.id, page.gfn, page.role, page.valid_gen);
                let (created, count) = (u8::from(created), page.root_count);
                write!(out, r#"["get_page",{id},{gfn},"{role:#x}",{created},{valid_gen},{count},{unsync}]"#)
            }
            Self::PrepareZap { page } => {
                let (id, gfn, role, valid_gen, count, unsync) = page.stepped();
                write!(out, r#"["prepare_zap",{id},{gfn},"{role:#x}",{valid_gen},{count},{unsync}]"#)
            }
            Self::Sync { page } => {
                let (id, gfn, role, valid_gen, count, unsync) = page.stepped();
                write!(out, r#"["sync",{id},{gfn},"{role:#x}",{valid_gen},{count},{unsync}]"#)
            }
            Self::Unsync { page } => {
                let (id, gfn, role, valid_gen, count, unsync) = page.stepped();
                write!(out, r#"["unsync",{id},{gfn},"{role:#x}",{valid_gen},{count},{unsync}]"#)
            }
            Self::InjectPf { vcpu, addr, error_code } => {
                write!(out, r#"["inject_pf",{vcpu},{addr},"{error_code:#x}"]"#)
            }
            Self::FastPf { vcpu, addr, error_code, page, index, old, new, handled } => {
                let (spurious, fixed) = (handled >> 1 & 1, handled & 1);
                write!(
                    out,
                    r#"["fast_pf",{vcpu},{addr},"{error_code:#x}",{page},{index},"{old:#x}","{new:#x}",{spurious},{fixed}]"#
                )
            }
            Self::SetSpte { page, index, gfn, spte, level, rxu } => {
                let (r, x, u) = (rxu & 1, rxu >> 1 & 1, rxu >> 2 & 1);
                write!(out, r#"["set_spte",{gfn},"{spte:#x}",{level},{r},{x},{u},{page},{index}]"#)
            }
            // The type of a page fault is always part of what the emulator is told.
            Self::Emulate { vcpu, addr, kind } => write!(out, r#"["emulate",{vcpu},{addr},{}]"#, kind | 0x40),
            Self::LockBreak { kind } => write!(out, r#"["lock_break",{kind}]"#),
            Self::HwpoisonSignal { hva } => write!(out, r#"["hwpoison_signal","{hva:#x}"]"#),
            Self::ReloadMmus | Self::Age { .. } => Ok(()),
            Self::GuestWalk { addr, error_code } => write!(out, r#"["walk",{addr},"{error_code:#x}"]"#),
            Self::GuestWalkEntry { value, level } => write!(out, r#"["walk_pte","{value:#x}",{level}]"#),
            Self::GuestWalkError { code } => write!(out, r#"["walk_error","{code:#x}"]"#),
            Self::SetAccessed { gpa } => write!(out, r#"["set_accessed",{gpa}]"#),
            Self::SetDirty { gpa } => write!(out, r#"["set_dirty",{gpa}]"#),
            _ => {
                self.write_json(out);
                Ok(())
            }
        };
    }

    /// The form of format 1, but of pages and of walks of a guest's tables all that tracepoints say.
    pub fn write_json_traced(&self, out: &mut String) {
        match self {
            Self::GetPage { .. }
            | Self::PrepareZap { .. }
            | Self::Sync { .. }
            | Self::Unsync { .. }
            | Self::GuestWalk { .. }
            | Self::GuestWalkEntry { .. }
            | Self::GuestWalkError { .. }
            | Self::SetAccessed { .. }
            | Self::SetDirty { .. } => self.write_json_stepped(out),
            _ => self.write_json(out),
        }
    }

    /// Every field, as a JSON object with the key `event`.
    pub fn write_json_rich(&self, out: &mut String) {
        let _ = match *self {
            Self::GetPage { page, created } => {
                let _ = write!(out, r#"{{"event":"get_page","created":{},"#, u8::from(created));
                write_facts(&page, out)
            }
            Self::PrepareZap { page } => {
                let _ = write!(out, r#"{{"event":"prepare_zap","#);
                write_facts(&page, out)
            }
            Self::Sync { page } => {
                let _ = write!(out, r#"{{"event":"sync","#);
                write_facts(&page, out)
            }
            Self::Unsync { page } => {
                let _ = write!(out, r#"{{"event":"unsync","#);
                write_facts(&page, out)
            }
            Self::MarkMmio { page, index, gfn, access, mmio_gen } => write!(
                out,
                r#"{{"event":"mark_mmio","id":{page},"index":{index},"gfn":{gfn},"access":{access},"gen":{mmio_gen}}}"#
            ),
            Self::CheckMmio { spte, kvm_gen, spte_gen } => {
                write!(out, r#"{{"event":"check_mmio","spte":"{spte:#x}","kvm_gen":{kvm_gen},"spte_gen":{spte_gen}}}"#)
            }
            Self::HandleMmio { addr, gfn, access } => {
                write!(out, r#"{{"event":"handle_mmio","addr":{addr},"gfn":{gfn},"access":{access}}}"#)
            }
            Self::FastPf { vcpu, addr, error_code, page, index, old, new, handled } => write!(
                out,
                r#"{{"event":"fast_pf","vcpu":{vcpu},"addr":{addr},"error_code":{error_code},"id":{page},"index":{index},"old":"{old:#x}","new":"{new:#x}","handled":{handled}}}"#
            ),
            Self::InvalidateZapAll { valid_gen, used } => {
                write!(out, r#"{{"event":"invalidate_zap_all","valid_gen":{valid_gen},"used":{used}}}"#)
            }
            _ => {
                let _ = write!(out, r#"{{"event":"#);
                let mut plain = String::new();
                self.write_json(&mut plain);
                if plain.is_empty() {
                    self.write_json_stepped(&mut plain);
                }
                let body = plain.trim_start_matches('[').trim_end_matches(']');
                let (name, args) = body.split_once(',').unwrap_or((body, ""));
                write!(out, r#"{name},"args":[{args}]}}"#)
            }
        };
    }
}

fn write_facts(page: &PageFacts, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        r#""id":{},"gfn":{},"role":"{:#x}","root_count":{},"unsync":{},"valid_gen":{}}}"#,
        page.id,
        page.gfn,
        page.role,
        page.root_count,
        u8::from(page.unsync),
        page.valid_gen
    )
}

/// The log: off, a ring, or all.
#[derive(Clone, Debug)]
pub struct Events {
    is_on: bool,
    keep: usize,
    log: Shared<VecDeque<Event>>,
}

impl Events {
    /// An empty log.
    #[must_use]
    pub fn new(mode: EventMode) -> Self {
        let keep = match mode {
            EventMode::Off => 0,
            EventMode::Ring(keep) => keep,
            EventMode::All => usize::MAX,
        };
        Self { is_on: keep > 0, keep, log: Shared::default() }
    }

    /// Whether anything is kept.
    #[inline]
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Logs what `make` gives; `make` is not called when the log is off.
    #[inline]
    pub fn push(&mut self, make: impl FnOnce() -> Event) {
        if self.is_on {
            self.push_on(make());
        }
    }

    /// Logs a change of an entry; one that goes on where an equal one ended becomes part of it.
    pub fn push_run(&mut self, event: Event) {
        if !self.is_on {
            return;
        }
        if let (
            Some(Event::Spte { as_id, gfn, level, old, new, old_child, new_child, n }),
            &Event::Spte { as_id: its_as_id, gfn: its_gfn, level: its_level, .. },
        ) = (self.log.own().back_mut(), &event)
            && let Event::Spte { old: its_old, new: its_new, old_child: 0, new_child: 0, n: its_n, .. } = event
            && (*as_id, *level, *old, *new, *old_child, *new_child) == (its_as_id, its_level, its_old, its_new, 0, 0)
            && its_gfn == gfn.wrapping_add(u64::from(*n) * pages_per(its_level))
        {
            *n += its_n;
            return;
        }
        self.push_on(event);
    }

    #[cold]
    #[inline(never)]
    fn push_on(&mut self, event: Event) {
        let log = self.log.own();
        if log.len() >= self.keep {
            log.pop_front();
        }
        log.push_back(event);
    }

    /// The events kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.log.iter()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        match &mut self.log {
            Shared::Own(log) => log.clear(),
            Shared::Common(_) => self.log = Shared::default(),
        }
    }

    /// Makes the log common, so that a clone does not copy it.
    pub fn lend(&mut self) {
        self.log.lend();
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.log.capacity() * size_of::<Event>()
    }

    /// The vectors' form of the log.
    #[must_use]
    pub fn json(&self, write: fn(&Event, &mut String)) -> String {
        let mut out = String::from("[");
        for event in self.log.iter() {
            let before = out.len();
            write(event, &mut out);
            if out.len() > before {
                out.push(',');
            }
        }
        if out.ends_with(',') {
            out.pop();
        }
        out.push(']');
        out
    }
}
