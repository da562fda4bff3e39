//! Writers that inherit the map of a base point without looking at its packs, and cleaners that mark in an order.
//!
//! At first there is one pack, OLD, that nothing relies on any more. Either writer deduplicates against it, sends a pack, or
//! takes the other's point as a base. Any point is purged at any time. Cleaners run again and again.

use crate::checker::{Model, Step, Witness, breaks, holds, members, step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// A session names its bases, and those of undecided sessions are roots.
    BasesPinned,
    /// A writer looks whether its base is purged once its session exists.
    BaseCheckedAfterSession,
    /// A writer looks whether its base is purged at all.
    BaseChecked,
    /// A mark reads what is purged before it reads the undecided sessions.
    FatesReadBeforeSessions,
    /// A mark reads the points after the undecided sessions.
    PointsReadAfterSessions,
}

const OLD: u8 = 0b001;
const WRITERS: [&str; 2] = ["W1", "W2"];
const CLEANERS: [&str; 2] = ["C1", "C2"];

fn own_pack(writer: usize) -> u8 {
    0b010 << writer
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Session {
    None,
    Fresh,
    /// Its base is the other writer's point.
    UponOther,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Undecided,
    Aborted,
    Committed(u8),
}

impl Outcome {
    fn relies_on(self) -> u8 {
        if let Self::Committed(pack) = self { pack } else { 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum WriterAt {
    Begin,
    /// The base was looked at before the session existed.
    BeginUponChecked,
    ReadLog,
    Choose,
    Commit,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    at: WriterAt,
    condemned: u8,
    pack: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CleanerAt {
    List,
    Mark,
    Condemn,
    Sessions,
    Drain,
    /// The three reads of the second mark.
    Read(u8),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cleaner {
    at: CleanerAt,
    doomed: u8,
    waits_for: u8,
    /// Points that were purged when the fates were read, points that undecided sessions named, packs of the points read.
    purged: u8,
    pinned: u8,
    relied_on: [u8; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    sessions: [Session; 2],
    outcomes: [Outcome; 2],
    purged: u8,
    packs: u8,
    condemned: u8,
    writers: [Writer; 2],
    cleaners: [Cleaner; 2],
}

impl State {
    fn undecided(&self) -> u8 {
        let undecided =
            |writer: &usize| self.sessions[*writer] != Session::None && self.outcomes[*writer] == Outcome::Undecided;
        (0..2).filter(undecided).map(|writer| 1 << writer).sum()
    }

    fn is_purged(&self, point: usize) -> bool {
        self.purged & (1 << point) != 0
    }

    /// The packs of what a restore must still give back.
    fn needed(&self) -> u8 {
        let kept = (0..2).filter(|point| !self.is_purged(*point));
        kept.fold(0, |packs, point| packs | self.outcomes[point].relies_on())
    }
}

struct Bases {
    left_out: LeftOut,
}

impl Bases {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn writer_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let writer = state.writers[index];
        let (own, other) = (own_pack(index), 1 - index);
        let base = state.outcomes[other].relies_on();
        let base_kept = base != 0 && !state.is_purged(other);
        let early = self.without(LeftOut::BaseCheckedAfterSession);
        let mut act = |does, with, at, change: &dyn Fn(&mut State, &mut Writer)| {
            let (mut next, mut changed) = (*state, Writer { at, ..writer });
            change(&mut next, &mut changed);
            next.writers[index] = changed;
            steps.push((step(WRITERS[index], does, with), next));
        };
        match writer.at {
            WriterAt::Begin => {
                act("begins its session", 0, WriterAt::ReadLog, &|next, _| {
                    next.sessions[index] = Session::Fresh
                });
                if base_kept && early {
                    act(
                        "finds that its base is not purged",
                        0,
                        WriterAt::BeginUponChecked,
                        &|_, _| {},
                    );
                } else if base != 0 && !early {
                    // It may have been purged since somebody chose it.
                    act(
                        "begins its session upon the other's point",
                        0,
                        WriterAt::ReadLog,
                        &|next, _| {
                            next.sessions[index] = Session::UponOther;
                        },
                    );
                }
            }
            WriterAt::BeginUponChecked => {
                act(
                    "begins its session upon the other's point",
                    0,
                    WriterAt::ReadLog,
                    &|next, _| {
                        next.sessions[index] = Session::UponOther;
                    },
                );
            }
            WriterAt::ReadLog => act(
                "reads that condemned are:",
                state.condemned,
                WriterAt::Choose,
                &|_, writer| {
                    writer.condemned = state.condemned;
                },
            ),
            WriterAt::Choose if state.sessions[index] == Session::UponOther => {
                if base_kept || early || self.without(LeftOut::BaseChecked) {
                    let does = if base_kept {
                        "finds its base not purged, inherits"
                    } else {
                        "inherits"
                    };
                    act(does, base, WriterAt::Commit, &|_, writer| {
                        (writer.pack, writer.condemned) = (base, 0)
                    });
                }
            }
            WriterAt::Choose => {
                for pack in members(state.packs & !writer.condemned) {
                    let pack = 1 << pack;
                    act("deduplicates against", pack, WriterAt::Commit, &|_, writer| {
                        (writer.pack, writer.condemned) = (pack, 0);
                    });
                }
                act("sends", own, WriterAt::Commit, &|next, writer| {
                    next.packs |= own;
                    (writer.pack, writer.condemned) = (own, 0);
                });
            }
            WriterAt::Commit if state.outcomes[index] == Outcome::Undecided => {
                act("commits a point upon", writer.pack, WriterAt::Over, &|next, changed| {
                    next.outcomes[index] = Outcome::Committed(writer.pack);
                    changed.pack = 0;
                });
            }
            WriterAt::Commit => act("finds itself aborted", 0, WriterAt::Over, &|_, writer| writer.pack = 0),
            WriterAt::Over => {}
        }
    }

    fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let mut act = |does, with, at, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, Cleaner { at, ..cleaner });
            change(&mut next, &mut changed);
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, with), next));
        };
        match cleaner.at {
            CleanerAt::List => {
                let owned: u8 = members(state.undecided()).map(|writer| own_pack(writer as usize)).sum();
                act(
                    "lists the packs",
                    state.packs & !owned,
                    CleanerAt::Mark,
                    &|_, cleaner| {
                        cleaner.doomed = state.packs & !owned;
                    },
                );
            }
            CleanerAt::Mark => act("marks as live", state.needed(), CleanerAt::Condemn, &|_, cleaner| {
                cleaner.doomed &= !state.needed();
            }),
            CleanerAt::Condemn if cleaner.doomed == 0 => act("is done", 0, CleanerAt::List, &|_, _| {}),
            CleanerAt::Condemn => act("condemns", cleaner.doomed, CleanerAt::Sessions, &|next, cleaner| {
                next.condemned |= cleaner.doomed;
            }),
            CleanerAt::Sessions => act("reads the undecided sessions", 0, CleanerAt::Drain, &|_, cleaner| {
                cleaner.waits_for = state.undecided();
            }),
            CleanerAt::Drain if cleaner.waits_for == 0 => {
                act("waits for nothing more", 0, CleanerAt::Read(0), &|_, _| {});
            }
            CleanerAt::Drain => {
                let waited = cleaner.waits_for.trailing_zeros() as usize;
                let decided = state.outcomes[waited] != Outcome::Undecided;
                let does = if decided {
                    "sees a session decided"
                } else {
                    "aborts an expired session"
                };
                act(does, 0, CleanerAt::Drain, &|next, cleaner| {
                    cleaner.waits_for &= cleaner.waits_for - 1;
                    if !decided {
                        next.outcomes[waited] = Outcome::Aborted;
                    }
                });
            }
            CleanerAt::Read(number) => {
                let order = match self.left_out {
                    LeftOut::FatesReadBeforeSessions => b"SFP",
                    LeftOut::PointsReadAfterSessions => b"FPS",
                    _ => b"FSP",
                };
                let then = if number == 2 {
                    CleanerAt::Delete
                } else {
                    CleanerAt::Read(number + 1)
                };
                match order[number as usize] {
                    b'F' => act("reads the fates", 0, then, &|_, cleaner| cleaner.purged = state.purged),
                    b'S' => act(
                        "reads the undecided sessions and their bases",
                        0,
                        then,
                        &|_, cleaner| {
                            let names = |writer: &u8| state.sessions[*writer as usize] == Session::UponOther;
                            let pins = members(state.undecided())
                                .filter(names)
                                .map(|writer| 0b10 >> writer)
                                .sum();
                            cleaner.pinned = if self.without(LeftOut::BasesPinned) { 0 } else { pins };
                        },
                    ),
                    _ => act("reads the points", 0, then, &|_, cleaner| {
                        cleaner.relied_on = state.outcomes.map(Outcome::relies_on);
                    }),
                }
            }
            CleanerAt::Delete => {
                let is_root = |point: &usize| (!cleaner.purged | cleaner.pinned) & (1 << point) != 0;
                let live = (0..2)
                    .filter(is_root)
                    .fold(0, |packs, point| packs | cleaner.relied_on[point]);
                for pack in members(cleaner.doomed & !live) {
                    act("deletes", 1 << pack, CleanerAt::Delete, &|next, cleaner| {
                        next.packs &= !(1 << pack);
                        cleaner.doomed &= !(1 << pack);
                    });
                }
                act("is done", 0, CleanerAt::List, &|_, cleaner| *cleaner = IDLE);
            }
        }
    }
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::List,
    doomed: 0,
    waits_for: 0,
    purged: 0,
    pinned: 0,
    relied_on: [0; 2],
};

impl Model for Bases {
    type State = State;

    const NAMES: &'static [&'static str] = &["pack OLD", "pack of W1", "pack of W2"];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("a pack is deleted", |state| state.packs & OLD == 0),
        ("a condemned pack is inherited", |state| {
            let upon_other = state.sessions[1] == Session::UponOther;
            upon_other && state.condemned & state.outcomes[1].relies_on() != 0
        }),
        ("a writer finds its base purged", |state| {
            state.writers[1].at == WriterAt::Choose && state.sessions[1] == Session::UponOther && state.is_purged(0)
        }),
        ("a base is purged and its heir goes on", |state| {
            state.is_purged(0) && state.sessions[1] == Session::UponOther && state.outcomes[1].relies_on() != 0
        }),
    ];

    fn start(&self) -> State {
        State {
            sessions: [Session::None; 2],
            outcomes: [Outcome::Undecided; 2],
            purged: 0,
            packs: OLD,
            condemned: 0,
            writers: [Writer {
                at: WriterAt::Begin,
                condemned: 0,
                pack: 0,
            }; 2],
            cleaners: [IDLE; 2],
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        for writer in 0..2 {
            if state.outcomes[writer].relies_on() != 0 && !state.is_purged(writer) {
                let does = ["purges the point of W1", "purges the point of W2"][writer];
                steps.push((
                    step("user", does, 0),
                    State {
                        purged: state.purged | 1 << writer,
                        ..*state
                    },
                ));
            }
            self.writer_acts(state, writer, steps);
        }
        for cleaner in 0..2 {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, mut state: State) -> State {
        state.cleaners.sort_unstable();
        state
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        (state.needed() & !state.packs != 0).then_some("a point relies on a pack that is gone")
    }
}

fn without(left_out: LeftOut) {
    breaks(&Bases { left_out }, left_out);
}

#[test]
fn bases_are_inherited_beside_two_cleaners_and_nothing_is_lost() {
    holds(
        &Bases {
            left_out: LeftOut::Nothing,
        },
        "two writers that inherit, two cleaners",
    );
}

#[test]
fn a_base_inherited_unpinned_loses_a_point() {
    without(LeftOut::BasesPinned);
}

#[test]
fn a_base_checked_before_the_session_exists_loses_a_point() {
    without(LeftOut::BaseCheckedAfterSession);
}

#[test]
fn a_base_that_is_not_checked_loses_a_point() {
    without(LeftOut::BaseChecked);
}

#[test]
fn sessions_read_before_fates_lose_a_point() {
    without(LeftOut::FatesReadBeforeSessions);
}

#[test]
fn points_read_before_sessions_lose_a_point() {
    without(LeftOut::PointsReadAfterSessions);
}
