//! The MMIO codec against the recorded values of the kernel's own code; skipped with a message where they are absent.
