//! The random search: long runs, guided by what was not seen before, and the shrinking of what they find.
//!
//! A run's choices follow from the seed, its number and the corpus of the round before alone, so that the result does not
//! depend on how many threads there are; of several violations that of the smallest run is reported.

use rustc_hash::FxHashMap;

use super::bfs::Found;
use super::state::{State, Violation};
use super::world::{Choice, World};
use crate::mmu::{Mmu, Premises};

/// Runs of a round: what they found guides the next.
const ROUND: u64 = 64;
/// Prefixes kept.
const CORPUS: usize = 4096;
/// Steps between two looks at the whole state.
const FULL: u64 = 64;

/// Random numbers, from a seed and a run's number.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64, run: u64) -> Self {
        let mut rng = Self(seed ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next();
        rng
    }

    /// The next number (splitmix64).
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One below a number.
    const fn below(&mut self, most: u64) -> u64 {
        if most == 0 { 0 } else { self.next() % most }
    }
}

/// A random search under way.
#[derive(Debug)]
pub struct Random {
    start: Mmu,
    world: World,
    seed: u64,
    /// Rounds that are complete.
    pub round: u64,
    /// Checked steps.
    pub steps: u64,
    /// Runs.
    pub runs: u64,
    /// What was found: one of a property, shrunk.
    pub found: Vec<Found>,
    /// Goals that were met, a bit each.
    pub goals: u32,
    /// How much could have broken the properties.
    pub premises: Premises,
    corpus: Vec<Vec<Choice>>,
    covered: FxHashMap<u64, u64>,
}

/// What a run found.
struct Run {
    steps: u64,
    goals: u32,
    premises: Premises,
    keys: Vec<(u64, usize)>,
    path: Vec<Choice>,
    violation: Option<Violation>,
}

impl Random {
    /// A search with a seed.
    #[must_use]
    pub fn new(start: Mmu, world: World, seed: u64) -> Self {
        Self {
            start,
            world,
            seed,
            round: 0,
            steps: 0,
            runs: 0,
            found: Vec::new(),
            goals: 0,
            premises: Premises::default(),
            corpus: Vec::new(),
            covered: FxHashMap::default(),
        }
    }

    /// How many kinds of states were seen.
    #[must_use]
    pub fn coverage(&self) -> usize {
        self.covered.len()
    }

    /// The prefixes that led to something new, as the next round uses them.
    #[must_use]
    pub fn corpus(&self) -> &[Vec<Choice>] {
        &self.corpus
    }

    /// Goes on from a round with a corpus.
    pub fn resume(&mut self, round: u64, steps: u64, corpus: Vec<Vec<Choice>>) {
        self.round = round;
        self.steps = steps;
        self.runs = round * ROUND;
        for prefix in &corpus {
            let mut state = State::new(&self.start);
            for &choice in prefix {
                state.apply(&self.world, choice);
            }
            self.covered.insert(key_of(&state), self.covered.len() as u64);
        }
        self.corpus = corpus;
    }

    /// A round of runs, on so many threads.
    pub fn round(&mut self, jobs: usize, keeps_going: bool) {
        let first = self.round * ROUND;
        let (world, corpus, seed) = (&self.world, &self.corpus, self.seed);
        let each = ROUND.div_ceil(jobs.max(1) as u64);
        let work = |start: &Mmu, from: u64| -> Vec<Run> {
            (from..(from + each).min(first + ROUND)).map(|run| play(start, world, corpus, seed, run)).collect()
        };
        let starts: Vec<u64> = (0..ROUND).step_by(usize::try_from(each).unwrap_or(1)).map(|at| first + at).collect();
        let runs: Vec<Run> = if starts.len() == 1 {
            work(&self.start, first)
        } else {
            std::thread::scope(|scope| {
                let work = &work;
                let threads: Vec<_> = starts
                    .into_iter()
                    .map(|from| {
                        let start = self.start.clone();
                        scope.spawn(move || work(&start, from))
                    })
                    .collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
            })
        };
        self.round += 1;
        for run in runs {
            self.runs += 1;
            self.steps += run.steps;
            self.goals |= run.goals;
            add(&mut self.premises, &run.premises);
            for (key, len) in run.keys {
                let at = self.covered.len() as u64;
                if let std::collections::hash_map::Entry::Vacant(slot) = self.covered.entry(key) {
                    slot.insert(at);
                    if self.corpus.len() < CORPUS {
                        self.corpus.push(run.path[..len].to_vec());
                    }
                }
            }
            if let Some(violation) = run.violation
                && !self.found.iter().any(|found| found.violation.property == violation.property)
                && (keeps_going || self.found.is_empty())
            {
                let (path, violation) = shrink(&self.start, &self.world, run.path, violation);
                self.found.push(Found { violation, path });
            }
        }
    }
}

fn add(to: &mut Premises, more: &Premises) {
    to.mmio += more.mmio;
    to.writes += more.writes;
    to.harvests += more.harvests;
    to.debts += more.debts;
    to.freed += more.freed;
    to.leaves += more.leaves;
    to.links += more.links;
    to.tracked += more.tracked;
    to.roots += more.roots;
}

/// What kind of state it is, for guidance: small numbers of everything, cut off.
fn key_of(state: &State) -> u64 {
    state.mmu.coverage_key() << 1 | u64::from(state.is_quiet())
}

/// One run: from the beginning or from a prefix of the corpus, with a part of the operations.
fn play(start: &Mmu, world: &World, corpus: &[Vec<Choice>], seed: u64, number: u64) -> Run {
    let mut rng = Rng::new(seed, number);
    let mut state = State::new(start);
    let mut run =
        Run { steps: 0, goals: 0, premises: Premises::default(), keys: Vec::new(), path: Vec::new(), violation: None };
    let weights: Vec<u64> =
        world.actions.iter().map(|_| [0, 1, 1, 4][usize::try_from(rng.below(4)).unwrap_or(0)]).collect();
    if !corpus.is_empty() && rng.below(2) == 0 {
        let prefix = &corpus[usize::try_from(rng.below(corpus.len() as u64)).unwrap_or(0)];
        for &choice in prefix {
            state.apply(world, choice);
            run.path.push(choice);
        }
    }
    // Geometric, 200 at the mean.
    let mut choices = Vec::new();
    let mut last_key = 0;
    loop {
        state.choices(world, &mut choices);
        let weight_of = |choice: &Choice| weights.get(usize::from(choice.action)).copied().unwrap_or(2);
        let total: u64 = choices.iter().map(weight_of).sum();
        if total == 0 || rng.below(200) == 0 && run.steps > 0 {
            break;
        }
        let mut left = rng.below(total);
        let mut chosen = choices[0];
        for choice in &choices {
            let weight = weight_of(choice);
            if left < weight {
                chosen = *choice;
                break;
            }
            left -= weight;
        }
        let applied = state.apply(world, chosen);
        run.path.push(chosen);
        run.steps += 1;
        run.goals |= applied.goals;
        if applied.is_cut {
            break;
        }
        if let Some(violation) = applied.violations.into_iter().next() {
            run.violation = Some(violation);
            break;
        }
        if let Some(violation) = state.mmu.judge_step() {
            run.violation = Some(Violation { property: violation.invariant, detail: violation.detail, owner: "" });
            break;
        }
        let key = key_of(&state);
        if key != last_key {
            run.keys.push((key, run.path.len()));
            last_key = key;
        }
        if run.steps.is_multiple_of(FULL)
            && let Some(violation) = look(&state, &mut run.premises)
        {
            run.violation = Some(violation);
            break;
        }
    }
    if run.violation.is_none() {
        run.violation = look(&state, &mut run.premises);
    }
    let told = state.mmu.premises();
    run.premises = Premises {
        leaves: run.premises.leaves,
        links: run.premises.links,
        tracked: run.premises.tracked,
        roots: run.premises.roots,
        ..told
    };
    run
}

fn look(state: &State, premises: &mut Premises) -> Option<Violation> {
    let (violations, looked) = state.judge();
    premises.leaves += looked.leaves;
    premises.links += looked.links;
    premises.tracked += looked.tracked;
    premises.roots += looked.roots;
    violations.into_iter().next()
}

/// What waits after each choice of a path, as far as its choices are those of its states.
#[must_use]
pub fn waits(start: &Mmu, world: &World, path: &[Choice]) -> Vec<(u8, u8)> {
    let mut state = State::new(start);
    let mut choices = Vec::new();
    let mut after = Vec::new();
    for choice in path {
        state.choices(world, &mut choices);
        if !choices.contains(choice) {
            break;
        }
        state.apply(world, *choice);
        after.push(state.waits());
    }
    after
}

/// Plays a path with every check after every step: where it first breaks a property, and how; nothing if it does not, or if
/// a choice is not one of its state.
#[must_use]
pub fn replay(start: &Mmu, world: &World, path: &[Choice]) -> Option<(usize, Violation)> {
    let mut state = State::new(start);
    let mut choices = Vec::new();
    for (at, choice) in path.iter().enumerate() {
        state.choices(world, &mut choices);
        if !choices.contains(choice) {
            return None;
        }
        let applied = state.apply(world, *choice);
        let found = applied.violations.into_iter().next().or_else(|| state.judge().0.into_iter().next());
        if let Some(violation) = found {
            return Some((at + 1, violation));
        }
        if applied.is_cut {
            return None;
        }
    }
    None
}

/// The shortest path that can be had by leaving choices out: the same property and the same owner stay.
#[must_use]
pub fn shrink(start: &Mmu, world: &World, path: Vec<Choice>, violation: Violation) -> (Vec<Choice>, Violation) {
    let Some((len, found)) = replay(start, world, &path) else { return (path, violation) };
    let mut best: Vec<Choice> = path[..len].to_vec();
    let mut said = found;
    let is_same = |other: &Violation, said: &Violation| other.property == said.property && other.owner == said.owner;
    let mut size = best.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at + size <= best.len() {
            let mut shorter = best.clone();
            shorter.drain(at..at + size);
            match replay(start, world, &shorter) {
                Some((len, other)) if is_same(&other, &said) => {
                    shorter.truncate(len);
                    best = shorter;
                    said = other;
                }
                _ => at += 1,
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2).min(size - 1) };
    }
    // No lock break where it is not needed, and operations of smaller numbers where they do.
    for at in 0..best.len() {
        for (action, poll) in
            [(best[at].action, 0)].into_iter().chain((0..best[at].action.min(64)).map(|action| (action, 0)))
        {
            let mut simpler = best.clone();
            simpler[at] = Choice { action, poll };
            if simpler[at] != best[at]
                && let Some((len, other)) = replay(start, world, &simpler)
                && len <= best.len()
                && is_same(&other, &said)
            {
                simpler.truncate(len);
                best = simpler;
                said = other;
                break;
            }
        }
        if at + 1 >= best.len() {
            break;
        }
    }
    (best, said)
}
