//! Events as columns: one table per kind of event and one of all events in order, ready for numpy and Arrow.
//!
//! Owns the growth of the columns; what a field is comes from the wording. An event whose kind has two wordings in one
//! trace gets a table each, so that no column holds made-up values. Texts are kept as bytes with the end of each row.

use rustc_hash::FxHashMap;

use super::event::Event;
use super::page_text::{GpteSize, PageText};
use super::reader::Record;
use super::wording::{Field, Kind, Token, Wording};

/// Kind code of an event of another group in the table of all events.
pub const OPAQUE: u8 = u8::MAX;
/// Number of a task beyond the ones that are told apart.
pub const TASK_UNKNOWN: u32 = u32::MAX;
const TASKS_MAX: usize = 1 << 16;

/// One column.
#[derive(Clone, Debug)]
pub enum Column {
    /// Unsigned numbers.
    U64(Vec<u64>),
    /// Signed numbers.
    I64(Vec<i64>),
    /// Small numbers and facts (0 or 1).
    U8(Vec<u8>),
    /// Texts: the end of each row in `bytes`.
    Text {
        /// End of each row.
        ends: Vec<i64>,
        /// All rows, one behind the other.
        bytes: Vec<u8>,
    },
}

/// The columns of one kind of event.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the rows are.
    pub kind: Kind,
    /// Their wording.
    pub wording: &'static Wording,
    /// Number of the line, from 1.
    pub line: Vec<u64>,
    /// Trace time in nanoseconds.
    pub time_ns: Vec<u64>,
    /// CPU.
    pub cpu: Vec<u32>,
    /// Index into the names of tasks.
    pub task: Vec<u32>,
    /// The event's own fields, by name.
    pub fields: Vec<(&'static str, Column)>,
}

/// All events in order.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Number of the line, from 1.
    pub line: Vec<u64>,
    /// Trace time in nanoseconds.
    pub time_ns: Vec<u64>,
    /// CPU.
    pub cpu: Vec<u32>,
    /// Index into the names of tasks.
    pub task: Vec<u32>,
    /// Index into [`Kind::ALL`], or [`OPAQUE`].
    pub kind: Vec<u8>,
}

/// The columns of a trace, or of a batch of it.
#[derive(Clone, Debug)]
pub struct Columns {
    tables: Vec<Option<Box<Table>>>,
    /// All events in order.
    pub timeline: Timeline,
    tasks: Vec<Vec<u8>>,
    task_numbers: FxHashMap<Vec<u8>, u32>,
    last_task: u32,
    tasks_max: usize,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            timeline: Timeline::default(),
            tasks: Vec::new(),
            task_numbers: FxHashMap::default(),
            last_task: 0,
            tasks_max: TASKS_MAX,
        }
    }
}

/// No kind has more wordings than this.
const WORDINGS_MAX: usize = 9;

impl Columns {
    /// Append one event.
    pub fn push(&mut self, record: &Record<'_>) {
        let task = self.task_number(record.line.task);
        let timeline = &mut self.timeline;
        timeline.line.push(record.number);
        timeline.time_ns.push(record.line.timestamp_ns);
        timeline.cpu.push(record.line.cpu);
        timeline.task.push(task);
        let Some(event) = record.event else {
            timeline.kind.push(OPAQUE);
            return;
        };
        timeline.kind.push(event.kind as u8);
        if self.tables.is_empty() {
            self.tables.resize(Kind::ALL.len() * WORDINGS_MAX, None);
        }
        let slot = event.kind as usize * WORDINGS_MAX + event.wording_index().min(WORDINGS_MAX - 1);
        let table = self.tables[slot].get_or_insert_with(|| Box::new(Table::new(event)));
        table.line.push(record.number);
        table.time_ns.push(record.line.timestamp_ns);
        table.cpu.push(record.line.cpu);
        table.task.push(task);
        table.push(event);
    }

    /// Columns of a part, which are put to those of the parts before it.
    pub(super) fn of_part() -> Self {
        Self { tasks_max: usize::MAX, ..Self::default() }
    }

    /// Put the rows of the part behind so many lines to these.
    pub(super) fn absorb(&mut self, part: Columns, lines: u64) {
        let tasks: Vec<u32> = part.tasks.iter().map(|name| self.task_number(name)).collect();
        let number = |task: u32| tasks.get(task as usize).copied().unwrap_or(TASK_UNKNOWN);
        let Timeline { line, time_ns, cpu, task, kind } = part.timeline;
        let timeline = &mut self.timeline;
        timeline.line.extend(line.into_iter().map(|line| line + lines));
        timeline.time_ns.extend(time_ns);
        timeline.cpu.extend(cpu);
        timeline.task.extend(task.into_iter().map(number));
        timeline.kind.extend(kind);
        if self.tables.is_empty() {
            self.tables.resize(part.tables.len(), None);
        }
        for (mine, mut theirs) in self.tables.iter_mut().zip(part.tables) {
            if let Some(theirs) = &mut theirs {
                theirs.line.iter_mut().for_each(|line| *line += lines);
                theirs.task.iter_mut().for_each(|task| *task = number(*task));
            }
            match (mine, theirs) {
                (Some(mine), Some(theirs)) => mine.append(*theirs),
                (mine @ None, theirs) => *mine = theirs,
                (Some(_), None) => {}
            }
        }
    }

    /// The tables that have rows.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter_map(|table| table.as_deref())
    }

    /// Take the tables that have rows, and the rows of the timeline; the names of tasks stay.
    pub fn take(&mut self) -> (Vec<Table>, Timeline) {
        let tables = std::mem::take(&mut self.tables);
        let rows = tables.into_iter().flatten().map(|table| *table).collect();
        (rows, std::mem::take(&mut self.timeline))
    }

    /// Names of the tasks by their number.
    #[must_use]
    pub fn tasks(&self) -> &[Vec<u8>] {
        &self.tasks
    }

    fn task_number(&mut self, name: &[u8]) -> u32 {
        // Lines of one task come in rows.
        if let Some(last) = self.tasks.get(self.last_task as usize)
            && last == name
        {
            return self.last_task;
        }
        self.last_task = self.find_task(name);
        self.last_task
    }

    fn find_task(&mut self, name: &[u8]) -> u32 {
        if let Some(number) = self.task_numbers.get(name) {
            return *number;
        }
        if self.tasks.len() >= self.tasks_max {
            return TASK_UNKNOWN;
        }
        let number = u32::try_from(self.tasks.len()).unwrap_or(TASK_UNKNOWN);
        self.tasks.push(name.to_vec());
        self.task_numbers.insert(name.to_vec(), number);
        number
    }
}

const PAGE_FIELDS: [&str; 13] = [
    "valid_gen",
    "gfn",
    "level",
    "gpte_bytes",
    "quadrant",
    "direct",
    "access",
    "invalid",
    "nxe",
    "ad",
    "root_count",
    "unsync",
    "created",
];

impl Table {
    fn new(event: &Event<'_>) -> Self {
        let mut fields = Vec::new();
        for token in event.wording().tokens {
            match token {
                Token::Literal(_) => {}
                Token::Page => fields.extend(PAGE_FIELDS.iter().map(|name| (*name, page_column(name)))),
                Token::Value(field) => fields.push((field.name(), column(*field))),
            }
        }
        Self {
            kind: event.kind,
            wording: event.wording(),
            line: Vec::new(),
            time_ns: Vec::new(),
            cpu: Vec::new(),
            task: Vec::new(),
            fields,
        }
    }

    /// Put the rows of a later table of the same wording behind these.
    fn append(&mut self, later: Table) {
        self.line.extend(later.line);
        self.time_ns.extend(later.time_ns);
        self.cpu.extend(later.cpu);
        self.task.extend(later.task);
        for ((_, mine), (_, theirs)) in self.fields.iter_mut().zip(later.fields) {
            mine.append(theirs);
        }
    }

    fn push(&mut self, event: &Event<'_>) {
        if let Some(page) = event.page() {
            for ((_, column), value) in self.fields.iter_mut().zip(page_values(page)) {
                column.push(value);
            }
            return;
        }
        let (mut numbers, mut texts) = (event.numbers().iter(), event.texts().iter());
        for (_, column) in &mut self.fields {
            if let Column::Text { ends, bytes } = column {
                bytes.extend_from_slice(texts.next().copied().unwrap_or_default());
                ends.push(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            } else {
                column.push(numbers.next().copied().unwrap_or(0));
            }
        }
    }
}

impl Column {
    fn append(&mut self, later: Column) {
        match (self, later) {
            (Self::U64(mine), Self::U64(theirs)) => mine.extend(theirs),
            (Self::I64(mine), Self::I64(theirs)) => mine.extend(theirs),
            (Self::U8(mine), Self::U8(theirs)) => mine.extend(theirs),
            (Self::Text { ends, bytes }, Self::Text { ends: later_ends, bytes: later_bytes }) => {
                let from = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
                ends.extend(later_ends.into_iter().map(|end| end.saturating_add(from)));
                bytes.extend(later_bytes);
            }
            // Tables of one wording have the same columns.
            _ => {}
        }
    }

    #[inline]
    fn push(&mut self, value: u64) {
        match self {
            Self::U64(rows) => rows.push(value),
            Self::I64(rows) => rows.push(value.cast_signed()),
            Self::U8(rows) => rows.push(u8::try_from(value).unwrap_or(u8::MAX)),
            Self::Text { .. } => {}
        }
    }
}

fn column(field: Field) -> Column {
    match field {
        Field::Text(_) => Column::Text { ends: Vec::new(), bytes: Vec::new() },
        Field::Signed(_) => Column::I64(Vec::new()),
        _ => Column::U64(Vec::new()),
    }
}

/// The generation and whether the page was created are -1 where the text does not say.
fn page_column(name: &str) -> Column {
    match name {
        "gfn" => Column::U64(Vec::new()),
        "valid_gen" | "root_count" | "created" => Column::I64(Vec::new()),
        _ => Column::U8(Vec::new()),
    }
}

fn page_values(page: &PageText) -> [u64; PAGE_FIELDS.len()] {
    let unsaid = u64::MAX;
    [
        page.valid_gen.unwrap_or(unsaid),
        page.gfn,
        page.level.into(),
        match page.gpte_size {
            GpteSize::Unsaid => 0,
            GpteSize::Four => 4,
            GpteSize::Pae | GpteSize::Eight => 8,
        },
        page.quadrant.into(),
        page.direct.into(),
        page.access.into(),
        page.invalid.into(),
        page.nxe.into(),
        page.ad.into(),
        i64::from(page.root_count).cast_unsigned(),
        page.unsync.into(),
        page.created.map_or(unsaid, u64::from),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::reader::Reader;
    use super::*;

    const TRACE: &[u8] =
        b"            init-1     [000] ....     2.120776: kvm_page_fault: address 100000 error_code 6\n\
             vmm-851   [001] .....  2.2: kvm_page_fault: vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x10\n\
             vmm-851   [001] .....  2.3: kvm_mmu_get_page: sp gfn 10b l1 4-byte q2 --- !nxe ad root 0 unsync existing\n\
             vmm-851   [001] .....  2.4: sched_switch: x\n\
             vmm-851   [001] .....  2.5: kvm_userspace_exit: reason KVM_EXIT_IO (2)\n\
             vmm-851   [001] .....  2.6: kvm_userspace_exit: reason restart (-4)\n";

    fn columns() -> Columns {
        let mut columns = Columns::default();
        let mut reader = Reader::new();
        reader.feed(TRACE, &mut |record| columns.push(record));
        reader.finish(&mut |record| columns.push(record));
        columns
    }

    fn field<'a>(table: &'a Table, name: &str) -> &'a Column {
        &table.fields.iter().find(|(field, _)| *field == name).expect("field").1
    }

    #[test]
    fn a_table_per_kind_and_wording() {
        let columns = columns();
        let names: Vec<_> = columns.tables().map(|table| (table.kind.name(), table.line.clone())).collect();
        let expected = [
            ("kvm_mmu_get_page", vec![3]),
            ("kvm_page_fault", vec![2]),
            ("kvm_page_fault", vec![1]),
            ("kvm_userspace_exit", vec![5, 6]),
        ];
        assert_eq!(names, expected);
        let tasks: Vec<_> = columns.tables().map(|table| table.task.clone()).collect();
        assert_eq!(tasks, [vec![1], vec![1], vec![0], vec![1, 1]]);
        assert_eq!(columns.timeline.line, [1, 2, 3, 4, 5, 6]);
        assert_eq!(columns.timeline.kind[3], OPAQUE);
        assert_eq!(columns.timeline.task, [0, 1, 1, 1, 1, 1]);
        assert_eq!(columns.tasks(), [b"init-1".to_vec(), b"vmm-851".to_vec()]);
    }

    #[test]
    fn values() {
        let columns = columns();
        let tables: Vec<_> = columns.tables().collect();
        let Column::I64(valid_gen) = field(tables[0], "valid_gen") else { panic!("signed") };
        assert_eq!(valid_gen, &[-1]);
        let Column::U8(gpte) = field(tables[0], "gpte_bytes") else { panic!("small") };
        assert_eq!(gpte, &[4]);
        let Column::U64(address) = field(tables[2], "address") else { panic!("number") };
        assert_eq!(address, &[0x10_0000]);
        let Column::Text { ends, bytes } = field(tables[3], "reason") else { panic!("text") };
        assert_eq!((ends.as_slice(), bytes.as_slice()), (&[11_i64, 18][..], &b"KVM_EXIT_IOrestart"[..]));
        let Column::I64(number) = field(tables[3], "number") else { panic!("signed") };
        assert_eq!(number, &[2, -4]);
    }

    #[test]
    fn no_kind_has_more_wordings_than_tables() {
        assert!(Kind::ALL.iter().all(|kind| kind.wordings().len() <= WORDINGS_MAX));
    }

    #[test]
    fn taken_rows_are_gone_and_tasks_stay() {
        let mut columns = columns();
        let (tables, timeline) = columns.take();
        assert_eq!((tables.len(), timeline.line.len()), (4, 6));
        assert_eq!(columns.tables().count(), 0);
        assert_eq!(columns.tasks().len(), 2);
    }
}
