//! Writers that deduplicate beside cleaners: sessions, the condemn, the fence and the second mark.
//!
//! One point is there at first, OLD, whose pack may be forgotten at any time. Two writers each deduplicate against any pack
//! or send one of their own; acknowledgements of commits get lost. Cleaners run to the end without a pause, and may start
//! again once; the pause between two runs is a model of its own.

use crate::checker::{Model, Step, Witness, breaks, holds, members, step};

/// Rules of the protocol, each of which can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// A writer reads the clean-up log only once its session exists.
    LogReadAfterSession,
    /// A writer relies on no pack that the log condemns.
    CondemnCheck,
    /// A cleaner reads the undecided sessions after its condemn.
    SessionsReadAfterCondemn,
    /// A cleaner deletes only when those sessions are decided.
    Drain,
    /// What has expired is decided by an Abort in its place.
    Fence,
    /// What is live is marked again after that.
    SecondMark,
    /// A writer that finds its point taken reads it before it does anything, and never deletes.
    ReadOnAlreadyExists,
    /// An Abort stays for ever.
    AbortStays,
    /// Undelete is refused once a point may have been swept: it is no flag to be flipped.
    UndeleteEndsWithPurge,
}

const OLD: u8 = 0b001;
const WRITERS: [&str; 2] = ["W1", "W2"];
const CLEANERS: [&str; 2] = ["C1", "C2"];

fn own_pack(writer: usize) -> u8 {
    0b010 << writer
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Undecided,
    Aborted,
    /// With the pack that the point relies on.
    Committed(u8),
}

impl Outcome {
    fn relies_on(self) -> u8 {
        if let Self::Committed(pack) = self { pack } else { 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum WriterAt {
    First,
    Second,
    Choose,
    Send,
    Commit,
    /// The answer to the commit was an error.
    Ask,
    Taken,
    Acknowledged,
    Refused,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    at: WriterAt,
    condemned: u8,
    pack: u8,
    retried: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CleanerAt {
    List,
    Mark,
    Condemn,
    Sessions,
    Drain,
    MarkAgain,
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cleaner {
    at: CleanerAt,
    doomed: u8,
    waits_for: u8,
    restarted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    sessions: u8,
    outcomes: [Outcome; 2],
    old_point: bool,
    packs: u8,
    condemned: u8,
    writers: [Writer; 2],
    cleaners: [Cleaner; 2],
}

impl State {
    fn undecided(&self) -> u8 {
        let undecided = |writer: &u8| self.outcomes[*writer as usize] == Outcome::Undecided;
        members(self.sessions).filter(undecided).map(|writer| 1 << writer).sum()
    }

    fn live(&self) -> u8 {
        let old = if self.old_point { OLD } else { 0 };
        old | self.outcomes[0].relies_on() | self.outcomes[1].relies_on()
    }
}

struct Protocol {
    cleaners: usize,
    left_out: LeftOut,
}

impl Protocol {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn writer_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let writer = state.writers[index];
        let own = own_pack(index);
        let mut act = |does, with, at, change: &dyn Fn(&mut State, &mut Writer)| {
            let (mut next, mut changed) = (*state, Writer { at, ..writer });
            change(&mut next, &mut changed);
            if matches!(at, WriterAt::Acknowledged | WriterAt::Refused) {
                // What it knew matters no longer.
                (changed.condemned, changed.pack, changed.retried) = (0, 0, false);
            }
            next.writers[index] = changed;
            steps.push((step(WRITERS[index], does, with), next));
        };
        match writer.at {
            WriterAt::First | WriterAt::Second => {
                let is_first = writer.at == WriterAt::First;
                let then = if is_first { WriterAt::Second } else { WriterAt::Choose };
                if is_first != self.without(LeftOut::LogReadAfterSession) {
                    act("begins its session", 0, then, &|next, _| next.sessions |= 1 << index);
                } else if self.without(LeftOut::CondemnCheck) {
                    act("does not read the log", 0, then, &|_, _| {});
                } else {
                    act("reads that condemned are:", state.condemned, then, &|_, writer| {
                        writer.condemned = state.condemned;
                    });
                }
            }
            WriterAt::Choose => {
                for pack in members(state.packs & !writer.condemned & !own) {
                    let pack = 1 << pack;
                    act("deduplicates against", pack, WriterAt::Commit, &|_, writer| {
                        (writer.pack, writer.condemned) = (pack, 0);
                    });
                }
                act("will send", own, WriterAt::Send, &|_, writer| {
                    (writer.pack, writer.condemned) = (own, 0);
                });
            }
            WriterAt::Send => act("sends", own, WriterAt::Commit, &|next, _| next.packs |= own),
            WriterAt::Commit | WriterAt::Ask => {
                if state.outcomes[index] != Outcome::Undecided {
                    act("hears that its point exists", 0, WriterAt::Taken, &|_, _| {});
                    return;
                }
                let commit = |next: &mut State, _: &mut Writer| {
                    next.outcomes[index] = Outcome::Committed(writer.pack);
                };
                act("commits a point upon", writer.pack, WriterAt::Acknowledged, &commit);
                if !writer.retried {
                    act(
                        "commits, its answer is lost",
                        writer.pack,
                        WriterAt::Ask,
                        &|next, writer| {
                            commit(next, writer);
                            writer.retried = true;
                        },
                    );
                    act("fails to commit, not knowing it", 0, WriterAt::Ask, &|_, writer| {
                        writer.retried = true
                    });
                }
            }
            WriterAt::Taken if self.without(LeftOut::ReadOnAlreadyExists) => {
                act("deletes what it sent:", own, WriterAt::Refused, &|next, _| {
                    next.packs &= !own
                });
            }
            WriterAt::Taken => match state.outcomes[index] {
                Outcome::Committed(_) => act("reads its own point", 0, WriterAt::Acknowledged, &|_, _| {}),
                _ => act("reads that it is aborted", 0, WriterAt::Refused, &|_, _| {}),
            },
            WriterAt::Acknowledged | WriterAt::Refused => {}
        }
    }

    fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let mut act = |does, with, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, cleaner);
            change(&mut next, &mut changed);
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, with), next));
        };
        let early = self.without(LeftOut::SessionsReadAfterCondemn);
        match cleaner.at {
            CleanerAt::List => {
                // A pack of an undecided session is no candidate. Nothing depends on it.
                let owned: u8 = members(state.undecided()).map(|writer| own_pack(writer as usize)).sum();
                act("lists the packs", state.packs & !owned, &|_, cleaner| {
                    (cleaner.at, cleaner.doomed) = (CleanerAt::Mark, state.packs & !owned);
                });
            }
            CleanerAt::Mark => act("marks as live", state.live(), &|_, cleaner| {
                cleaner.doomed &= !state.live();
                cleaner.at = if early { CleanerAt::Sessions } else { CleanerAt::Condemn };
            }),
            CleanerAt::Condemn if cleaner.doomed == 0 => {}
            CleanerAt::Condemn => act("condemns", cleaner.doomed, &|next, cleaner| {
                next.condemned |= cleaner.doomed;
                cleaner.at = if early { CleanerAt::Drain } else { CleanerAt::Sessions };
            }),
            CleanerAt::Sessions => act("reads the undecided sessions", 0, &|_, cleaner| {
                cleaner.waits_for = state.undecided();
                cleaner.at = if early { CleanerAt::Condemn } else { CleanerAt::Drain };
            }),
            CleanerAt::Drain if cleaner.waits_for == 0 || self.without(LeftOut::Drain) => {
                act("waits for nothing more", 0, &|_, cleaner| {
                    (cleaner.at, cleaner.waits_for) = (CleanerAt::MarkAgain, 0);
                });
            }
            CleanerAt::Drain => {
                let waited = cleaner.waits_for.trailing_zeros() as usize;
                let decided = state.outcomes[waited] != Outcome::Undecided;
                let does = match (decided, self.without(LeftOut::Fence)) {
                    (true, _) => "sees a session decided",
                    (false, true) => "takes a session for expired",
                    (false, false) => "aborts an expired session",
                };
                act(does, 0, &|next, cleaner| {
                    cleaner.waits_for &= cleaner.waits_for - 1;
                    if !decided && !self.without(LeftOut::Fence) {
                        next.outcomes[waited] = Outcome::Aborted;
                    }
                });
            }
            CleanerAt::MarkAgain => act("marks again as live", state.live(), &|_, cleaner| {
                cleaner.at = CleanerAt::Delete;
                if !self.without(LeftOut::SecondMark) {
                    cleaner.doomed &= !state.live();
                }
            }),
            CleanerAt::Delete => {
                for pack in members(cleaner.doomed).take(1) {
                    act("deletes", 1 << pack, &|next, cleaner| {
                        next.packs &= !(1 << pack);
                        cleaner.doomed &= !(1 << pack);
                    });
                }
                if self.without(LeftOut::AbortStays) {
                    for aborted in (0..2).filter(|writer| state.outcomes[*writer] == Outcome::Aborted) {
                        act("deletes an abort", 0, &|next, _| {
                            next.outcomes[aborted] = Outcome::Undecided
                        });
                    }
                }
            }
        }
        if cleaner.at != CleanerAt::List && !cleaner.restarted {
            act("is killed and starts again", 0, &|_, cleaner| {
                *cleaner = Cleaner {
                    restarted: true,
                    ..IDLE
                };
            });
        }
    }
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::List,
    doomed: 0,
    waits_for: 0,
    restarted: false,
};

impl Model for Protocol {
    type State = State;

    const NAMES: &'static [&'static str] = &["pack OLD", "pack of W1", "pack of W2"];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("a pack is deleted", |state| state.packs & OLD == 0),
        ("a point relies on a condemned pack", |state| {
            state.live() & state.condemned & state.packs != 0
        }),
        ("a writer is refused", |state| state.writers[0].at == WriterAt::Refused),
        ("both writers are acknowledged", |state| {
            state.writers.iter().all(|writer| writer.at == WriterAt::Acknowledged)
        }),
    ];

    fn start(&self) -> State {
        let writer = Writer {
            at: WriterAt::First,
            condemned: 0,
            pack: 0,
            retried: false,
        };
        State {
            sessions: 0,
            outcomes: [Outcome::Undecided; 2],
            old_point: true,
            packs: OLD,
            condemned: 0,
            writers: [writer; 2],
            cleaners: [IDLE; 2],
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        if state.old_point {
            steps.push((
                step("user", "forgets the old point", 0),
                State {
                    old_point: false,
                    ..*state
                },
            ));
        } else if self.without(LeftOut::UndeleteEndsWithPurge) {
            steps.push((
                step("user", "undeletes the old point", 0),
                State {
                    old_point: true,
                    ..*state
                },
            ));
        }
        for writer in 0..2 {
            self.writer_acts(state, writer, steps);
        }
        for cleaner in 0..self.cleaners {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, mut state: State) -> State {
        state.cleaners[..self.cleaners].sort_unstable();
        state
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let unacknowledged = |writer: &usize| {
            let acknowledged = state.writers[*writer].at == WriterAt::Acknowledged;
            acknowledged && state.outcomes[*writer].relies_on() == 0
        };
        if state.live() & !state.packs != 0 {
            Some("a point relies on a pack that is gone")
        } else {
            (0..2)
                .find(unacknowledged)
                .map(|_| "a point that was acknowledged is not there")
        }
    }
}

fn without(left_out: LeftOut) {
    breaks(&Protocol { cleaners: 1, left_out }, left_out);
}

#[test]
fn two_writers_beside_one_cleaner_lose_nothing() {
    holds(
        &Protocol {
            cleaners: 1,
            left_out: LeftOut::Nothing,
        },
        "two writers, one cleaner",
    );
}

#[test]
fn two_writers_beside_two_cleaners_lose_nothing() {
    holds(
        &Protocol {
            cleaners: 2,
            left_out: LeftOut::Nothing,
        },
        "two writers, two cleaners",
    );
}

#[test]
fn a_log_read_before_the_session_exists_loses_a_point() {
    without(LeftOut::LogReadAfterSession);
}

#[test]
fn relying_on_condemned_packs_loses_a_point() {
    without(LeftOut::CondemnCheck);
}

#[test]
fn sessions_read_before_the_condemn_lose_a_point() {
    without(LeftOut::SessionsReadAfterCondemn);
}

#[test]
fn not_waiting_for_undecided_sessions_loses_a_point() {
    without(LeftOut::Drain);
}

#[test]
fn expiry_without_a_fence_loses_a_point() {
    without(LeftOut::Fence);
}

#[test]
fn not_marking_again_loses_a_point() {
    without(LeftOut::SecondMark);
}

#[test]
fn cleaning_up_because_the_point_exists_loses_it() {
    without(LeftOut::ReadOnAlreadyExists);
}

#[test]
fn deleting_an_abort_loses_a_point() {
    without(LeftOut::AbortStays);
}

#[test]
fn an_undelete_that_only_flips_a_flag_loses_a_point() {
    without(LeftOut::UndeleteEndsWithPurge);
}
