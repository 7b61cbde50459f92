"""The laboratory for KVM's x86 shadow MMU."""
