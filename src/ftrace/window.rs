//! A part of a trace: events of a span of time, of some CPUs, of some processes.
//!
//! Owns: what is inside. A task's process is the one that the trace names behind it, else the task itself.

/// Which events are looked at.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// No earlier ones, nanoseconds.
    pub from_ns: u64,
    /// No later ones, nanoseconds.
    pub to_ns: Option<u64>,
    /// Only those of these CPUs.
    pub cpus: Option<Vec<u32>>,
    /// Only those of these processes.
    pub vms: Option<Vec<u64>>,
}

impl Window {
    pub(super) fn has(&self, cpu: u32, time: u64) -> bool {
        self.cpus.as_ref().is_none_or(|cpus| cpus.contains(&cpu))
            && time >= self.from_ns
            && self.to_ns.is_none_or(|to| time <= to)
    }

    pub(super) fn has_task(&self, task: &[u8]) -> bool {
        self.vms.as_ref().is_none_or(|vms| process_of(task).is_some_and(|process| vms.contains(&process)))
    }
}

/// The process of a task: in brackets behind it, else the last number behind a dash.
fn process_of(task: &[u8]) -> Option<u64> {
    let number = |text: &[u8]| -> Option<u64> { std::str::from_utf8(text).ok()?.parse().ok() };
    if let Some(inside) = task.strip_suffix(b")")
        && let Some(open) = memchr::memrchr(b'(', inside)
    {
        let digits = inside[open + 1..].trim_ascii_start();
        if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
            return number(digits);
        }
    }
    let mut dashes = memchr::memrchr_iter(b'-', task).map(|dash| &task[dash + 1..]);
    dashes.find_map(|rest| {
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let is_number = (1..=10).contains(&end) && rest[..end].iter().all(u8::is_ascii_digit);
        is_number.then(|| number(&rest[..end])).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes() {
        assert_eq!(process_of(b"CPU 0/KVM-4712 (   4711)"), Some(4711));
        assert_eq!(process_of(b"a-b-17"), Some(17));
        assert_eq!(process_of(b"a-17 b-x"), Some(17));
        assert_eq!(process_of(b"nothing"), None);
    }
}
