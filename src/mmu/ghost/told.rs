//! What the ghost is told: words of entries by what they mean to a processor, and how they came to be written; and what it
//! says of them.

/// What a word of an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing, or nothing that a processor walks through: empty, MMIO, frozen.
    Nothing,
    /// A table.
    Link(Link),
    /// A mapping.
    Leaf(Leaf),
}

/// A way to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The table, by its place in the arena.
    pub table: u32,
    /// Address space of the page that holds the entry.
    pub as_id: u8,
    /// First gfn below it.
    pub gfn: u64,
    /// How many gfns lie below it.
    pub pages: u64,
}

/// The entry lets the guest read.
pub const READ: u8 = 1;
/// The entry lets the guest write.
pub const WRITE: u8 = 2;
/// The entry lets the guest execute.
pub const EXEC: u8 = 4;

/// A mapping as a processor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Address space of its page.
    pub as_id: u8,
    /// First gfn it maps.
    pub gfn: u64,
    /// Level of its table.
    pub level: u8,
    /// First host frame.
    pub frame: u64,
    /// [`READ`], [`WRITE`], [`EXEC`].
    pub rights: u8,
    /// The dirty bit is set.
    pub is_dirty: bool,
}

impl Leaf {
    /// How many gfns it maps.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        1 << (9 * (self.level as u32 - 1))
    }
}

/// A mapping, with what the ghost remembers of its making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLeaf {
    /// As a processor sees it.
    pub leaf: Leaf,
    /// When its backing was looked up.
    pub made_at: u64,
    /// A rule of the kernel exempted it from a test because of the entry that stood there.
    pub is_exempt: bool,
}

/// An entry that leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// To a table.
    Link(u32),
    /// To memory.
    Leaf(HeldLeaf),
}

/// How an entry came to be written.
#[expect(clippy::struct_excessive_bools, reason = "what one writer tells of one write")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Place in the arena: table and index.
    pub place: u32,
    /// Its whole table was taken apart.
    pub is_table_taken: bool,
    /// A rule of the kernel exempts the new leaf from a test because of the old entry.
    pub is_exempt: bool,
    /// The slot or the host page is read-only.
    pub is_readonly: bool,
    /// The processor logs dirty pages.
    pub is_pml: bool,
    /// The new word is an MMIO entry.
    pub is_mmio: bool,
}

/// Something that must not be: the property, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Name of the property.
    pub property: &'static str,
    /// Where and how.
    pub detail: String,
    /// The operation that is to blame.
    pub owner: &'static str,
}

/// How often something happened that a property is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Premises {
    /// Accesses taken for MMIO.
    pub mmio: u64,
    /// Guest writes that hit.
    pub writes: u64,
    /// Dirty logs read or cleared.
    pub harvests: u64,
    /// Debts made.
    pub debts: u64,
    /// Tables freed.
    pub freed: u64,
    /// Mappings looked at.
    pub leaves: u64,
    /// Links looked at.
    pub links: u64,
    /// Tracked gfns looked at.
    pub tracked: u64,
    /// Loaded roots looked at.
    pub roots: u64,
}

/// Table of a place.
#[must_use]
pub const fn table_of(place: u32) -> u32 {
    place >> 9
}
