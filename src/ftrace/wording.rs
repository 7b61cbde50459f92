//! Which events there are, and every wording a kernel has had for each: one table that both parser and formatter read.
//!
//! Owns the names of the events, the fields of each and how their values are printed. A wording is a row of tokens,
//! literal text and fields; the first wording of a kind that matches the whole body wins. `raw` are the fields as
//! `trace-cmd report -R` prints them (also behind `[FAILED TO PARSE]`), `plugin` is libtraceevent's KVM plugin, whose
//! role layout is older than every kernel here: what it says of the role stays text.
//!
//! Long: half of it is one table, and a table of wordings is read as one.

use super::event::Event;
use super::page_text::PageText;
use super::scan::Cursor;

/// One field of a wording: its name and how the kernel prints its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `%x`: bare hexadecimal.
    Hex(&'static str),
    /// `0x%x`.
    Hex0x(&'static str),
    /// `0x%08x`.
    Hex0x8(&'static str),
    /// `0x%016x`.
    Hex0x16(&'static str),
    /// `%#016x`: 16 columns with the `0x`.
    HexAlt16(&'static str),
    /// `%u`.
    Dec(&'static str),
    /// `%d`.
    Signed(&'static str),
    /// As libtraceevent prints a raw field: decimal, or `0x%x` where the kernel's type is a pointer or a long.
    Raw(&'static str),
    /// Text up to the next literal, or to the end.
    Text(&'static str),
}

impl Field {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hex(name)
            | Self::Hex0x(name)
            | Self::Hex0x8(name)
            | Self::Hex0x16(name)
            | Self::HexAlt16(name)
            | Self::Dec(name)
            | Self::Signed(name)
            | Self::Raw(name)
            | Self::Text(name) => name,
        }
    }

    /// Whether its value is a number.
    #[must_use]
    pub const fn is_number(&self) -> bool {
        !matches!(self, Self::Text(_))
    }
}

/// A piece of a wording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// These bytes.
    Literal(&'static str),
    /// A value.
    Value(Field),
    /// The description of a shadow page, to the end of the line.
    Page,
}

/// One wording of an event.
#[derive(Debug)]
pub struct Wording {
    /// Kernels known to print it, for people.
    pub kernels: &'static str,
    /// Its pieces, in order.
    pub tokens: &'static [Token],
    /// The same pieces as code.
    pub(super) read: Match,
}

impl Wording {
    /// Its fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = Field> + use<> {
        self.tokens.iter().filter_map(|token| match token {
            Token::Value(field) => Some(*field),
            Token::Literal(_) | Token::Page => None,
        })
    }

    pub(super) fn nr_numbers(&self) -> usize {
        self.fields().filter(Field::is_number).count()
    }

    pub(super) fn nr_texts(&self) -> usize {
        self.fields().filter(|field| !field.is_number()).count()
    }
}

/// Code that matches a whole body against one wording, filling the event's values on the way.
type Match = for<'a> fn(&mut Event<'a>, &'a [u8]) -> Option<()>;

/// Where the search for a name begins: a few of its bytes tell most names apart.
const fn name_slot(name: &[u8]) -> usize {
    let len = name.len();
    if len < 4 {
        return len;
    }
    len * 131 + (name[len - 1] as usize) + (name[len / 2] as usize) * 7 + (name[len - 4] as usize) * 31
}

/// The kinds by their names; a name stands in the first free place from its slot on. Never full, so a search ends.
static NAMES: [Option<Kind>; 1024] = {
    let mut table = [None; 1024];
    let mut i = 0;
    while i < Kind::ALL.len() {
        let mut slot = name_slot(Kind::ALL[i].name().as_bytes());
        while table[slot % 1024].is_some() {
            slot += 1;
        }
        table[slot % 1024] = Some(Kind::ALL[i]);
        i += 1;
    }
    table
};

/// Row of tokens: text in quotes, `hex name`, `dec name`, ...
macro_rules! tokens {
    (@ [$($done:expr),*]) => { &[$($done),*] };
    (@ [$($done:expr),*] page $($more:tt)*) => { tokens!(@ [$($done,)* Token::Page] $($more)*) };
    (@ [$($done:expr),*] hex $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Hex(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] hex0x $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Hex0x(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] hex0x8 $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Hex0x8(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] hex0x16 $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Hex0x16(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] hexalt16 $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::HexAlt16(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] dec $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Dec(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] signed $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Signed(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] raw $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Raw(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] text $name:ident $($more:tt)*) => { tokens!(@ [$($done,)* Token::Value(Field::Text(stringify!($name)))] $($more)*) };
    (@ [$($done:expr),*] $text:literal $($more:tt)*) => { tokens!(@ [$($done,)* Token::Literal($text)] $($more)*) };
    ($($all:tt)*) => { tokens!(@ [] $($all)*) };
}

/// The code of a row of tokens: what it reads, step by step, with nothing left to look up.
macro_rules! matcher {
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident) => { $cursor.is_empty().then_some(()) };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident page) => {{
        let _ = ($cursor, $numbers, $texts);
        $event.set_page(PageText::parse($body)?);
        Some(())
    }};
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident hex $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.hex()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident hex0x $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.hex_after_0x()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident hex0x8 $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.hex_after_0x()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident hex0x16 $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.hex_after_0x()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident hexalt16 $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.hex_after_0x()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident dec $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.decimal()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident signed $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.signed()?) $($more)*)
    };
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident raw $name:ident $($more:tt)*) => {
        matcher!(@number $event $body $cursor $numbers $texts ($cursor.raw()?) $($more)*)
    };
    (@number $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident ($value:expr) $($more:tt)*) => {{
        let value = $value;
        $event.set_number($numbers, value)?;
        #[allow(unused_variables, reason = "nothing is counted behind the last one")]
        let $numbers = $numbers + 1;
        matcher!(@ $event $body $cursor $numbers $texts $($more)*)
    }};
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident text $name:ident $end:literal $($more:tt)*) => {{
        $event.set_text($texts, $cursor.until($end.as_bytes())?)?;
        #[allow(unused_variables, reason = "nothing is counted behind the last one")]
        let $texts = $texts + 1;
        matcher!(@ $event $body $cursor $numbers $texts $end $($more)*)
    }};
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident text $name:ident $($more:tt)*) => {{
        $event.set_text($texts, $cursor.until(b"")?)?;
        #[allow(unused_variables, reason = "nothing is counted behind the last one")]
        let $texts = $texts + 1;
        matcher!(@ $event $body $cursor $numbers $texts $($more)*)
    }};
    (@ $event:ident $body:ident $cursor:ident $numbers:ident $texts:ident $text:literal $($more:tt)*) => {{
        $cursor.literal($text.as_bytes())?;
        matcher!(@ $event $body $cursor $numbers $texts $($more)*)
    }};
    ($($all:tt)*) => {
        |event, body| {
            #[allow(unused_mut, reason = "a page is read by its own code")]
            let mut cursor = Cursor::new(body);
            let (numbers, texts) = (0_usize, 0_usize);
            let _ = (&event, numbers, texts);
            matcher!(@ event body cursor numbers texts $($all)*)
        }
    };
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $name:literal { $($kernels:literal : [$($row:tt)*])+ })+) => {
        /// Every event that is understood.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $variant),+ }

        impl Kind {
            /// All of them, in order.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant),+];

            /// The name the trace has for it.
            #[must_use]
            #[inline]
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name),+ }
            }

            /// The kind of an event's name.
            #[must_use]
            #[inline]
            pub fn by_name(name: &[u8]) -> Option<Kind> {
                let mut slot = name_slot(name);
                while let Some(kind) = NAMES[slot % NAMES.len()] {
                    if kind.name().as_bytes() == name {
                        return Some(kind);
                    }
                    slot += 1;
                }
                None
            }

            /// Its wordings, tried in this order.
            #[must_use]
            #[inline]
            pub const fn wordings(self) -> &'static [Wording] {
                match self { $(Kind::$variant => &[$(Wording { kernels: $kernels, tokens: tokens!($($row)*), read: matcher!($($row)*) }),+]),+ }
            }
        }
    };
}

kinds! {
    /// A shadow page was looked up or created.
    GetPage "kvm_mmu_get_page" {
        "all": [page]
        "raw": ["mmu_valid_gen=" raw valid_gen " gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync " created=" raw created]
        "raw, v5.1-v5.3": ["gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync " created=" raw created]
        "plugin, new": ["new sp gfn " hex gfn " " dec level text old_role " root " dec root_count " " text sync]
        "plugin, existing": ["existing sp gfn " hex gfn " " dec level text old_role " root " dec root_count " " text sync]
    }
    /// A shadow page is queued for freeing.
    PrepareZapPage "kvm_mmu_prepare_zap_page" {
        "all": [page]
        "raw": ["mmu_valid_gen=" raw valid_gen " gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "raw, v5.1-v5.3": ["gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "plugin": ["sp gfn " hex gfn " " dec level text old_role " root " dec root_count " " text sync]
    }
    /// A page is in sync again.
    SyncPage "kvm_mmu_sync_page" {
        "all": [page]
        "raw": ["mmu_valid_gen=" raw valid_gen " gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "raw, v5.1-v5.3": ["gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "plugin": ["sp gfn " hex gfn " " dec level text old_role " root " dec root_count " " text sync]
    }
    /// A page goes out of sync.
    UnsyncPage "kvm_mmu_unsync_page" {
        "all": [page]
        "raw": ["mmu_valid_gen=" raw valid_gen " gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "raw, v5.1-v5.3": ["gfn=" raw gfn " role=" raw role " root_count=" raw root_count " unsync=" raw unsync]
        "plugin": ["sp gfn " hex gfn " " dec level text old_role " root " dec root_count " " text sync]
    }
    /// An MMIO SPTE is written.
    MarkMmioSpte "mark_mmio_spte" {
        "all": ["sptep:" text sptep " gfn " hex gfn " access " hex access " gen " hex gen]
        "raw": ["sptep=" raw sptep " gfn=" raw gfn " access=" raw access " gen=" raw gen]
    }
    /// The generation of an MMIO SPTE is checked.
    CheckMmioSpte "check_mmio_spte" {
        "all": ["spte " hex spte " kvm_gen " hex kvm_gen " spte-gen " hex spte_gen " valid " signed valid]
        "raw": ["kvm_gen=" raw kvm_gen " spte_gen=" raw spte_gen " spte=" raw spte]
    }
    /// A fresh MMIO SPTE answered a fault.
    HandleMmioPageFault "handle_mmio_page_fault" {
        "all": ["addr:" hex addr " gfn " hex gfn " access " hex access]
        "raw": ["addr=" raw addr " gfn=" raw gfn " access=" raw access]
    }
    /// The lockless path looked at an entry.
    FastPageFault "fast_page_fault" {
        "all": ["vcpu " signed vcpu " gva " hex gva " error_code " text error_code " sptep " text sptep
            " old " hex0x old " new " hex new " spurious " signed spurious " fixed " signed fixed]
        "raw": ["vcpu_id=" signed vcpu " cr2_or_gpa=" raw gva " error_code=" raw error_code " sptep=" raw sptep
            " old_spte=" raw old " new_spte=" raw new " ret=" signed ret]
    }
    /// v5.0 invalidates all pages.
    InvalidateZapAllPages "kvm_mmu_invalidate_zap_all_pages" {
        "v5.0": ["kvm-mmu-valid-gen " hex valid_gen " used_pages " hex used_pages]
        "raw": ["mmu_valid_gen=" raw valid_gen " mmu_used_pages=" raw used_pages]
    }
    /// v5.4 and later invalidate all pages.
    ZapAllFast "kvm_mmu_zap_all_fast" {
        "v5.4+": ["kvm-mmu-valid-gen " dec valid_gen " used_pages " hex used_pages]
        "raw": ["mmu_valid_gen=" raw valid_gen " mmu_used_pages=" raw used_pages]
    }
    /// A fault is about to map.
    SpteRequested "kvm_mmu_spte_requested" {
        "v5.3+": ["gfn " hex gfn " pfn " hex pfn " level " dec level]
        "v7.2+": ["gfn " hex gfn " pfn " hex pfn " level " dec level " access " hex access]
        "raw": ["gfn=" raw gfn " pfn=" raw pfn " level=" raw level]
        "raw, v7.2+": ["gfn=" raw gfn " pfn=" raw pfn " level=" raw level " access=" raw access]
    }
    /// A leaf was written.
    SetSpte "kvm_mmu_set_spte" {
        "v5.3+": ["gfn " hex gfn " spte " hex spte " (" text access ") level " dec level " at " hex sptep]
        "raw": ["gfn=" raw gfn " spte=" raw spte " sptep=" raw sptep " level=" raw level " r=" raw r " x=" raw x " u=" signed u]
    }
    /// A huge SPTE is split ahead of time.
    SplitHugePage "kvm_mmu_split_huge_page" {
        "v6.1+": ["gfn " hex gfn " spte " hex spte " level " dec level " errno " signed errno]
        "raw": ["gfn=" raw gfn " spte=" raw spte " level=" signed level " errno=" signed errno]
    }
    /// The TDP MMU changed an entry.
    TdpMmuSpteChanged "kvm_tdp_mmu_spte_changed" {
        "v5.11+": ["as id " signed as_id " gfn " hex gfn " level " dec level " old_spte " hex old_spte " new_spte " hex new_spte]
        "raw": ["gfn=" raw gfn " old_spte=" raw old_spte " new_spte=" raw new_spte " level=" raw level " as_id=" raw as_id]
    }
    /// A software walk of guest tables begins.
    PagetableWalk "kvm_mmu_pagetable_walk" {
        "all": ["addr " hex addr " pferr " hex pferr text flags]
        "raw": ["addr=" raw addr " pferr=" raw pferr]
    }
    /// One entry of that walk.
    PagingElement "kvm_mmu_paging_element" {
        "all": ["pte " hex pte " level " dec level]
        "raw": ["pte=" raw pte " level=" raw level]
    }
    /// The walk set an accessed bit.
    SetAccessedBit "kvm_mmu_set_accessed_bit" {
        "all": ["gpa " hex gpa]
        "raw": ["gpa=" raw gpa]
    }
    /// The walk set a dirty bit.
    SetDirtyBit "kvm_mmu_set_dirty_bit" {
        "all": ["gpa " hex gpa]
        "raw": ["gpa=" raw gpa]
    }
    /// The walk ended in a fault of the guest.
    WalkerError "kvm_mmu_walker_error" {
        "all": ["pferr " hex pferr text flags]
        "raw": ["pferr=" raw pferr]
    }
    /// A page fault exit.
    PageFault "kvm_page_fault" {
        "v6.1+": ["vcpu " dec vcpu " rip " hex0x rip " address " hex0x16 address " error_code " hex0x error_code]
        "v5.x": ["address " hex address " error_code " hex error_code]
        "raw, v6.1+": ["vcpu_id=" raw vcpu " guest_rip=" raw rip " fault_address=" raw address " error_code=" raw error_code]
        "raw, v5.x": ["fault_address=" raw address " error_code=" raw error_code]
    }
    /// A vCPU enters the guest.
    Entry "kvm_entry" {
        "v5.8+": ["vcpu " dec vcpu ", rip " hex0x rip]
        "v6.18+": ["vcpu " dec vcpu ", rip " hex0x rip " intr_info " hex0x8 intr_info " error_code " hex0x8 error_code]
        "v5.x": ["vcpu " dec vcpu]
        "v6.18+, at once": ["vcpu " dec vcpu ", rip " hex0x rip " intr_info " hex0x8 intr_info " error_code " hex0x8 error_code
            "[immediate exit]"]
        "v5.8+, at once": ["vcpu " dec vcpu ", rip " hex0x rip "[immediate exit]"]
        "raw, v5.8+": ["vcpu_id=" raw vcpu " rip=" raw rip]
        "raw, v6.1+": ["vcpu_id=" raw vcpu " rip=" raw rip " immediate_exit=" raw immediate_exit]
        "raw, v6.18+": ["vcpu_id=" raw vcpu " rip=" raw rip " immediate_exit=" raw immediate_exit " intr_info=" raw intr_info
            " error_code=" raw error_code]
        "raw, v5.x": ["vcpu_id=" raw vcpu]
    }
    /// A vCPU leaves the guest.
    Exit "kvm_exit" {
        "v5.10+": ["vcpu " dec vcpu " reason " text reason " rip " hex0x rip " info1 " hex0x16 info1 " info2 " hex0x16 info2
            " intr_info " hex0x8 intr_info " error_code " hex0x8 error_code]
        "v6.18+": ["vcpu " dec vcpu " reason " text reason " rip " hex0x rip " info1 " hex0x16 info1 " info2 " hex0x16 info2
            " intr_info " hex0x8 intr_info " error_code " hex0x8 error_code " requests " hex0x16 requests]
        "v5.x": ["reason " text reason " rip " hex0x rip " info " hex info1 " " hex info2]
        "raw": ["exit_reason=" raw exit_reason " guest_rip=" raw rip " isa=" raw isa " info1=" raw info1 " info2=" raw info2
            " intr_info=" raw intr_info " error_code=" raw error_code " vcpu_id=" raw vcpu]
        "raw, v6.18+": ["exit_reason=" raw exit_reason " guest_rip=" raw rip " isa=" raw isa " info1=" raw info1 " info2=" raw info2
            " intr_info=" raw intr_info " error_code=" raw error_code " vcpu_id=" raw vcpu " requests=" raw requests]
    }
    /// An exit to user space.
    UserspaceExit "kvm_userspace_exit" {
        "all": ["reason " text reason " (" signed number ")"]
        "raw": ["reason=" raw reason " errno=" signed number]
    }
    /// An access to emulated memory.
    Mmio "kvm_mmio" {
        "all": ["mmio " text what " len " dec len " gpa " hex0x gpa " val " hex0x val]
        "raw": ["type=" raw type " len=" raw len " gpa=" raw gpa " val=" raw val]
    }
    /// The vCPU's MMIO cache answered.
    VcpuMatchMmio "vcpu_match_mmio" {
        "all": ["gva " hex0x gva " gpa " hex0x gpa " " text access " " text matched]
        "raw": ["gva=" raw gva " gpa=" raw gpa " write=" raw write " gpa_match=" raw gpa_match]
    }
    /// An instruction is emulated.
    EmulateInsn "kvm_emulate_insn" {
        "all": [hex csbase ":" hex rip ":" text insn " (" text mode ")" text failed]
        "raw": ["rip=" raw rip " csbase=" raw csbase " len=" raw len " insn=" text insn " flags=" raw flags " failed=" raw failed]
    }
    /// A control register is accessed.
    Cr "kvm_cr" {
        "all": ["cr_" text what " " hex cr " = " hex0x value]
        "raw": ["rw=" raw rw " cr=" raw cr " val=" raw value]
    }
    /// An exception is injected.
    InjException "kvm_inj_exception" {
        "raw": ["exception=" raw exception " has_error=" raw has_error " error_code=" raw error_code " reinjected=" raw reinjected]
        "all": [text exception]
    }
    /// INVLPGA.
    Invlpga "kvm_invlpga" {
        "raw": ["rip=" raw rip " asid=" raw asid " address=" raw address]
        "all": [text what]
    }
    /// A page is aged.
    AgePage "kvm_age_page" { "v5.x": [text what] }
    /// Notifier: a host range goes away.
    UnmapHvaRange "kvm_unmap_hva_range" {
        "all": ["mmu notifier unmap range: " hexalt16 start " -- " hexalt16 end]
        "raw": ["start=" raw start " end=" raw end]
    }
    /// Notifier: a host page was replaced.
    SetSpteHva "kvm_set_spte_hva" {
        "up to v6.11": ["mmu notifier set pte hva: " hexalt16 hva]
        "raw": ["hva=" raw hva]
    }
    /// Notifier: a host range is aged.
    AgeHva "kvm_age_hva" {
        "all": ["mmu notifier age hva: " hexalt16 start " -- " hexalt16 end]
        "raw": ["start=" raw start " end=" raw end]
    }
    /// Notifier: is a host page young?
    TestAgeHva "kvm_test_age_hva" {
        "all": ["mmu notifier test age hva: " hexalt16 hva]
        "raw": ["hva=" raw hva]
    }
    /// A vCPU enters or leaves SMM.
    SmmTransition "kvm_smm_transition" {
        "all": ["vcpu " dec vcpu ": " text direction " SMM, smbase " hex0x smbase]
        "raw": ["vcpu_id=" raw vcpu " smbase=" raw smbase " entering=" raw entering]
    }
    /// What a program wrote with `trace_marker`.
    Marker "tracing_mark_write" {
        "raw": ["ip=" raw ip " buf=" text marker]
        "trace-cmd": ["tracing_mark_write: " text marker]
        "all": [text marker]
    }
    /// What host memory answered; added by stripping, no kernel prints it.
    HostAnswer "replay_host_answer" { "replay": ["set " dec set " writable " dec writable " found " text found] }
    /// Kprobe: a write to a shadowed table is emulated.
    PteWrite "pte_write" {
        "probe": ["(" text at ") gpa=" hex0x gpa " val=" hex0x val " bytes=" dec bytes]
        "raw": ["__probe_ip=" raw at " gpa=" raw gpa " val=" raw val " bytes=" raw bytes]
    }
    /// Kprobe.
    SetMemslot "set_memslot" {
        "probe": ["(" text at ") change=" signed change]
        "raw": ["__probe_ip=" raw at " change=" signed change]
    }
    /// Kprobe.
    SwapMemslots "swap_memslots" {
        "probe": ["(" text at ") as_id=" signed as_id]
        "raw": ["__probe_ip=" raw at " as_id=" signed as_id]
    }
    /// Kprobe: a memslot array is about to be visible.
    MemslotsUpdated "memslots_updated" {
        "probe": ["(" text at ") gen=" hex0x gen]
        "raw": ["__probe_ip=" raw at " gen=" raw gen]
    }
    /// Kprobe: the wrap test.
    InvalidateMmio "invalidate_mmio" {
        "probe": ["(" text at ") gen=" hex0x gen]
        "raw": ["__probe_ip=" raw at " gen=" raw gen]
    }
    /// Kprobe.
    FlushShadowMemslot "flush_shadow_memslot" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    ZapAllFastEnter "zap_all_fast_enter" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe: reclaim is asked for pages.
    ZapOldest "zap_oldest" {
        "probe": ["(" text at ") nr=" dec nr]
        "raw": ["__probe_ip=" raw at " nr=" raw nr]
    }
    /// Kprobe: reclaim's answer.
    ZapOldestRet "zap_oldest_ret" {
        "probe": ["(" text at ") ret=" dec ret]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " ret=" raw ret]
    }
    /// Kprobe.
    CommitZap "commit_zap" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    ChangeMmuPages "change_mmu_pages" {
        "probe": ["(" text at ") goal=" dec goal]
        "raw": ["__probe_ip=" raw at " goal=" raw goal]
    }
    /// Kprobe.
    SlotWrprot "slot_wrprot" {
        "probe": ["(" text at ") start_level=" signed start_level]
        "raw": ["__probe_ip=" raw at " start_level=" signed start_level]
    }
    /// Kprobe.
    SlotClearDirty "slot_clear_dirty" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    ZapCollapsible "zap_collapsible" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    DirtyMasked "dirty_masked" {
        "probe": ["(" text at ") gfn_offset=" hex0x gfn_offset " mask=" hex0x mask]
        "raw": ["__probe_ip=" raw at " gfn_offset=" raw gfn_offset " mask=" raw mask]
    }
    /// Kprobe.
    NewPgd "new_pgd" {
        "probe": ["(" text at ") pgd=" hex0x pgd]
        "raw": ["__probe_ip=" raw at " pgd=" raw pgd]
    }
    /// Kprobe.
    SyncRoots "sync_roots" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    SyncPrevRoots "sync_prev_roots" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    MmuLoad "mmu_load" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    MmuUnload "mmu_unload" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    FreeRoots "free_roots" {
        "probe": ["(" text at ") mask=" hex0x mask]
        "raw": ["__probe_ip=" raw at " mask=" raw mask]
    }
    /// Kprobe.
    ResetContext "reset_context" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    FreeObsoleteRoots "free_obsolete_roots" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    Invlpg "invlpg" {
        "probe": ["(" text at ") gva=" hex0x gva]
        "raw": ["__probe_ip=" raw at " gva=" raw gva]
    }
    /// Kprobe.
    MakeMmioSpte "make_mmio_spte" {
        "probe": ["(" text at ") gfn=" hex0x gfn " access=" hex0x access]
        "raw": ["__probe_ip=" raw at " gfn=" raw gfn " access=" raw access]
    }
    /// Kprobe.
    MakeMmioSpteRet "make_mmio_spte_ret" {
        "probe": ["(" text at ") spte=" hex0x spte]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " spte=" raw spte]
    }
    /// Kprobe.
    PageFaultRet "page_fault_ret" {
        "probe": ["(" text at ") ret=" signed ret]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " ret=" signed ret]
    }
    /// Kprobe: a fault as the MMU gets it (on an Intel host `kvm_page_fault` has the exit's qualification instead).
    MmuFault "mmu_fault" {
        "probe": ["(" text at ") gpa=" hex0x gpa " error_code=" hex0x error_code]
        "raw": ["__probe_ip=" raw at " gpa=" raw gpa " error_code=" raw error_code]
    }
    /// Kprobe: a gfn taken from the PML buffer.
    VcpuMarkDirty "vcpu_mark_dirty" {
        "probe": ["(" text at ") gfn=" hex0x gfn]
        "raw": ["__probe_ip=" raw at " gfn=" raw gfn]
    }
    /// Kprobe.
    UnprotectPage "unprotect_page" {
        "probe, v6.1": ["(" text at ") gfn=" hex0x gfn]
        "raw, v6.1": ["__probe_ip=" raw at " gfn=" raw gfn]
        "probe, v6.12": ["(" text at ") cr2=" hex0x cr2 " always=" dec always]
        "raw, v6.12": ["__probe_ip=" raw at " cr2=" raw cr2 " always=" raw always]
    }
    /// Kprobe.
    UnprotectPageRet "unprotect_page_ret" {
        "probe": ["(" text at ") ret=" dec ret]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " ret=" raw ret]
    }
    /// Kprobe.
    TryUnsync "try_unsync" {
        "probe": ["(" text at ") gfn=" hex0x gfn " can_unsync=" dec can_unsync " prefetch=" dec prefetch]
        "raw": ["__probe_ip=" raw at " gfn=" raw gfn " can_unsync=" raw can_unsync " prefetch=" raw prefetch]
    }
    /// Kprobe.
    TryUnsyncRet "try_unsync_ret" {
        "probe": ["(" text at ") ret=" signed ret]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " ret=" signed ret]
    }
    /// Kprobe: an entry of a zapped page.
    PageZapPte "page_zap_pte" {
        "probe": ["(" text at ") sptep=" hex0x sptep " spte=" hex0x spte]
        "raw": ["__probe_ip=" raw at " sptep=" raw sptep " spte=" raw spte]
    }
    /// Kprobe.
    FlushRemoteTlbs "flush_remote_tlbs" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    FlushRemoteTlbsRange "flush_remote_tlbs_range" {
        "probe": ["(" text at ") gfn=" hex0x gfn " pages=" dec pages]
        "raw": ["__probe_ip=" raw at " gfn=" raw gfn " pages=" raw pages]
    }
    /// Kprobe.
    CondReschedWr "cond_resched_wr" {
        "probe": ["(" text at ")"]
        "raw": ["__probe_ip=" raw at]
    }
    /// Kprobe.
    CondReschedWrRet "cond_resched_wr_ret" {
        "probe": ["(" text at ") ret=" signed ret]
        "raw": ["__probe_func=" raw func " __probe_ret_ip=" raw at " ret=" signed ret]
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{MAX_NUMBERS, MAX_TEXTS};
    use super::*;

    #[test]
    fn names_are_unique_and_find_their_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::by_name(kind.name().as_bytes()), Some(*kind));
        }
        assert_eq!(Kind::by_name(b"sched_switch"), None);
        assert_eq!(Kind::by_name(b"\xff"), None);
    }

    #[test]
    fn every_wording_fits_an_event_and_has_text_between_texts() {
        for kind in Kind::ALL {
            for wording in kind.wordings() {
                assert!(wording.nr_numbers() <= MAX_NUMBERS && wording.nr_texts() <= MAX_TEXTS, "{kind:?}");
                for pair in wording.tokens.windows(2) {
                    let is_text = |token: &Token| matches!(token, Token::Value(Field::Text(_)));
                    assert!(!is_text(&pair[0]) || matches!(pair[1], Token::Literal(_)), "{kind:?}");
                }
            }
        }
    }
}
