"""The old place of `spte_6x`, for those who still look for it here."""

from kvm_mmu.trace import spte_6x as spte

__all__ = ["spte"]
