//! Tests only: no bytes make the reader panic, and every line is counted in exactly one way.

use proptest::prelude::*;

use super::Line;
use super::event::{Event, Outcome};
use super::reader::{Reader, Record, Summary};
use super::wording::Kind;

/// Lines like those of recordings, to be damaged.
const LINES: [&str; 8] = [
    "            init-1     [000] .N..     2.133073: kvm_mmu_get_page: sp gen 0 gfn 0 l3 q0 direct wux nxe ad root 0 sync new",
    "            init-1     [000] ....     2.123433: kvm_page_fault: address 100000 error_code 6",
    "             vmm-851   [001] .....  5012.1: kvm_exit: vcpu 0 reason interrupt rip 0x1000 info1 0x0000000000000000 info2 \
     0x0000000000000000 intr_info 0x00000000 error_code 0x00000000",
    "             vmm-851   [001] .....  5012.1: page_zap_pte: (mmu_page_zap_pte+0x0/0x120 [kvm]) sptep=0xffff888160128000 spte=0x3310821",
    "             vmm-851   [001] .....  5012.1: fast_page_fault: vcpu 0 gva 401000 error_code P|W|U sptep (____ptrval____) \
     old 0x1b29025 new 1b29025 spurious 0 fixed 0",
    "             vmm-851   [001] .....  5012.1: kvm_emulate_insn: 0:10fe:0f 22 de (prot64)",
    "CPU:0 [LOST 42 EVENTS]",
    "# tracer: nop",
];

fn read(text: &[u8], chunk: usize) -> Summary {
    let mut reader = Reader::new();
    let mut out = Vec::new();
    let mut sink = |record: &Record<'_>| {
        if let Some(event) = record.event {
            out.clear();
            event.write(&mut out);
        }
    };
    for part in text.chunks(chunk.max(1)) {
        reader.feed(part, &mut sink);
    }
    reader.finish(&mut sink);
    reader.summary
}

fn counted_once(summary: &Summary) -> bool {
    let events: u64 = summary.events.iter().sum();
    let opaque: u64 = summary.opaque.values().sum();
    let others = summary.notes + summary.blank + summary.overlong + summary.lost_notes + summary.not_understood;
    summary.lines == events + opaque + others
}

proptest! {
    #[test]
    fn any_bytes(text in proptest::collection::vec(any::<u8>(), 0..600), chunk in 1_usize..64) {
        let summary = read(&text, chunk);
        prop_assert!(counted_once(&summary));
        let _ = Line::parse(&text);
    }

    #[test]
    fn damaged_lines(which in 0..LINES.len(), at in 0_usize..200, byte in any::<u8>(), cut in 0_usize..200, chunk in 1_usize..64) {
        let mut text = LINES[which].as_bytes().to_vec();
        let len = text.len();
        text[at % len] = byte;
        text.truncate(len - cut % len);
        text.push(b'\n');
        text.extend_from_slice(LINES[(which + 1) % LINES.len()].as_bytes());
        prop_assert!(counted_once(&read(&text, chunk)));
    }

    #[test]
    fn any_body_of_a_known_event(kind in 0..Kind::ALL.len(), body in "[ -~]{0,80}") {
        let kind = Kind::ALL[kind];
        let mut event = Event::default();
        if event.read(kind.name().as_bytes(), body.as_bytes()) == Outcome::Known {
            // What it writes, it reads back as the same values.
            let mut text = Vec::new();
            event.write(&mut text);
            let mut again = Event::default();
            prop_assert_eq!(again.read(kind.name().as_bytes(), &text), Outcome::Known);
            prop_assert_eq!(again.numbers(), event.numbers());
        }
    }
}
