//! Which operation runs, which wait for the lock, and what each promised to take away: debts name who owes them.

use std::collections::BTreeMap;

use smallvec::SmallVec;

/// What an operation is, as far as the judge cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// None runs.
    #[default]
    None,
    /// A guest access, a fault, a prefault.
    Access,
    /// vCPU entry, a root loaded or dropped, registers.
    Vcpu,
    /// A memslot update.
    Update,
    /// A zap that no update asked for.
    Zap,
    /// The host takes memory.
    Unmap,
    /// The host maps another frame, read-only.
    ChangeRead,
    /// The host maps another frame, writable.
    ChangeWrite,
    /// The host ages memory.
    Age,
    /// The dirty log is read or cleared.
    DirtyLog,
    /// A gfn is tracked, or not any more.
    Track,
    /// Limits, reclaim, NX recovery.
    Reclaim,
    /// An inner function, called by itself: what it owes is left to its caller.
    Inner,
}

impl OpKind {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Access => "access",
            Self::Vcpu => "vcpu",
            Self::Update => "set_memslot",
            Self::Zap => "zap",
            Self::Unmap => "unmap_hva",
            Self::ChangeRead | Self::ChangeWrite => "change_pte",
            Self::Age => "age",
            Self::DirtyLog => "dirty_log",
            Self::Track => "track",
            Self::Reclaim => "reclaim",
            Self::Inner => "inner",
        }
    }
}

/// An operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Op {
    /// Its number.
    pub id: u32,
    /// What it is.
    pub kind: OpKind,
    /// Address space, first gfn and pages that it takes away.
    pub promise: SmallVec<[(u8, u64, u64); 1]>,
}

/// Those that run and those that wait.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    next: u32,
    stack: SmallVec<[Op; 2]>,
    /// A memslot update under way, between its steps.
    update: Option<Op>,
    waiting: BTreeMap<u32, Op>,
}

impl Operations {
    /// The kind of the one that runs.
    #[must_use]
    pub fn current_kind(&self) -> OpKind {
        self.stack.last().or(self.update.as_ref()).map_or(OpKind::None, |op| op.kind)
    }

    /// Number and word of the one that runs.
    #[must_use]
    pub fn owner(&self) -> (u32, &'static str) {
        self.stack.last().or(self.update.as_ref()).map_or((0, "nothing"), |op| (op.id, op.kind.name()))
    }

    /// Whether an operation other than the one that runs is not over.
    #[must_use]
    pub fn is_any_open(&self) -> bool {
        self.update.is_some() || !self.waiting.is_empty()
    }

    /// The kinds of the operations that are not over, in order of their runs.
    pub fn open_kinds(&self) -> impl Iterator<Item = OpKind> {
        self.update.iter().chain(self.waiting.values()).map(|op| op.kind)
    }

    /// One begins, inside the one that runs. The steps of an update are the update's.
    pub fn begin(&mut self, kind: OpKind, promise: &[(u8, u64, u64)]) {
        let is_of_update = matches!(kind, OpKind::Zap | OpKind::Inner | OpKind::Reclaim | OpKind::Update);
        let op = match &self.update {
            Some(update) if is_of_update => update.clone(),
            _ => {
                self.next = self.next.wrapping_add(1);
                Op { id: self.next, kind, promise: SmallVec::from_slice(promise) }
            }
        };
        self.stack.push(op);
    }

    /// The one that runs is over; nothing if it is a step of an update.
    pub fn end(&mut self) -> Option<Op> {
        let op = self.stack.pop()?;
        (self.update.as_ref().is_none_or(|update| update.id != op.id)).then_some(op)
    }

    /// An update begins; what it takes away.
    pub fn begin_update(&mut self, promise: &[(u8, u64, u64)]) {
        self.next = self.next.wrapping_add(1);
        self.update = Some(Op { id: self.next, kind: OpKind::Update, promise: SmallVec::from_slice(promise) });
    }

    /// The update is over: it is on the stack as the one that ends.
    pub fn end_update(&mut self) {
        if let Some(op) = self.update.take() {
            self.stack.push(op);
        }
    }

    /// The one that runs waits.
    pub fn park(&mut self, run: u32) {
        if let Some(op) = self.stack.pop() {
            self.waiting.insert(run, op);
        }
    }

    /// One that waited runs.
    pub fn unpark(&mut self, run: u32) {
        if let Some(op) = self.waiting.remove(&run) {
            self.stack.push(op);
        }
    }
}
