//! Whether the rights of a walk allow what was wanted: a pure function of the mode, the rights and the access.
//!
//! From the architecture: the rights of a page are those that every entry of the walk gives; on top of them stand CR0.WP,
//! SMEP, SMAP and protection keys. Models `permission_fault`, v5.0 to v7.3.

use crate::mmu::words::access::{
    ACC_EXEC, ACC_USER, ACC_WRITE, PFERR_FETCH, PFERR_PK, PFERR_PRESENT, PFERR_USER, PFERR_WRITE,
};
use crate::mmu::words::guest_mode::GuestMode;

/// What an access wants. A plain read by a supervisor wants none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an independent fact of the access")]
pub struct Wanted {
    /// A write.
    pub is_write: bool,
    /// An access from privilege level 3.
    pub is_user: bool,
    /// An instruction fetch.
    pub is_fetch: bool,
    /// A supervisor's access that no instruction asked for (descriptor tables and the like): `EFLAGS.AC` does not help it.
    pub is_implicit: bool,
}

impl Wanted {
    /// What a page fault's error code says was wanted.
    #[must_use]
    pub const fn of_error_code(error_code: u64) -> Self {
        Self {
            is_write: error_code & PFERR_WRITE != 0,
            is_user: error_code & PFERR_USER != 0,
            is_fetch: error_code & PFERR_FETCH != 0,
            is_implicit: false,
        }
    }
}

impl GuestMode {
    /// Judges an access to a page: 0 if it is allowed, else the bits of the error code that say why (present, and the bit
    /// of the protection key if the key forbids it, whatever else does).
    ///
    /// `access` is what all entries of the walk give, `key` the key of the leaf.
    #[inline]
    #[must_use]
    pub const fn refusal(&self, access: u8, key: u8, wanted: Wanted, pkru: u32, ac: bool) -> u64 {
        let is_user_page = access & ACC_USER != 0;
        let is_denied = wanted.is_write && access & ACC_WRITE == 0 && (wanted.is_user || self.wp)
            || wanted.is_user && !is_user_page
            || wanted.is_fetch && self.nx && access & ACC_EXEC == 0
            || !wanted.is_user && is_user_page && self.supervisor_is_kept_out(wanted, ac);
        let is_denied_by_key = self.pke && is_user_page && !wanted.is_fetch && self.key_denies(key, wanted, pkru);
        if is_denied_by_key {
            PFERR_PRESENT | PFERR_PK
        } else if is_denied {
            PFERR_PRESENT
        } else {
            0
        }
    }

    const fn supervisor_is_kept_out(&self, wanted: Wanted, ac: bool) -> bool {
        if wanted.is_fetch { self.smep } else { self.smap && (wanted.is_implicit || !ac) }
    }

    const fn key_denies(&self, key: u8, wanted: Wanted, pkru: u32) -> bool {
        let bits = pkru >> (2 * (key & 0xf)) & 0b11;
        bits & 1 != 0 || wanted.is_write && bits & 2 != 0 && (wanted.is_user || self.keys_obey_wp)
    }

    /// The error code of the guest's page fault: the reason and what was wanted. Fetches are told apart only where the
    /// guest can forbid them.
    #[inline]
    #[must_use]
    pub const fn error_code(&self, reason: u64, wanted: Wanted) -> u64 {
        let mut code = reason;
        if wanted.is_write {
            code |= PFERR_WRITE;
        }
        if wanted.is_user {
            code |= PFERR_USER;
        }
        if wanted.is_fetch && (self.nx || self.smep) {
            code |= PFERR_FETCH;
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::words::guest_mode::{
        CR0_PG, CR0_WP, CR4_PAE, CR4_PKE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NX, Registers,
    };

    const READ: Wanted = Wanted { is_write: false, is_user: false, is_fetch: false, is_implicit: false };
    const WRITE: Wanted = Wanted { is_write: true, ..READ };
    const FETCH: Wanted = Wanted { is_fetch: true, ..READ };
    const USER_READ: Wanted = Wanted { is_user: true, ..READ };
    const USER_WRITE: Wanted = Wanted { is_write: true, ..USER_READ };
    const DENIED: u64 = 1;
    const BY_KEY: u64 = 0x21;

    fn mode(cr0: u64, cr4: u64) -> GuestMode {
        let registers =
            Registers { cr0: CR0_PG | cr0, cr4: CR4_PAE | cr4, efer: EFER_LMA | EFER_NX, ..Registers::default() };
        GuestMode::of(&registers, 46, false)
    }

    #[test]
    fn write_protection_binds_a_supervisor_only_with_wp() {
        let read_only = ACC_USER | ACC_EXEC;
        assert_eq!(mode(CR0_WP, 0).refusal(read_only, 0, WRITE, 0, false), DENIED);
        assert_eq!(mode(0, 0).refusal(read_only, 0, WRITE, 0, false), 0);
        assert_eq!(mode(0, 0).refusal(read_only, 0, USER_WRITE, 0, false), DENIED);
    }

    #[test]
    fn a_supervisor_is_kept_out_of_user_pages() {
        let user = ACC_USER | ACC_WRITE | ACC_EXEC;
        assert_eq!(mode(0, CR4_SMEP).refusal(user, 0, FETCH, 0, true), DENIED);
        assert_eq!(mode(0, CR4_SMEP).refusal(user, 0, READ, 0, false), 0);
        assert_eq!(mode(0, CR4_SMAP).refusal(user, 0, READ, 0, false), DENIED);
        assert_eq!(mode(0, CR4_SMAP).refusal(user, 0, READ, 0, true), 0);
        assert_eq!(mode(0, CR4_SMAP).refusal(user, 0, Wanted { is_implicit: true, ..READ }, 0, true), DENIED);
        assert_eq!(mode(0, CR4_SMAP).refusal(ACC_WRITE, 0, READ, 0, false), 0);
        assert_eq!(mode(0, CR4_SMAP).refusal(ACC_WRITE, 0, USER_READ, 0, false), DENIED);
    }

    #[test]
    fn keys_bind_user_pages_alone() {
        let user = ACC_USER | ACC_WRITE | ACC_EXEC;
        let access_disable = 1 << 6;
        let write_disable = 1 << 7;
        let on = mode(0, CR4_PKE);
        assert_eq!(on.refusal(user, 3, READ, access_disable, false), BY_KEY);
        assert_eq!(on.refusal(user, 2, READ, access_disable, false), 0);
        assert_eq!(on.refusal(user, 3, FETCH, access_disable, false), 0);
        assert_eq!(on.refusal(ACC_WRITE, 3, READ, access_disable, false), 0);
        assert_eq!(on.refusal(user, 3, WRITE, write_disable, false), 0);
        assert_eq!(on.refusal(user, 3, USER_WRITE, write_disable, false), BY_KEY);
        assert_eq!(mode(CR0_WP, CR4_PKE).refusal(user, 3, WRITE, write_disable, false), BY_KEY);
        assert_eq!(mode(CR0_WP, 0).refusal(user, 3, USER_WRITE, write_disable, false), 0);
    }

    #[test]
    fn a_fetch_is_told_where_it_can_be_forbidden() {
        assert_eq!(mode(0, 0).error_code(1, FETCH), 0x11);
        let mut old = mode(0, 0);
        old.nx = false;
        assert_eq!(old.error_code(0, FETCH), 0);
        old.smep = true;
        assert_eq!(old.error_code(0, Wanted { is_user: true, ..FETCH }), 0x14);
    }
}
