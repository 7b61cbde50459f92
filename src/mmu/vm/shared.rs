//! `Shared`: a part of a VM that a VM and its copies hold together until one of them changes it.
//!
//! Ours. A part that one VM alone holds is stored in line and costs a test, no counter and no atomic; only a copy made
//! by [`Mmu::fork`](crate::mmu::Mmu::fork) makes it common. Invariant: what is common is never written to; who writes takes
//! the part back first, as it is if the others have gone, as a copy of its own otherwise.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A part of a VM.
#[derive(Clone, Debug)]
pub enum Shared<T> {
    /// Nobody else has it.
    Own(T),
    /// A copy of the VM has it, or had it.
    Common(Arc<T>),
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self::Own(T::default())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a test before a read")]
    fn deref(&self) -> &T {
        match self {
            Self::Own(part) => part,
            Self::Common(part) => part,
        }
    }
}

impl<T: Clone + Default> Shared<T> {
    /// The part, to change.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a test before a write")]
    pub fn own(&mut self) -> &mut T {
        if let Self::Common(_) = self {
            self.take_back();
        }
        match self {
            Self::Own(part) => part,
            Self::Common(part) => Arc::make_mut(part),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_back(&mut self) {
        if let Self::Common(part) = std::mem::take(self) {
            *self = Self::Own(Arc::unwrap_or_clone(part));
        }
    }

    /// Makes the part common, so that a clone of this does not copy it.
    pub fn lend(&mut self) {
        if let Self::Own(part) = self {
            *self = Self::Common(Arc::new(std::mem::take(part)));
        }
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(Self::Own)
    }
}
