//! The guest's memory, as far as something was stored in it: bytes at host addresses, zero at first.
//!
//! A value is read and written contiguously from the host address of its first byte, little endian. Which host address a
//! gfn has is its memslot's to say, so a moved slot takes its content along. Pages are shared between clones until one of
//! them is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;
const PAGE_SHIFT: u32 = 12;

/// Pages that hold anything but what they had at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestMemory {
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
}

impl GuestMemory {
    /// The value of so many bytes (at most 8) at a host address.
    #[must_use]
    pub fn read(&self, hva: u64, size: u8) -> u64 {
        let size = usize::from(size.min(8));
        let at = offset(hva);
        let mut bytes = [0; 8];
        if at + size <= PAGE_BYTES {
            let Some(page) = self.pages.get(&(hva >> PAGE_SHIFT)) else { return 0 };
            bytes[..size].copy_from_slice(&page[at..at + size]);
        } else {
            for (at, byte) in bytes[..size].iter_mut().enumerate() {
                let hva = hva.wrapping_add(at as u64);
                *byte = self.pages.get(&(hva >> PAGE_SHIFT)).map_or(0, |page| page[offset(hva)]);
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Stores a value of so many bytes (at most 8) at a host address.
    pub fn write(&mut self, hva: u64, value: u64, size: u8) {
        for (at, byte) in value.to_le_bytes().into_iter().take(usize::from(size)).enumerate() {
            let hva = hva.wrapping_add(at as u64);
            let page = self.pages.entry(hva >> PAGE_SHIFT).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[offset(hva)] = byte;
        }
    }

    /// Adds what it holds as numbers; two that read alike give the same.
    pub fn add_to(&self, mut add: impl FnMut(u64)) {
        for (&page, bytes) in &self.pages {
            for (at, word) in (0_u64..).zip(bytes.chunks_exact(8)) {
                let word = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
                if word != 0 {
                    add(page << 9 | at);
                    add(word);
                }
            }
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.pages.len() * (PAGE_BYTES + size_of::<(u64, Arc<[u8; PAGE_BYTES]>)>())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "twelve bits are kept")]
const fn offset(hva: u64) -> usize {
    hva as usize & (PAGE_BYTES - 1)
}

/// What is saved: page number, then the words that are not zero with their places.
type Saved = Vec<(u64, Vec<(u16, u64)>)>;

impl Serialize for GuestMemory {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let words =
            |page: u64| (0..512_u16).map(move |at| (at, self.read((page << PAGE_SHIFT) + u64::from(at) * 8, 8)));
        let saved: Saved =
            self.pages.keys().map(|&page| (page, words(page).filter(|&(_, word)| word != 0).collect())).collect();
        saved.serialize(to)
    }
}

impl<'de> Deserialize<'de> for GuestMemory {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut memory = Self::default();
        for (page, words) in Saved::deserialize(from)? {
            let hva = page << PAGE_SHIFT;
            memory.write(hva, 0, 8);
            for (at, word) in words {
                memory.write(hva + u64::from(at % 512) * 8, word, 8);
            }
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_until_something_is_stored() {
        let mut memory = GuestMemory::default();
        assert_eq!(memory.read(0x1000, 8), 0);
        memory.write(0x1008, 0x1122_3344_5566_7788, 8);
        assert_eq!(memory.read(0x1008, 8), 0x1122_3344_5566_7788);
        assert_eq!((memory.read(0x1008, 4), memory.read(0x100c, 4)), (0x5566_7788, 0x1122_3344));
        memory.write(0x100a, 0, 2);
        assert_eq!(memory.read(0x1008, 8), 0x1122_3344_0000_7788);
        assert_eq!(memory.pages.keys().copied().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_value_may_cross_pages_and_the_end_of_addresses() {
        let mut memory = GuestMemory::default();
        memory.write(0x1ffe, 0xaabb_ccdd, 4);
        assert_eq!((memory.read(0x1ffe, 4), memory.read(0x2000, 2)), (0xaabb_ccdd, 0xaabb));
        memory.write(u64::MAX - 1, 0x4433_2211, 4);
        assert_eq!((memory.read(u64::MAX - 1, 2), memory.read(0, 2)), (0x2211, 0x4433));
        assert_eq!(memory.read(u64::MAX - 1, 4) & 0xffff, 0x2211);
    }

    #[test]
    fn clones_part_at_the_first_write() {
        let mut memory = GuestMemory::default();
        memory.write(0x1000, 1, 8);
        let mut twin = memory.clone();
        assert_eq!(twin, memory);
        twin.write(0x1000, 2, 8);
        assert_eq!((memory.read(0x1000, 8), twin.read(0x1000, 8)), (1, 2));
        let bytes = postcard::to_stdvec(&twin).expect("it can be written");
        assert_eq!(postcard::from_bytes(&bytes), Ok(twin));
    }
}
