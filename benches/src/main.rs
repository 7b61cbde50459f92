//! Measures the core and prints one JSON object a line: `core-speed [--once] [PART...]`.
//!
//! A PART chooses the cases whose `row/case` name contains it. `--once` runs each case once. Progress goes to stderr.

use std::io::{self, IsTerminal as _, Write as _};

use kvm_mmu_benches::rows::{Case, cases};
use kvm_mmu_benches::zap;

fn measure(case: &Case, is_once: bool) -> Vec<f64> {
    let mut runs: Vec<f64> = (0..if is_once { 1 } else { case.runs }).map(|_| (case.run)().ns()).collect();
    runs.sort_by(f64::total_cmp);
    runs
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
        let runs = measure(case, is_once);
        let (median, least, most) = (runs[runs.len() / 2], runs[0], runs[runs.len() - 1]);
        writeln!(
            out,
            r#"{{"case":"{name}","kernel":"{kernel}","ns":{median:.3},"min":{least:.3},"max":{most:.3},"runs":{}}}"#,
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
