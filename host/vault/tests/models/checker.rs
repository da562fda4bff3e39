//! Tries every order: breadth first, so that the first order found that breaks a promise is a shortest one.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Instant;

/// A model that grows past this has lost its bounds. Reaching it is a failure, since what was not visited was not checked.
const STATES_LIMIT: usize = 16_000_000;

/// What is to be seen in some state, and how it is recognised.
pub type Witness<S> = (&'static str, fn(&S) -> bool);

/// Actors, a store, and what they do to it one atomic act at a time.
pub trait Model {
    type State: Copy + Eq + Hash + 'static;

    /// What the bits of a `Step`'s set are called.
    const NAMES: &'static [&'static str];
    /// What must be possible: a model in which nothing is ever deleted would be safe and show nothing.
    const MUST_HAPPEN: &'static [Witness<Self::State>];

    fn start(&self) -> Self::State;

    /// Appends what can happen next. Acts that change nothing may be given; they are not followed.
    fn next(&self, state: &Self::State, steps: &mut Vec<(Step, Self::State)>);

    /// One of all the states that differ only in which of two like actors is which. A trace would mix them up, so it is
    /// only asked for where none is wanted.
    fn representative(&self, state: Self::State) -> Self::State {
        state
    }

    /// The promise that does not hold in this state.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
}

/// One atomic act, as a trace tells it.
#[derive(Clone, Copy)]
pub struct Step {
    pub who: &'static str,
    pub does: &'static str,
    /// What it is done to: bits named by the model.
    pub with: u8,
}

pub fn step(who: &'static str, does: &'static str, with: u8) -> Step {
    Step { who, does, with }
}

/// The members of a set of bits.
pub fn members(set: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |bit| set & (1 << bit) != 0)
}

/// Checks that no order breaks a promise, and that everything happens that must be possible.
pub fn holds<M: Model>(model: &M, name: &str) {
    let begun = Instant::now();
    let found = explore(model, true);
    if found.broken.is_some() {
        let trace = explore(model, false).broken.unwrap_or_default();
        panic!("{name} breaks a promise:\n{trace}");
    }
    for ((what, _), happened) in M::MUST_HAPPEN.iter().zip(found.happened) {
        assert!(
            happened,
            "{name}: nothing leads to this, so the model shows nothing: {what}"
        );
    }
    let seconds = begun.elapsed().as_secs_f32();
    println!("{name}: safe, {} states, {seconds:.1} s", found.states);
}

/// Checks that some order breaks a promise, and prints a shortest one.
pub fn breaks<M: Model>(model: &M, left_out: impl fmt::Debug) {
    let found = explore(model, false);
    let Some(trace) = found.broken else {
        panic!("nothing breaks without {left_out:?} in {} states", found.states);
    };
    println!("without {left_out:?}, found in {} states:\n{trace}", found.states);
}

struct Found {
    states: usize,
    broken: Option<String>,
    happened: Vec<bool>,
}

fn explore<M: Model>(model: &M, representatives_only: bool) -> Found {
    let mut visited = Visited::new();
    visited.add(model.start(), 0);
    let mut happened = vec![false; M::MUST_HAPPEN.len()];
    let mut steps = Vec::new();
    let mut at = 0;
    while at < visited.states.len() {
        let state = visited.states[at];
        if let Some(promise) = model.broken(&state) {
            let told = if representatives_only {
                promise.to_owned()
            } else {
                trace(model, &visited, at, promise)
            };
            let states = visited.states.len();
            return Found {
                states,
                broken: Some(told),
                happened,
            };
        }
        for ((_, happens), happened) in M::MUST_HAPPEN.iter().zip(&mut happened) {
            *happened |= happens(&state);
        }
        model.next(&state, &mut steps);
        for (_, next) in steps.drain(..) {
            let next = if representatives_only {
                model.representative(next)
            } else {
                next
            };
            visited.add(next, at as u32);
        }
        at += 1;
    }
    let states = visited.states.len();
    Found {
        states,
        broken: None,
        happened,
    }
}

/// The acts are not stored: between a state and its parent they are found again.
fn trace<M: Model>(model: &M, visited: &Visited<M::State>, end: usize, promise: &str) -> String {
    let mut path = vec![end];
    let mut at = end;
    while at != 0 {
        at = visited.parents[at] as usize;
        path.push(at);
    }
    let mut text = String::new();
    let mut steps = Vec::new();
    for pair in path.windows(2).rev() {
        let (to, from) = (visited.states[pair[0]], visited.states[pair[1]]);
        model.next(&from, &mut steps);
        let taken = steps.drain(..).find(|(_, next)| *next == to);
        let (taken, _) = taken.expect("a state is reached from its parent");
        let names: Vec<&str> = members(taken.with).map(|bit| M::NAMES[bit as usize]).collect();
        text += &format!("    {:<4} {} {}\n", taken.who, taken.does, names.join(", "));
    }
    text + &format!("    now  {promise}\n")
}

/// All states seen, in the order in which they were reached, and a table of where each stands.
struct Visited<S> {
    states: Vec<S>,
    parents: Vec<u32>,
    /// Open addressing; `FREE` where nothing is. At most half of it is used.
    table: Vec<u32>,
}

const FREE: u32 = u32::MAX;

impl<S: Copy + Eq + Hash> Visited<S> {
    fn new() -> Self {
        let table = vec![FREE; 1 << 12];
        Self {
            states: Vec::new(),
            parents: Vec::new(),
            table,
        }
    }

    fn add(&mut self, state: S, parent: u32) {
        let slot = self.slot(&state);
        if self.table[slot] != FREE {
            return;
        }
        assert!(
            self.states.len() < STATES_LIMIT,
            "more than {STATES_LIMIT} states: not checked to the end"
        );
        self.table[slot] = self.states.len() as u32;
        self.states.push(state);
        self.parents.push(parent);
        if self.states.len() * 2 > self.table.len() {
            self.grow();
        }
    }

    /// Where a state stands, or the free place where it belongs.
    fn slot(&self, state: &S) -> usize {
        let mask = self.table.len() - 1;
        let mut hasher = Mixer(0);
        state.hash(&mut hasher);
        let mut slot = hasher.finish() as usize & mask;
        while self.table[slot] != FREE && self.states[self.table[slot] as usize] != *state {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.table = vec![FREE; self.table.len() * 2];
        for number in 0..self.states.len() {
            let slot = self.slot(&self.states[number]);
            self.table[slot] = number as u32;
        }
    }
}

/// The standard hasher withstands an adversary, which a model is not, and costs most of the time here.
struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.mix(u64::from(byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clerks read a number and write it back one higher.
    struct Counter;

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    struct Count {
        stored: u8,
        read: [Option<u8>; 2],
        written: u8,
    }

    impl Model for Counter {
        type State = Count;
        const NAMES: &'static [&'static str] = &["one"];
        const MUST_HAPPEN: &'static [Witness<Count>] = &[];

        fn start(&self) -> Count {
            Count {
                stored: 0,
                read: [None; 2],
                written: 0,
            }
        }

        fn next(&self, state: &Count, steps: &mut Vec<(Step, Count)>) {
            for (clerk, who) in ["A", "B"].into_iter().enumerate() {
                let mut next = *state;
                if let Some(read) = state.read[clerk] {
                    (next.stored, next.read[clerk], next.written) = (read + 1, None, state.written + 1);
                    steps.push((step(who, "writes", 0), next));
                } else if state.written < 2 {
                    next.read[clerk] = Some(state.stored);
                    steps.push((step(who, "reads", 1), next));
                }
            }
        }

        fn broken(&self, state: &Count) -> Option<&'static str> {
            (state.stored < state.written).then_some("a count is lost")
        }
    }

    #[test]
    fn a_lost_update_is_found_and_told_in_four_acts() {
        let trace = explore(&Counter, false).broken.expect("two clerks lose an update");
        assert_eq!(trace.lines().count(), 5, "{trace}");
        assert!(
            trace.contains("A    reads one") && trace.ends_with("a count is lost\n"),
            "{trace}"
        );
    }
}
