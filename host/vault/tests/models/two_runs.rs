//! A cleaner that never waits: one run condemns and writes down whom it waits for, a later one deletes.
//!
//! One pack, OLD, that a point relies on until it is purged; everybody's own packs stay and are not looked at. W1
//! deduplicates against OLD or sends its own. W2 takes the point of W1 for its base, or does as W1 does, for a machine that
//! is new. Two cleaners make one run after the other, and are killed anywhere in them. Sessions expire at any time.

use crate::checker::{Model, Step, Witness, breaks, holds, step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// Whom a condemn waits for is read after the condemn.
    SessionsReadAfterCondemn,
    /// A condemn that no checkpoint knows of is not ripe, however old it is.
    UnknownIsNotRipe,
    /// A session counts as decided if it was when the mark read the sessions, before it read the points.
    RipeByTheMarksSessions,
    /// A checkpoint stands directly behind the records that it sums up.
    CheckpointFollowsWhatWasRead,
    /// A pack is gone when a read does not find it, not when a listing does not show it.
    GoneIsRead,
    /// Nobody puts a pack again that was deleted. It is assumed: a writer that was fenced days ago may only have one request
    /// on its way.
    GoneStaysGone,
    /// The machines are read again after the condemn.
    MachinesReadAfterCondemn,
    /// A mark reads what is purged before it reads the undecided sessions.
    FatesReadBeforeSessions,
    /// A mark reads the points after the undecided sessions.
    PointsReadAfterSessions,
    /// A writer looks whether the packs that it newly relies on are there, before it commits.
    WriterLooksForPacks,
}

const WRITERS: [&str; 2] = ["W1", "W2"];
const CLEANERS: [&str; 2] = ["C1", "C2"];
const W1: u8 = 0b01;
const W2: u8 = 0b10;

/// What the log says of OLD, as far as it is not said to be gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Condemned {
    No,
    /// A record says so; no checkpoint says who may still rely on it.
    WaitsUnknown,
    WaitsFor(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Session {
    None,
    Fresh,
    UponW1,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Undecided,
    Aborted,
    CommittedUponOld,
    CommittedUponOwn,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum WriterAt {
    Register,
    Begin,
    ReadLog,
    Choose { old_is_condemned: bool },
    Look,
    Commit { upon_old: bool },
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CleanerAt {
    ReadLog,
    Mark(u8),
    Delete,
    Condemn,
    Sessions,
    Checkpoint,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cleaner {
    at: CleanerAt,
    /// What it has read, and whether nothing was added to the log since.
    log: Condemned,
    log_is_current: bool,
    knows_machine_of_w2: bool,
    /// The mark: purged points, undecided sessions, whether the point of W1 is a base of one, what W1 and W2 committed.
    old_purged: bool,
    w1_purged: bool,
    undecided: u8,
    w1_pinned: bool,
    upon_old: u8,
    /// What the mark says of OLD.
    live: bool,
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::ReadLog,
    log: Condemned::No,
    log_is_current: false,
    knows_machine_of_w2: false,
    old_purged: false,
    w1_purged: false,
    undecided: 0,
    w1_pinned: false,
    upon_old: 0,
    live: false,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    machine_of_w2: bool,
    sessions: [Session; 2],
    outcomes: [Outcome; 2],
    old_purged: bool,
    w1_purged: bool,
    old_is_there: bool,
    log: Condemned,
    writers: [WriterAt; 2],
    cleaners: [Cleaner; 2],
}

impl State {
    fn undecided(&self) -> u8 {
        let undecided =
            |writer: &usize| self.sessions[*writer] != Session::None && self.outcomes[*writer] == Outcome::Undecided;
        (0..2).filter(undecided).map(|writer| 1 << writer).sum()
    }

    fn upon_old(&self) -> u8 {
        let upon_old = |writer: &usize| self.outcomes[*writer] == Outcome::CommittedUponOld;
        (0..2).filter(upon_old).map(|writer| 1 << writer).sum()
    }
}

struct TwoRuns {
    writers: usize,
    cleaners: usize,
    left_out: LeftOut,
}

impl TwoRuns {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn writer_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, at, change: &dyn Fn(&mut State)| {
            let mut next = *state;
            change(&mut next);
            next.writers[index] = at;
            steps.push((step(WRITERS[index], does, 0), next));
        };
        match state.writers[index] {
            WriterAt::Register => {
                act("enters its machine into the vault", WriterAt::Begin, &|next| {
                    next.machine_of_w2 = true
                });
                // Bases are of the same machine, so as an heir it has the machine of W1.
                if matches!(state.outcomes[0], Outcome::CommittedUponOld | Outcome::CommittedUponOwn) {
                    act("begins its session upon the point of W1", WriterAt::ReadLog, &|next| {
                        next.sessions[index] = Session::UponW1;
                    });
                }
            }
            WriterAt::Begin => {
                act("begins its session", WriterAt::ReadLog, &|next| {
                    next.sessions[index] = Session::Fresh
                });
            }
            WriterAt::ReadLog if state.log == Condemned::No => {
                act(
                    "reads that nothing is condemned",
                    WriterAt::Choose {
                        old_is_condemned: false,
                    },
                    &|_| {},
                );
            }
            WriterAt::ReadLog => {
                act(
                    "reads that OLD is condemned",
                    WriterAt::Choose { old_is_condemned: true },
                    &|_| {},
                );
            }
            WriterAt::Choose { .. } if state.sessions[index] == Session::UponW1 => {
                if !state.w1_purged {
                    let upon_old = state.outcomes[0] == Outcome::CommittedUponOld;
                    act(
                        "finds its base not purged, inherits its packs",
                        WriterAt::Commit { upon_old },
                        &|_| {},
                    );
                }
            }
            WriterAt::Choose { old_is_condemned } => {
                // Its copy of the index may be old: it may still list what is gone.
                if !old_is_condemned {
                    let blind = self.without(LeftOut::WriterLooksForPacks);
                    let then = if blind {
                        WriterAt::Commit { upon_old: true }
                    } else {
                        WriterAt::Look
                    };
                    act("deduplicates against OLD", then, &|_| {});
                }
                act("sends its own pack", WriterAt::Commit { upon_old: false }, &|_| {});
            }
            WriterAt::Look if state.old_is_there => {
                act("sees that OLD is there", WriterAt::Commit { upon_old: true }, &|_| {});
            }
            WriterAt::Look => act("sees that OLD is gone, and fails", WriterAt::Over, &|_| {}),
            WriterAt::Commit { upon_old } if state.outcomes[index] == Outcome::Undecided => {
                let (does, outcome) = match upon_old {
                    true => ("commits a point upon OLD", Outcome::CommittedUponOld),
                    false => ("commits a point upon its own pack", Outcome::CommittedUponOwn),
                };
                act(does, WriterAt::Over, &|next| next.outcomes[index] = outcome);
            }
            WriterAt::Commit { .. } => act("finds itself aborted", WriterAt::Over, &|_| {}),
            WriterAt::Over => {}
        }
    }

    fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let mut act = |does, at, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, Cleaner { at, ..cleaner });
            change(&mut next, &mut changed);
            if next.log != state.log {
                // Whoever creates the next number of what it has read finds it taken.
                next.cleaners[1 - index].log_is_current = false;
            }
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, 0), next));
        };
        let heir = state.sessions[1] == Session::UponW1;
        let seen = |cleaner: &Cleaner| {
            if heir || cleaner.knows_machine_of_w2 {
                W1 | W2
            } else {
                W1
            }
        };
        match cleaner.at {
            CleanerAt::ReadLog => act("reads the log and the machines", CleanerAt::Mark(0), &|_, cleaner| {
                (cleaner.log, cleaner.log_is_current) = (state.log, true);
                cleaner.knows_machine_of_w2 = state.machine_of_w2;
            }),
            CleanerAt::Mark(3) => {
                let w1_kept = !cleaner.w1_purged || cleaner.w1_pinned;
                let roots = if w1_kept { W1 | W2 } else { W2 };
                let live = !cleaner.old_purged || cleaner.upon_old & roots != 0;
                let undecided = match self.left_out {
                    LeftOut::RipeByTheMarksSessions => state.undecided(),
                    _ => cleaner.undecided,
                };
                let ripe = match cleaner.log {
                    Condemned::No => false,
                    Condemned::WaitsUnknown => self.without(LeftOut::UnknownIsNotRipe),
                    // A session of a machine that it does not know is not known to be decided.
                    Condemned::WaitsFor(sessions) => sessions & (undecided | !seen(&cleaner)) == 0,
                };
                let (does, at) = match (ripe && !live, live) {
                    (true, _) => ("finds OLD ripe and dead", CleanerAt::Delete),
                    (false, true) => ("finds OLD live", CleanerAt::Condemn),
                    (false, false) => ("finds OLD dead", CleanerAt::Condemn),
                };
                act(does, at, &|_, cleaner| {
                    // What the mark has read matters no longer.
                    let old = std::mem::replace(cleaner, Cleaner { at, live, ..IDLE });
                    (cleaner.log, cleaner.log_is_current) = (old.log, old.log_is_current);
                    match self.left_out {
                        LeftOut::MachinesReadAfterCondemn => cleaner.knows_machine_of_w2 = old.knows_machine_of_w2,
                        LeftOut::SessionsReadAfterCondemn => cleaner.undecided = old.undecided,
                        _ => {}
                    }
                });
            }
            CleanerAt::Mark(number) => {
                let order = match self.left_out {
                    LeftOut::FatesReadBeforeSessions => b"SFP",
                    LeftOut::PointsReadAfterSessions => b"FPS",
                    _ => b"FSP",
                };
                let then = CleanerAt::Mark(number + 1);
                match order[number as usize] {
                    b'F' => act("reads the fates", then, &|_, cleaner| {
                        (cleaner.old_purged, cleaner.w1_purged) = (state.old_purged, state.w1_purged);
                    }),
                    b'S' => act("reads the undecided sessions and their bases", then, &|_, cleaner| {
                        cleaner.undecided = state.undecided() & seen(cleaner);
                        cleaner.w1_pinned = cleaner.undecided & W2 != 0 && state.sessions[1] == Session::UponW1;
                    }),
                    _ => act("reads the points", then, &|_, cleaner| {
                        cleaner.upon_old = state.upon_old() & seen(cleaner);
                    }),
                }
            }
            CleanerAt::Delete => act("deletes OLD", CleanerAt::Condemn, &|next, _| next.old_is_there = false),
            CleanerAt::Condemn if cleaner.log == Condemned::No && !cleaner.live && state.old_is_there => {
                if !cleaner.log_is_current {
                    act(
                        "finds the next number taken, reads the log",
                        CleanerAt::Condemn,
                        &|_, cleaner| {
                            (cleaner.log, cleaner.log_is_current) = (state.log, true);
                        },
                    );
                    return;
                }
                let early = self.without(LeftOut::SessionsReadAfterCondemn);
                let then = if early {
                    CleanerAt::Checkpoint
                } else {
                    CleanerAt::Sessions
                };
                act("condemns OLD", then, &|next, cleaner| {
                    next.log = Condemned::WaitsUnknown;
                    cleaner.log = if early {
                        Condemned::WaitsFor(cleaner.undecided)
                    } else {
                        next.log
                    };
                    cleaner.undecided = 0;
                });
            }
            CleanerAt::Condemn if cleaner.log == Condemned::WaitsUnknown => {
                act(
                    "finds a condemn that nobody has finished",
                    CleanerAt::Sessions,
                    &|_, _| {},
                );
            }
            CleanerAt::Condemn => act("condemns nothing", CleanerAt::Checkpoint, &|_, _| {}),
            CleanerAt::Sessions => act("reads the undecided sessions", CleanerAt::Checkpoint, &|_, cleaner| {
                if !self.without(LeftOut::MachinesReadAfterCondemn) {
                    cleaner.knows_machine_of_w2 = state.machine_of_w2;
                }
                cleaner.log = Condemned::WaitsFor(state.undecided() & seen(cleaner));
            }),
            CleanerAt::Checkpoint => {
                let blind = self.without(LeftOut::CheckpointFollowsWhatWasRead);
                if !cleaner.log_is_current && !blind {
                    act(
                        "finds the next number taken, reads the log",
                        CleanerAt::Condemn,
                        &|_, cleaner| {
                            (cleaner.log, cleaner.log_is_current) = (state.log, true);
                        },
                    );
                    return;
                }
                let write = |next: &mut State, cleaner: &mut Cleaner, log| {
                    next.log = log;
                    *cleaner = IDLE;
                };
                let gone = !state.old_is_there;
                act("writes a checkpoint", CleanerAt::ReadLog, &|next, cleaner| {
                    let log = if gone { Condemned::No } else { cleaner.log };
                    write(next, cleaner, log);
                });
                if self.without(LeftOut::GoneIsRead) {
                    act(
                        "writes a checkpoint without OLD, which it saw in no listing",
                        CleanerAt::ReadLog,
                        &|next, cleaner| {
                            write(next, cleaner, Condemned::No);
                        },
                    );
                }
            }
        }
        if cleaner.at != CleanerAt::ReadLog {
            act("is killed and starts again", CleanerAt::ReadLog, &|_, cleaner| {
                *cleaner = IDLE
            });
        }
    }
}

impl Model for TwoRuns {
    type State = State;

    const NAMES: &'static [&'static str] = &[];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("OLD is deleted", |state| !state.old_is_there),
        ("OLD is deleted and no longer in the log", |state| {
            !state.old_is_there && state.log == Condemned::No
        }),
        ("a condemn waits for both sessions", |state| {
            state.log == Condemned::WaitsFor(W1 | W2)
        }),
        ("a writer relies on OLD though it is condemned", |state| {
            state.log != Condemned::No && state.upon_old() != 0 && state.old_is_there
        }),
        ("a writer finds that OLD is gone", |state| {
            state.writers[0] == WriterAt::Look && !state.old_is_there
        }),
        ("W2 inherits from a point that is purged", |state| {
            state.w1_purged && state.sessions[1] == Session::UponW1 && state.outcomes[1] == Outcome::CommittedUponOld
        }),
    ];

    fn start(&self) -> State {
        State {
            machine_of_w2: false,
            sessions: [Session::None; 2],
            outcomes: [Outcome::Undecided; 2],
            old_purged: false,
            w1_purged: false,
            old_is_there: true,
            log: Condemned::No,
            writers: [WriterAt::Begin, WriterAt::Register],
            cleaners: [IDLE; 2],
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |who, does, next| steps.push((step(who, does, 0), next));
        act(
            "user",
            "has the old point purged",
            State {
                old_purged: true,
                ..*state
            },
        );
        if matches!(state.outcomes[0], Outcome::CommittedUponOld | Outcome::CommittedUponOwn) {
            act(
                "user",
                "has the point of W1 purged",
                State {
                    w1_purged: true,
                    ..*state
                },
            );
        }
        if self.without(LeftOut::GoneStaysGone) && !state.old_is_there {
            act(
                "W0",
                "puts OLD again, not knowing that it is fenced",
                State {
                    old_is_there: true,
                    ..*state
                },
            );
        }
        for expired in (0..2).filter(|writer| state.undecided() & (1 << writer) != 0) {
            let mut next = *state;
            next.outcomes[expired] = Outcome::Aborted;
            // What it still does before it notices changes nothing here.
            next.writers[expired] = WriterAt::Over;
            let does = ["aborts W1, which has expired", "aborts W2, which has expired"][expired];
            act("C", does, next);
        }
        for writer in 0..self.writers {
            self.writer_acts(state, writer, steps);
        }
        for cleaner in 0..self.cleaners {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, mut state: State) -> State {
        state.cleaners.sort_unstable();
        state
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let w1 = state.outcomes[0] == Outcome::CommittedUponOld && !state.w1_purged;
        let w2 = state.outcomes[1] == Outcome::CommittedUponOld;
        let lost = !state.old_is_there && (!state.old_purged || w1 || w2);
        lost.then_some("a point relies on OLD, which is gone")
    }
}

fn without(left_out: LeftOut) {
    breaks(
        &TwoRuns {
            writers: 2,
            cleaners: 1,
            left_out,
        },
        left_out,
    );
}

fn without_beside_another_cleaner(left_out: LeftOut) {
    breaks(
        &TwoRuns {
            writers: 1,
            cleaners: 2,
            left_out,
        },
        left_out,
    );
}

#[test]
fn cleaning_in_two_runs_beside_another_cleaner_loses_nothing() {
    holds(
        &TwoRuns {
            writers: 2,
            cleaners: 2,
            left_out: LeftOut::Nothing,
        },
        "two runs, two writers, two cleaners",
    );
}

#[test]
fn waiting_for_the_sessions_of_before_the_condemn_loses_a_point() {
    without(LeftOut::SessionsReadAfterCondemn);
}

#[test]
fn a_condemn_that_waits_for_nobody_knows_whom_is_not_ripe() {
    without(LeftOut::UnknownIsNotRipe);
}

#[test]
fn sessions_looked_at_again_after_the_mark_lose_a_point() {
    without(LeftOut::RipeByTheMarksSessions);
}

#[test]
fn a_checkpoint_over_records_that_it_has_not_read_loses_a_point() {
    without_beside_another_cleaner(LeftOut::CheckpointFollowsWhatWasRead);
}

#[test]
fn taking_a_pack_for_gone_because_it_is_not_listed_loses_a_point() {
    without_beside_another_cleaner(LeftOut::GoneIsRead);
}

#[test]
fn a_pack_that_comes_back_after_it_went_loses_a_point() {
    without_beside_another_cleaner(LeftOut::GoneStaysGone);
}

#[test]
fn machines_read_before_the_condemn_lose_a_point() {
    without(LeftOut::MachinesReadAfterCondemn);
}

#[test]
fn sessions_read_before_fates_lose_a_point() {
    without(LeftOut::FatesReadBeforeSessions);
}

#[test]
fn points_read_before_sessions_lose_a_point() {
    without(LeftOut::PointsReadAfterSessions);
}

#[test]
fn committing_without_a_look_for_the_packs_loses_a_point() {
    without(LeftOut::WriterLooksForPacks);
}
