//! A writer that forgets its own points and builds upon them, trusting nothing that it remembers.
//!
//! One host backs up the same machine three times. Each session sends a pack, deduplicates against what an earlier one
//! sent, or takes an earlier point for its base; and the host forgets its points whenever it likes, also the base of the
//! session that is running. Two cleaners purge, condemn and delete.

use crate::checker::{Model, Step, Witness, breaks, holds, members, step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// A writer looks whether its own point is purged, as with any other.
    OwnBaseChecked,
    /// A writer asks the log about the packs that it sent itself, as about all others.
    OwnPacksCondemned,
    /// A writer looks whether the packs that it sent in earlier sessions are still there.
    OwnPacksLookedFor,
    /// Its session names the point as a base, though the point is its own.
    OwnBasePinned,
    /// A mark reads the fates before the undecided sessions.
    FatesReadBeforeSessions,
    /// A mark reads the points after the undecided sessions.
    PointsReadAfterSessions,
}

const CLEANERS: [&str; 2] = ["C1", "C2"];
const SESSIONS: usize = 3;

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
    ReadLog,
    CheckBase,
    Choose { condemned: u8 },
    Look { pack: u8 },
    Commit { pack: u8 },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CleanerAt {
    Mark,
    Condemn,
    Sessions,
    Drain,
    Read(u8),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cleaner {
    at: CleanerAt,
    doomed: u8,
    /// The session that was undecided after the condemn, if any, as a bit.
    waits_for: u8,
    purged: u8,
    pinned: u8,
    relied_on: [u8; 3],
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::Mark,
    doomed: 0,
    waits_for: 0,
    purged: 0,
    pinned: 0,
    relied_on: [0; 3],
};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    forgotten: u8,
    purged: u8,
    packs: u8,
    condemned: u8,
    outcomes: [Outcome; 3],
    /// The session that runs or is next, and its base.
    session: u8,
    base: Option<u8>,
    writer: WriterAt,
    cleaners: [Cleaner; 2],
}

impl State {
    fn undecided(&self) -> u8 {
        let runs = (self.session as usize) < SESSIONS && self.writer != WriterAt::Begin;
        if runs && self.outcomes[self.session as usize] == Outcome::Undecided {
            1 << self.session
        } else {
            0
        }
    }

    /// Packs of the points in a set, which are numbered as their sessions.
    fn packs_of(&self, points: u8) -> u8 {
        let points = members(points & 0b111);
        points.fold(0, |packs, point| packs | self.outcomes[point as usize].relies_on())
    }
}

struct OwnPoints {
    cleaners: usize,
    left_out: LeftOut,
}

impl OwnPoints {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn writer_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        for point in members(!state.forgotten & 0b111) {
            if let Outcome::Committed(_) = state.outcomes[point as usize] {
                let next = State {
                    forgotten: state.forgotten | 1 << point,
                    ..*state
                };
                let does = [
                    "forgets its first point",
                    "forgets its second point",
                    "forgets its third point",
                ];
                steps.push((step("W", does[point as usize], 0), next));
            }
        }
        let session = state.session as usize;
        if session == SESSIONS {
            return;
        }
        let own = 1 << session;
        let mut act = |does, with, writer, change: &dyn Fn(&mut State)| {
            let mut next = State { writer, ..*state };
            change(&mut next);
            steps.push((step("W", does, with), next));
        };
        let over = |next: &mut State| {
            next.session += 1;
            next.base = None;
        };
        match state.writer {
            WriterAt::Begin => {
                act("begins a session", 0, WriterAt::ReadLog, &|_| {});
                for base in (0..state.session).filter(|point| state.outcomes[*point as usize].relies_on() != 0) {
                    let does = ["begins upon its first point", "begins upon its second point"][base as usize];
                    act(does, 0, WriterAt::ReadLog, &|next| next.base = Some(base));
                }
            }
            WriterAt::ReadLog => {
                let condemned = if self.without(LeftOut::OwnPacksCondemned) {
                    0
                } else {
                    state.condemned
                };
                let then = if state.base.is_some() {
                    WriterAt::CheckBase
                } else {
                    WriterAt::Choose { condemned }
                };
                act("reads that condemned are:", condemned, then, &|_| {});
            }
            WriterAt::CheckBase => {
                let base = 1 << state.base.unwrap_or(0);
                if state.purged & base != 0 && !self.without(LeftOut::OwnBaseChecked) {
                    act("finds its own point purged, gives up", 0, WriterAt::Begin, &|next| {
                        next.outcomes[session] = Outcome::Aborted;
                        over(next);
                    });
                } else {
                    let pack = state.packs_of(base);
                    act("inherits", pack, WriterAt::Commit { pack }, &|_| {});
                }
            }
            WriterAt::Choose { condemned } => {
                // It remembers what it sent, whether that is still there or not.
                for pack in (0..session)
                    .map(|earlier| 1 << earlier)
                    .filter(|pack| condemned & pack == 0)
                {
                    let blind = self.without(LeftOut::OwnPacksLookedFor);
                    let then = if blind {
                        WriterAt::Commit { pack }
                    } else {
                        WriterAt::Look { pack }
                    };
                    act("deduplicates against", pack, then, &|_| {});
                }
                act("sends", own, WriterAt::Commit { pack: own }, &|next| next.packs |= own);
            }
            WriterAt::Look { pack } if state.packs & pack != 0 => {
                act("sees that it is there:", pack, WriterAt::Commit { pack }, &|_| {});
            }
            WriterAt::Look { pack } => act("sees that it is gone:", pack, WriterAt::Begin, &|next| {
                next.outcomes[session] = Outcome::Aborted;
                over(next);
            }),
            WriterAt::Commit { pack } => {
                let decided = state.outcomes[session] != Outcome::Undecided;
                let does = if decided {
                    "finds itself aborted"
                } else {
                    "commits a point upon"
                };
                act(does, pack, WriterAt::Begin, &|next| {
                    if !decided {
                        next.outcomes[session] = Outcome::Committed(pack);
                    }
                    over(next);
                });
            }
        }
    }

    fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let undecided = state.undecided();
        let mut act = |does, with, at, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, Cleaner { at, ..cleaner });
            change(&mut next, &mut changed);
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, with), next));
        };
        match cleaner.at {
            CleanerAt::Mark => {
                let doomed = state.packs & !state.packs_of(!state.purged) & !undecided;
                if doomed != 0 {
                    act("finds dead", doomed, CleanerAt::Condemn, &|_, cleaner| {
                        cleaner.doomed = doomed
                    });
                }
            }
            CleanerAt::Condemn => act("condemns", cleaner.doomed, CleanerAt::Sessions, &|next, cleaner| {
                next.condemned |= cleaner.doomed;
            }),
            CleanerAt::Sessions => act("reads the undecided session", 0, CleanerAt::Drain, &|_, cleaner| {
                cleaner.waits_for = undecided;
            }),
            CleanerAt::Drain => {
                if cleaner.waits_for & undecided == 0 {
                    act("waits for nobody", 0, CleanerAt::Read(0), &|_, cleaner| {
                        cleaner.waits_for = 0
                    });
                }
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
                let done = |cleaner: &mut Cleaner| {
                    if number == 2 {
                        let roots = members((!cleaner.purged | cleaner.pinned) & 0b111);
                        let live = roots.fold(0, |packs, point| packs | cleaner.relied_on[point as usize]);
                        *cleaner = Cleaner {
                            at: then,
                            doomed: cleaner.doomed & !live,
                            ..IDLE
                        };
                    }
                };
                match order[number as usize] {
                    b'F' => act("reads the fates", 0, then, &|_, cleaner| {
                        cleaner.purged = state.purged;
                        done(cleaner);
                    }),
                    b'S' => act("reads the undecided session and its base", 0, then, &|_, cleaner| {
                        let base = state
                            .base
                            .filter(|_| undecided != 0 && !self.without(LeftOut::OwnBasePinned));
                        cleaner.pinned = base.map_or(0, |base| 1 << base);
                        done(cleaner);
                    }),
                    _ => act("reads the points", 0, then, &|_, cleaner| {
                        cleaner.relied_on = state.outcomes.map(Outcome::relies_on);
                        done(cleaner);
                    }),
                }
            }
            CleanerAt::Delete => match members(cleaner.doomed).next() {
                Some(pack) => act("deletes", 1 << pack, CleanerAt::Delete, &|next, cleaner| {
                    next.packs &= !(1 << pack);
                    cleaner.doomed &= !(1 << pack);
                }),
                None => act(
                    "takes out of the log what is gone",
                    0,
                    CleanerAt::Mark,
                    &|next, cleaner| {
                        next.condemned &= state.packs;
                        *cleaner = IDLE;
                    },
                ),
            },
        }
    }
}

impl Model for OwnPoints {
    type State = State;

    const NAMES: &'static [&'static str] = &["PACK 1", "PACK 2", "PACK 3"];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("a pack is deleted", |state| state.session == 3 && state.packs == 0b100),
        (
            "a third point relies on the first pack, all before it are purged",
            |state| state.outcomes[2] == Outcome::Committed(0b001) && state.purged & 0b011 == 0b011,
        ),
        ("the base of a running session is purged", |state| {
            matches!(state.writer, WriterAt::Commit { .. })
                && state.base.is_some_and(|base| state.purged & 1 << base != 0)
        }),
        ("a point relies on a condemned pack", |state| {
            state.packs_of(!state.purged) & state.condemned != 0
        }),
    ];

    fn start(&self) -> State {
        State {
            forgotten: 0,
            purged: 0,
            packs: 0,
            condemned: 0,
            outcomes: [Outcome::Undecided; 3],
            session: 0,
            base: None,
            writer: WriterAt::Begin,
            cleaners: [IDLE; 2],
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        for point in members(state.forgotten & !state.purged) {
            let does = [
                "purges the first point",
                "purges the second point",
                "purges the third point",
            ];
            let next = State {
                purged: state.purged | 1 << point,
                ..*state
            };
            steps.push((step("C", does[point as usize], 0), next));
        }
        if state.undecided() != 0 {
            let mut next = *state;
            next.outcomes[state.session as usize] = Outcome::Aborted;
            steps.push((step("C", "aborts the session, which has expired", 0), next));
        }
        self.writer_acts(state, steps);
        for cleaner in 0..self.cleaners {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, mut state: State) -> State {
        state.cleaners[..self.cleaners].sort_unstable();
        state
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let lost = state.packs_of(!state.purged) & !state.packs != 0;
        lost.then_some("a point relies on a pack that is gone")
    }
}

fn without(left_out: LeftOut) {
    breaks(&OwnPoints { cleaners: 1, left_out }, left_out);
}

#[test]
fn a_host_forgets_its_own_points_and_goes_on_from_them() {
    holds(
        &OwnPoints {
            cleaners: 2,
            left_out: LeftOut::Nothing,
        },
        "a host that forgets its own points, two cleaners",
    );
}

#[test]
fn trusting_the_own_point_loses_the_next() {
    without(LeftOut::OwnBaseChecked);
}

#[test]
fn trusting_own_packs_against_the_log_loses_a_point() {
    without(LeftOut::OwnPacksCondemned);
}

#[test]
fn trusting_own_packs_to_be_there_loses_a_point() {
    without(LeftOut::OwnPacksLookedFor);
}

#[test]
fn an_own_base_that_is_not_named_loses_a_point() {
    without(LeftOut::OwnBasePinned);
}

#[test]
fn sessions_read_before_fates_lose_a_point() {
    without(LeftOut::FatesReadBeforeSessions);
}

#[test]
fn points_read_before_sessions_lose_a_point() {
    without(LeftOut::PointsReadAfterSessions);
}
