//! Measures the core and prints one JSON object a line: `core-speed [--once] [PART...]`.
//!
//! A PART chooses the cases whose `row/case` name contains it. `--once` runs each case once. Progress goes to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use kvm_mmu::mmu::Work;
use kvm_mmu_benches::rows::{Case, cases};
use kvm_mmu_benches::{Timed, zap};

fn measure(case: &Case, is_once: bool) -> (Vec<f64>, Timed) {
    let all: Vec<Timed> = (0..if is_once { 1 } else { case.runs.max(1) }).map(|_| (case.run)()).collect();
    let mut runs: Vec<f64> = all.iter().map(Timed::ns).collect();
    runs.sort_by(f64::total_cmp);
    (runs, all[0])
}

/// What the core counted, an operation: the counters that moved, as the members of a JSON object.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn work_of(one: &Timed) -> String {
    let moved = one.work.iter().flat_map(Work::named).filter(|&(_, count)| count != 0);
    let each = moved.map(|(name, count)| format!(r#""{name}":{:.4}"#, count as f64 / one.count as f64));
    each.collect::<Vec<_>>().join(",")
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_once = args.iter().any(|arg| arg == "--once");
    let parts: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let is_wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()));
    let is_progress_shown = io::stderr().is_terminal();
    let mut out = io::stdout().lock();
    for case in cases().iter().filter(|case| is_wanted(&case.name)) {
        let (name, kernel) = (&case.name, case.kernel);
        if is_progress_shown {
            eprintln!("{name} {kernel}");
        }
        let (runs, one) = measure(case, is_once);
        let work = work_of(&one);
        let (median, least, most) = (runs[runs.len() / 2], runs[0], runs[runs.len() - 1]);
        writeln!(
            out,
            r#"{{"case":"{name}","kernel":"{kernel}","ns":{median:.3},"min":{least:.3},"max":{most:.3},"runs":{},"work":{{{work}}}}}"#,
            runs.len()
        )?;
        out.flush()?;
    }
    for (leaves, case) in [(512, "full tables"), (1, "one entry a table")] {
        let name = format!("bytes-per-page/{case}");
        if is_wanted(&name) {
            writeln!(out, r#"{{"case":"{name}","kernel":"v5.0","bytes":{}}}"#, zap::bytes_per_page(leaves))?;
        }
    }
    Ok(())
}
