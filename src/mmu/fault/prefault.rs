//! Mapping ahead of the guest at user space's wish.
//!
//! Models v6.12 `kvm_arch_vcpu_pre_fault_memory`, `kvm_tdp_map_page`. A signal is pending after eight looks, so that a
//! root that nobody drops ends the call.

use crate::mmu::fault::page_fault::Handled;
use crate::mmu::pages::page_arena::PageIdx;
use crate::mmu::vm::state::MmuState;
use crate::mmu::words::access::PFERR_GUEST_FINAL;
use crate::mmu::words::addr::Gfn;
use crate::mmu::words::error::Result;
use crate::mmu::words::level::pages_per;
use crate::mmu::words::views::HostLookup;

const EINTR: i64 = 4;
const ENOENT: i64 = 2;
const LOOKS: u32 = 8;

impl MmuState {
    /// Maps what covers an address; how many of the bytes asked for are mapped then, or a negative errno.
    pub(in crate::mmu) fn prefault(&mut self, vcpu: usize, gpa: u64, size: u64, host: &HostLookup) -> Result<i64> {
        if self.vcpus[vcpu].root == PageIdx::NONE {
            let loaded = self.load(vcpu)?;
            if loaded != 0 {
                return Ok(loaded.into());
            }
        }
        for _ in 0..LOOKS {
            let (handled, level) = self.direct_page_fault(vcpu, gpa, PFERR_GUEST_FINAL, host, true)?;
            match handled {
                Handled::Retry => {}
                Handled::Errno(errno) => return Ok(-i64::from(errno)),
                Handled::Emulate => return Ok(-ENOENT),
                Handled::Fixed | Handled::Spurious | Handled::WriteProtected => {
                    let end = Gfn::of_gpa(gpa).align_down(level).gpa().wrapping_add(pages_per(level) << 12);
                    return Ok(i64::try_from(size.min(end.wrapping_sub(gpa))).unwrap_or(i64::MAX));
                }
            }
        }
        Ok(-EINTR)
    }
}
