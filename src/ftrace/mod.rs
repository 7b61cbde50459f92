//! Text of the kvmmmu and kvm tracepoints: bytes to events and back.
