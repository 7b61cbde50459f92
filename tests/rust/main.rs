//! Tests of the core through its facade.

mod codec;

/// Where the shared recordings are, if they are here.
fn shared_root() -> Option<std::path::PathBuf> {
    let root = std::env::var_os("KVM_MMU_SHARED")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), std::path::PathBuf::from);
    if root.join("vectors").is_dir() {
        return Some(root);
    }
    eprintln!("skipped: no recordings at {}", root.display());
    None
}
