//! Any bytes in any chunks: no panic, every line counted in exactly one way, and the chunks do not matter.
#![no_main]

use kvm_mmu::ftrace::{Reader, Summary};
use libfuzzer_sys::fuzz_target;

fn read(text: &[u8], chunk: usize) -> Summary {
    let mut reader = Reader::new();
    for part in text.chunks(chunk) {
        reader.feed(part, &mut |_| ());
    }
    reader.finish(&mut |_| ());
    reader.summary
}

fuzz_target!(|data: &[u8]| {
    let Some((first, text)) = data.split_first() else { return };
    let cut = read(text, usize::from(*first) + 1);
    let whole = read(text, usize::MAX);
    let counted = cut.events.iter().sum::<u64>()
        + cut.opaque.values().sum::<u64>()
        + cut.notes
        + cut.blank
        + cut.overlong
        + cut.lost_notes
        + cut.not_understood;
    assert_eq!(cut.lines, counted);
    assert_eq!((cut.events, cut.opaque, cut.not_understood), (whole.events, whole.opaque, whole.not_understood));
    assert_eq!((cut.span_ns, cut.lost, cut.raw, cut.plugin), (whole.span_ns, whole.lost, whole.raw, whole.plugin));
});
