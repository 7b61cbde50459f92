//! The body of a known event: what is read, written and read again is the same.
#![no_main]

use kvm_mmu::ftrace::event::Outcome;
use kvm_mmu::ftrace::{Event, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let name = Kind::ALL[usize::from(*first) % Kind::ALL.len()].name().as_bytes();
    let mut event = Event::default();
    if event.read(name, body) != Outcome::Known {
        return;
    }
    let mut text = Vec::new();
    event.write(&mut text);
    let mut again = Event::default();
    assert_eq!(again.read(name, &text), Outcome::Known);
    assert_eq!(again.numbers(), event.numbers());
    assert_eq!(again.page(), event.page());
    assert_eq!(again.texts(), event.texts());
});
