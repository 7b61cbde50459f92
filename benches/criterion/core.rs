//! The small rows under criterion, for comparing two versions of the core:
//! `cargo bench --manifest-path benches/Cargo.toml -- --save-baseline before`, change, `-- --baseline before`.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_mmu_benches::rows::cases;

/// Cases that make their state in milliseconds.
const SMALL: [&str; 11] = [
    "map/1 GiB",
    "map-random/1 GiB",
    "map-descending/1 GiB",
    "mmio-first/",
    "mmio-hit/random",
    "mmio-cached/",
    "mmio-stale/",
    "write-protect/writable",
    "fast-page-fault/",
    "zap-sparse/10k",
    "wrap-10k/1 %",
];

fn core(criterion: &mut Criterion) {
    for case in cases().into_iter().filter(|case| SMALL.contains(&case.name.as_str())) {
        criterion.bench_function(&format!("{} {}", case.name, case.kernel), |bencher| {
            // A case makes its own state, so one run is many operations; criterion is told the time of one.
            bencher.iter_custom(|rounds| {
                (0..rounds).map(|_| Duration::from_secs_f64((case.run)().ns() * 1e-9)).sum::<Duration>()
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_nanos(1))
        .measurement_time(Duration::from_nanos(1));
    targets = core
}
criterion_main!(benches);
