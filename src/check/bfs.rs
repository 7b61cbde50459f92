//! The exhaustive search: breadth first over canonical states, level by level, so that what is found first is shortest.
//!
//! A level is divided among threads and put together in the order of its states and choices: the result is the same on any
//! number of them.

use rustc_hash::FxHashSet;

use super::state::{State, Violation};
use super::world::{Choice, World};
use crate::mmu::{Mmu, Premises};

/// A state's way: the state before it, and the choice.
#[derive(Clone, Copy, Debug)]
struct From {
    parent: u32,
    choice: Choice,
    hash: u128,
}

/// Bytes of a saved state.
const STATE_BYTES: usize = 22;

/// A violation and how it was come to.
#[derive(Clone, Debug)]
pub struct Found {
    /// What was found.
    pub violation: Violation,
    /// The choices from the beginning.
    pub path: Vec<Choice>,
}

/// A search under way.
#[derive(Debug)]
pub struct Bfs {
    world: World,
    seen: FxHashSet<u128>,
    ways: Vec<From>,
    frontier: Vec<(u32, State)>,
    /// Levels that are complete.
    pub depth: u32,
    /// Choices that were applied.
    pub transitions: u64,
    /// Violations, the shortest first; one of a property.
    pub found: Vec<Found>,
    /// Goals, by bit: the length of the shortest way to each.
    pub goals: [Option<u32>; 32],
    /// How much could have broken the properties.
    pub premises: Premises,
    /// A policy's table ended somewhere.
    pub is_cut: bool,
    /// The largest frontier.
    pub widest: usize,
    /// It was stopped inside a level: that level does not count, and nothing goes on from here.
    pub is_stopped: bool,
    first_of_level: usize,
    keeps_all: bool,
}

/// A new state, or a violation, of a level.
struct Next {
    hash: u128,
    parent: u32,
    choice: Choice,
    what: std::result::Result<State, Vec<Violation>>,
}

/// What one thread found of a level.
#[derive(Default)]
struct Part {
    next: Vec<Next>,
    transitions: u64,
    goals: u32,
    premises: Premises,
    is_cut: bool,
}

/// Adds what happened between two counts.
fn add(to: &mut Premises, before: &Premises, after: &Premises) {
    to.mmio += after.mmio - before.mmio;
    to.writes += after.writes - before.writes;
    to.harvests += after.harvests - before.harvests;
    to.debts += after.debts - before.debts;
    to.freed += after.freed - before.freed;
}

/// Adds what was looked at in a state.
const fn add_looked(to: &mut Premises, looked: &Premises) {
    to.leaves += looked.leaves;
    to.links += looked.links;
    to.tracked += looked.tracked;
    to.roots += looked.roots;
}

impl Bfs {
    /// A search that stops at the first violation, or goes on to one of each property.
    #[must_use]
    pub fn new(start: &Mmu, world: World, keeps_all: bool) -> Self {
        let start = State::new(start);
        let mut seen = FxHashSet::default();
        let hash = start.hash(&world);
        seen.insert(hash);
        let ways = vec![From { parent: 0, choice: Choice { action: 0, poll: 0 }, hash }];
        Self {
            world,
            seen,
            ways,
            frontier: vec![(0, start)],
            depth: 0,
            transitions: 0,
            found: Vec::new(),
            goals: [None; 32],
            premises: Premises::default(),
            is_cut: false,
            widest: 1,
            is_stopped: false,
            first_of_level: 0,
            keeps_all,
        }
    }

    /// How many states there are so far.
    #[must_use]
    pub fn states(&self) -> usize {
        self.ways.len()
    }

    /// Whether no new state was found by the last level.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.frontier.is_empty() && !self.is_stopped
    }

    /// What is needed to go on from the last complete level: 22 bytes a state, and the number of the level's first state.
    #[must_use]
    pub fn saved(&self) -> (Vec<u8>, usize) {
        let mut bytes = Vec::with_capacity(self.ways.len() * STATE_BYTES);
        for from in &self.ways {
            bytes.extend(from.parent.to_le_bytes());
            bytes.extend([from.choice.action, from.choice.poll]);
            bytes.extend(from.hash.to_le_bytes());
        }
        (bytes, self.first_of_level)
    }

    /// Goes on from what was saved; the states of the last level are made again by their ways. False if the bytes are none.
    pub fn load(&mut self, start: &Mmu, bytes: &[u8], first: usize, depth: u32, transitions: u64) -> bool {
        let mut ways = Vec::with_capacity(bytes.len() / STATE_BYTES);
        for state in bytes.chunks(STATE_BYTES) {
            let (Some(parent), Some(hash)) = (state.first_chunk::<4>(), state.last_chunk::<16>()) else { return false };
            let [_, _, _, _, action, poll, ..] = *state else { return false };
            let parent = u32::from_le_bytes(*parent);
            if state.len() != STATE_BYTES || parent as usize > ways.len() {
                return false;
            }
            ways.push(From { parent, choice: Choice { action, poll }, hash: u128::from_le_bytes(*hash) });
        }
        if ways.first().is_none_or(|way| way.hash != self.ways[0].hash) || first > ways.len() {
            return false;
        }
        self.seen = ways.iter().map(|way| way.hash).collect();
        self.ways = ways;
        self.frontier.clear();
        for number in first..self.ways.len() {
            let Ok(number) = u32::try_from(number) else { return false };
            let mut state = State::new(start);
            for choice in self.path(number) {
                state.apply(&self.world, choice);
            }
            if state.hash(&self.world) != self.ways[number as usize].hash {
                return false;
            }
            self.frontier.push((number, state));
        }
        (self.depth, self.transitions, self.first_of_level) = (depth, transitions, first);
        true
    }

    /// Whether the search is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_closed() || !self.found.is_empty() && !self.keeps_all
    }

    /// The choices that led to a state.
    fn path(&self, mut state: u32) -> Vec<Choice> {
        let mut path = Vec::new();
        while state != 0 {
            let Some(from) = self.ways.get(state as usize) else { break };
            path.push(from.choice);
            state = from.parent;
        }
        path.reverse();
        path
    }

    /// One level, on so many threads; `stop` is asked now and then.
    pub fn level(&mut self, jobs: usize, stop: &(impl Fn() -> bool + Sync)) -> bool {
        let frontier = std::mem::take(&mut self.frontier);
        let size = frontier.len().div_ceil(jobs.max(1)).max(1);
        let (world, seen) = (&self.world, &self.seen);
        let mut chunks: Vec<Vec<(u32, State)>> = Vec::new();
        let mut rest = frontier.into_iter();
        loop {
            let chunk: Vec<_> = rest.by_ref().take(size).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        let parts: Vec<Part> = std::thread::scope(|scope| {
            let mut chunks = chunks.into_iter();
            let own = chunks.next();
            let others: Vec<_> = chunks.map(|chunk| scope.spawn(move || expand(world, seen, chunk, stop))).collect();
            // The caller's thread does its share: only there are signals seen.
            let own = own.map(|chunk| expand(world, seen, chunk, stop));
            own.into_iter().chain(others.into_iter().filter_map(|thread| thread.join().ok())).collect()
        });
        if stop() {
            self.is_stopped = true;
            return false;
        }
        self.first_of_level = self.ways.len();
        self.depth += 1;
        for part in parts {
            self.transitions += part.transitions;
            self.is_cut |= part.is_cut;
            for (bit, goal) in self.goals.iter_mut().enumerate() {
                if part.goals >> bit & 1 != 0 {
                    *goal = goal.or(Some(self.depth));
                }
            }
            add(&mut self.premises, &Premises::default(), &part.premises);
            add_looked(&mut self.premises, &part.premises);
            for Next { hash, parent, choice, what } in part.next {
                match what {
                    Ok(state) => {
                        if self.seen.insert(hash) {
                            let number = u32::try_from(self.ways.len()).unwrap_or(u32::MAX);
                            self.ways.push(From { parent, choice, hash });
                            self.frontier.push((number, state));
                        }
                    }
                    Err(violations) => {
                        for violation in violations {
                            if self.found.iter().any(|found| found.violation.property == violation.property) {
                                continue;
                            }
                            let mut path = self.path(parent);
                            path.push(choice);
                            self.found.push(Found { violation, path });
                        }
                    }
                }
            }
        }
        self.widest = self.widest.max(self.frontier.len());
        true
    }
}

/// Every next state of some states; those that were seen before the level are left out.
fn expand(world: &World, seen: &FxHashSet<u128>, chunk: Vec<(u32, State)>, stop: &impl Fn() -> bool) -> Part {
    let mut part = Part::default();
    let mut choices = Vec::new();
    let mut fresh: FxHashSet<u128> = FxHashSet::default();
    for (at, (parent, state)) in chunk.into_iter().enumerate() {
        if at % 256 == 255 && stop() {
            break;
        }
        state.choices(world, &mut choices);
        let before = state.mmu.premises();
        for &choice in &choices {
            let mut next = state.clone();
            let applied = next.apply(world, choice);
            part.transitions += 1;
            part.goals |= applied.goals;
            add(&mut part.premises, &before, &next.mmu.premises());
            if applied.is_cut {
                part.is_cut = true;
                continue;
            }
            if !applied.violations.is_empty() {
                part.next.push(Next { hash: 0, parent, choice, what: Err(applied.violations) });
                continue;
            }
            let hash = next.hash(world);
            if seen.contains(&hash) || !fresh.insert(hash) {
                continue;
            }
            let (violations, looked) = next.judge();
            add_looked(&mut part.premises, &looked);
            let what = if violations.is_empty() { Ok(next) } else { Err(violations) };
            part.next.push(Next { hash, parent, choice, what });
        }
    }
    part
}
