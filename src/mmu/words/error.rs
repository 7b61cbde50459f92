//! What the facade refuses: a wrong argument, or a limit of the model. A guest fault, an MMIO exit or a kernel errno is
//! never an [`Error`]; those are results.

use thiserror::Error;

/// A refused call. The state is unchanged unless the variant says otherwise.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No profile has this name.
    #[error("kernel {0:?}: expected one of {names}, or a release of their branches", names = crate::kernels::names())]
    UnknownKernel(String),
    /// A fact that is not there, or a value it cannot have.
    #[error("kernel with {text:?}: expected {expected}")]
    UnknownFact {
        /// What was given.
        text: String,
        /// What would have been accepted.
        expected: String,
    },
    /// No named plan has this name.
    #[error("unknown zap plan {0:?}")]
    UnknownPlan(String),
    /// Words that make no plan.
    #[error("zap plan {0}")]
    Plan(String),
    /// No mask family has this name.
    #[error("unknown family {0:?} (known: npt, ept_ad, ept_noad, shadow)")]
    UnknownFamily(String),
    /// A configuration value is out of its range.
    #[error("config {key}: {value} is not in {allowed}")]
    Config {
        /// The configuration key.
        key: &'static str,
        /// The value given.
        value: u64,
        /// What would have been accepted.
        allowed: &'static str,
    },
    /// A configuration value that another one rules out.
    #[error("config {key} with kernel {kernel}: needs {allowed}")]
    ConfigNeeds {
        /// Key and value.
        key: &'static str,
        /// The kernel's name.
        kernel: &'static str,
        /// What would have been accepted.
        allowed: &'static str,
    },
    /// A generation layout that cannot be encoded.
    #[error("generation layout: {0}")]
    Layout(&'static str),
    /// There is no vCPU with this number.
    #[error("no vcpu {vcpu} (the VM has {vcpus})")]
    Vcpu {
        /// The number asked for.
        vcpu: u16,
        /// How many there are.
        vcpus: u16,
    },
    /// There is no address space with this number.
    #[error("no address space {0} (0 is normal, 1 is SMM)")]
    AddressSpace(u8),
    /// Collapsing reads the large-page counts of a gfn that lies before the slot's.
    #[error(
        "kernel {kernel}, memslot {id} in address space {as_id}: turning the dirty log off reads outside the slot's counts, \
         at gfn {gfn:#x}: this kernel crashes or does anything here"
    )]
    OutsideSlot {
        /// The kernel that does so.
        kernel: &'static str,
        /// Address space.
        as_id: u8,
        /// Slot id.
        id: u32,
        /// First gfn of the table that is looked up.
        gfn: u64,
    },
    /// The modelled kernel stops: a guest cannot do this, only who writes its tables behind its back.
    #[error("kernel {kernel} stops with a BUG here: mmu.c:{line} gfn != kvm_mmu_page_get_gfn(sp, index)")]
    KernelBug {
        /// The kernel that does so.
        kernel: &'static str,
        /// The line of its mmu.c.
        line: u32,
    },
    /// The kernel's walk of a guest's tables has no room for so many levels.
    #[error(
        "kernel {kernel}: its walk has room for {most} levels of a guest's tables, this guest's have {levels}: the kernel \
         writes past the end there"
    )]
    WalkDepth {
        /// The kernel that does so.
        kernel: &'static str,
        /// Levels there is room for.
        most: u32,
        /// Levels of the guest's tables.
        levels: u8,
    },
    /// There is no such memslot.
    #[error("no memslot {id} in address space {as_id}")]
    NoSlot {
        /// Address space.
        as_id: u8,
        /// Slot id.
        id: u32,
    },
    /// A memslot that cannot be stored.
    #[error("memslot {id}: {why}")]
    Slot {
        /// Slot id.
        id: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A host frame whose leaf would read as an MMIO SPTE; no host has memory there.
    #[error("host frame {0:#x}: no host has memory there")]
    Frame(u64),
    /// The kernel's profile does not have this.
    #[error("{what}: only for kernels {kernels}")]
    NeedsKernel {
        /// What was asked for.
        what: &'static str,
        /// Which have it.
        kernels: &'static str,
    },
    /// Only a VM whose guest's page tables are shadowed has this.
    #[error("{what}: only for family shadow, where the guest's page tables are shadowed")]
    NeedsShadow {
        /// What was asked for.
        what: &'static str,
    },
    /// No live shadow page has this id.
    #[error("no active shadow page {0}")]
    Page(u32),
    /// The run was finished, abandoned or never existed.
    #[error("no run {0} in progress")]
    Run(u32),
    /// The batch was committed or never existed.
    #[error("no batch {0} in progress")]
    Batch(u32),
    /// The plan walks a slot or a range and the task names none.
    #[error("the plan needs {0}")]
    PlanNeeds(&'static str),
    /// Bytes that cannot be read as a VM, or a VM that cannot be written now.
    #[error("{0}")]
    Saved(String),
    /// The model's tables are full (2^22 shadow pages).
    #[error("no room for another shadow page (limit 4194303)")]
    TooManyPages,
}

/// The facade's result.
pub type Result<T> = std::result::Result<T, Error>;
