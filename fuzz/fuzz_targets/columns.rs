//! Any bytes into columns: every column of a table has as many rows as the table, and the timeline has every event.
#![no_main]

use kvm_mmu::ftrace::columns::Column;
use kvm_mmu::ftrace::{Columns, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new();
    let mut columns = Columns::default();
    reader.feed(data, &mut |record| columns.push(record));
    reader.finish(&mut |record| columns.push(record));
    let mut rows = 0;
    for table in columns.tables() {
        rows += table.line.len();
        for (_, column) in &table.fields {
            let filled = match column {
                Column::U64(values) => values.len(),
                Column::I64(values) => values.len(),
                Column::U8(values) => values.len(),
                Column::Text { ends, bytes } => {
                    assert!(ends.is_sorted() && ends.last().is_none_or(|end| usize::try_from(*end) == Ok(bytes.len())));
                    ends.len()
                }
            };
            assert_eq!(filled, table.line.len());
        }
    }
    let opaque: u64 = reader.summary.opaque.values().sum();
    assert_eq!(rows as u64, reader.summary.events.iter().sum::<u64>());
    assert_eq!(columns.timeline.line.len() as u64, rows as u64 + opaque);
});
