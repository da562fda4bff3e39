//! A purge that races with an undelete and with a session that takes the point for its base.
//!
//! One point relies on one pack, OLD, which is condemned from an earlier time and waits for nobody: it stays for that point
//! alone. A user forgets the point, waits, changes their mind. Two cleaners purge what was forgotten long enough ago, mark,
//! and delete. A writer takes the point for its base; its session may expire at any time.

use crate::checker::{Model, Step, Witness, breaks, holds, step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// What is not purged is a root, however long ago it was forgotten.
    PurgeIsARecord,
    /// A purge takes the number behind the records that it was decided upon, and no other.
    PurgeTakesTheNumberItSaw,
    /// An undelete that finds its number taken reads what is there.
    UndeleteReadsWhoWasFirst,
    /// After a purge no record decides anything.
    PurgeIsTheEnd,
    /// A writer looks at its base's fate once its session exists.
    BaseCheckedAfterSession,
    /// A mark reads the fates, and purges before that, before it reads the undecided sessions.
    FatesReadBeforeSessions,
    /// A mark reads the points after the undecided sessions.
    PointsReadAfterSessions,
}

const CLEANERS: [&str; 2] = ["C1", "C2"];
/// More than two rounds of forgetting and undeleting show nothing new.
const FORGETS_LIMIT: u8 = 3;

/// What the point's register comes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Fate {
    Kept,
    Forgotten,
    /// By the store's time, long enough ago.
    ForgottenLongAgo,
    Purged,
}

/// What somebody has read of the register. It is current while the number behind it is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Seen {
    fate: Fate,
    is_current: bool,
}

const NOTHING_SEEN: Seen = Seen {
    fate: Fate::Kept,
    is_current: false,
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum CleanerAt {
    ReadFate,
    Purge,
    Mark(u8),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cleaner {
    at: CleanerAt,
    seen: Seen,
    is_root: bool,
    is_base: bool,
    heir_is_there: bool,
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::ReadFate,
    seen: NOTHING_SEEN,
    is_root: true,
    is_base: false,
    heir_is_there: false,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum UserAt {
    Idle,
    Undelete,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum WriterAt {
    Begin,
    BeginUponChecked,
    CheckBase,
    Commit,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Undecided,
    Aborted,
    Committed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    fate: Fate,
    forgets: u8,
    /// The user was told that the point is kept again, and has not forgotten it since.
    kept_again: bool,
    user: UserAt,
    user_saw: Seen,
    old_is_there: bool,
    session: bool,
    outcome: Outcome,
    writer: WriterAt,
    cleaners: [Cleaner; 2],
}

impl State {
    /// A record is added to the register: whoever has read it finds the next number taken.
    fn append(&mut self, fate: Fate) {
        self.fate = fate;
        self.user_saw.is_current = false;
        for cleaner in &mut self.cleaners {
            cleaner.seen.is_current = false;
        }
    }

    fn is_base(&self) -> bool {
        self.session && self.outcome == Outcome::Undecided
    }
}

struct Purge {
    left_out: LeftOut,
}

impl Purge {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn user_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, user, change: &dyn Fn(&mut State)| {
            let mut next = State { user, ..*state };
            change(&mut next);
            steps.push((step("user", does, 0), next));
        };
        match state.user {
            UserAt::Idle => {
                if state.fate == Fate::Kept && state.forgets < FORGETS_LIMIT {
                    act("forgets the point", UserAt::Idle, &|next| {
                        next.append(Fate::Forgotten);
                        next.forgets += 1;
                        next.kept_again = false;
                    });
                }
                if state.forgets != 0 {
                    act("looks at the fate, to undelete", UserAt::Undelete, &|next| {
                        next.user_saw = Seen {
                            fate: state.fate,
                            is_current: true,
                        };
                    });
                }
            }
            UserAt::Undelete if state.user_saw.is_current => match state.user_saw.fate {
                Fate::Kept => act("finds it kept", UserAt::Idle, &|next| next.user_saw = NOTHING_SEEN),
                Fate::Purged if !self.without(LeftOut::PurgeIsTheEnd) => {
                    act("is told that it is purged", UserAt::Idle, &|next| {
                        next.user_saw = NOTHING_SEEN
                    });
                }
                _ => act("undeletes the point", UserAt::Idle, &|next| {
                    next.append(Fate::Kept);
                    next.user_saw = NOTHING_SEEN;
                    next.kept_again = true;
                }),
            },
            UserAt::Undelete if self.without(LeftOut::UndeleteReadsWhoWasFirst) => {
                act(
                    "finds the number taken, says that it is undeleted",
                    UserAt::Idle,
                    &|next| {
                        (next.user_saw, next.kept_again) = (NOTHING_SEEN, true);
                    },
                );
            }
            UserAt::Undelete => act("finds the number taken, looks again", UserAt::Undelete, &|next| {
                next.user_saw = Seen {
                    fate: state.fate,
                    is_current: true,
                };
            }),
        }
    }

    fn writer_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, writer, change: &dyn Fn(&mut State)| {
            let mut next = State { writer, ..*state };
            change(&mut next);
            steps.push((step("W", does, 0), next));
        };
        let purged = state.fate == Fate::Purged;
        match state.writer {
            WriterAt::Begin if self.without(LeftOut::BaseCheckedAfterSession) => {
                if !purged {
                    act("finds the point not purged", WriterAt::BeginUponChecked, &|_| {});
                }
            }
            WriterAt::Begin => act("begins its session upon the point", WriterAt::CheckBase, &|next| {
                next.session = true
            }),
            WriterAt::BeginUponChecked => {
                act("begins its session upon the point", WriterAt::Commit, &|next| {
                    next.session = true
                });
            }
            WriterAt::CheckBase if purged => act("finds the point purged, gives up", WriterAt::Over, &|next| {
                if next.outcome == Outcome::Undecided {
                    next.outcome = Outcome::Aborted;
                }
            }),
            WriterAt::CheckBase => act("finds the point not purged, inherits OLD", WriterAt::Commit, &|_| {}),
            WriterAt::Commit if state.outcome == Outcome::Undecided => {
                act("commits a point upon OLD", WriterAt::Over, &|next| {
                    next.outcome = Outcome::Committed
                });
            }
            WriterAt::Commit => act("finds itself aborted", WriterAt::Over, &|_| {}),
            WriterAt::Over => {}
        }
    }

    fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let mut act = |does, at, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, Cleaner { at, ..cleaner });
            change(&mut next, &mut changed);
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, 0), next));
        };
        let order = match self.left_out {
            LeftOut::FatesReadBeforeSessions => b"SFP",
            LeftOut::PointsReadAfterSessions => b"FPS",
            _ => b"FSP",
        };
        match cleaner.at {
            CleanerAt::ReadFate => act("looks at the fate, to purge", CleanerAt::Purge, &|_, cleaner| {
                cleaner.seen = Seen {
                    fate: state.fate,
                    is_current: true,
                };
            }),
            CleanerAt::Purge => {
                let current = cleaner.seen.is_current || self.without(LeftOut::PurgeTakesTheNumberItSaw);
                let old_enough = cleaner.seen.fate == Fate::ForgottenLongAgo;
                if !old_enough || !current || self.without(LeftOut::PurgeIsARecord) {
                    let does = if current || !old_enough {
                        "purges nothing"
                    } else {
                        "finds the number taken, purges nothing"
                    };
                    act(does, CleanerAt::Mark(0), &|_, cleaner| cleaner.seen = NOTHING_SEEN);
                } else {
                    act("purges the point", CleanerAt::Mark(0), &|next, cleaner| {
                        next.append(Fate::Purged);
                        cleaner.seen = NOTHING_SEEN;
                    });
                }
            }
            CleanerAt::Mark(3) => {
                let live = cleaner.is_root || cleaner.is_base || cleaner.heir_is_there;
                let (does, at) = match live {
                    true => ("finds OLD live", CleanerAt::ReadFate),
                    false => ("finds OLD dead", CleanerAt::Delete),
                };
                act(does, at, &|_, cleaner| *cleaner = Cleaner { at, ..IDLE });
            }
            CleanerAt::Mark(number) => match order[number as usize] {
                b'F' => act("reads the fates", CleanerAt::Mark(number + 1), &|_, cleaner| {
                    let forgotten = self.without(LeftOut::PurgeIsARecord) && state.fate == Fate::ForgottenLongAgo;
                    cleaner.is_root = state.fate != Fate::Purged && !forgotten;
                }),
                b'S' => act(
                    "reads the undecided sessions and their bases",
                    CleanerAt::Mark(number + 1),
                    &|_, cleaner| {
                        cleaner.is_base = state.is_base();
                    },
                ),
                _ => act("reads the points", CleanerAt::Mark(number + 1), &|_, cleaner| {
                    cleaner.heir_is_there = state.outcome == Outcome::Committed;
                }),
            },
            CleanerAt::Delete => act("deletes OLD", CleanerAt::ReadFate, &|next, _| next.old_is_there = false),
        }
        if cleaner.at != CleanerAt::ReadFate {
            act("is killed and starts again", CleanerAt::ReadFate, &|_, cleaner| {
                *cleaner = IDLE
            });
        }
    }
}

impl Model for Purge {
    type State = State;

    const NAMES: &'static [&'static str] = &[];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("the point is purged and OLD deleted", |state| {
            state.fate == Fate::Purged && !state.old_is_there
        }),
        ("the point is kept again", |state| state.kept_again),
        ("an undelete comes too late", |state| {
            state.user == UserAt::Undelete && state.fate == Fate::Purged
        }),
        ("a base is purged and its heir goes on", |state| {
            state.fate == Fate::Purged && state.outcome == Outcome::Committed
        }),
        ("a writer finds its base purged", |state| {
            state.writer == WriterAt::CheckBase && !state.old_is_there
        }),
    ];

    fn start(&self) -> State {
        State {
            fate: Fate::Kept,
            forgets: 0,
            kept_again: false,
            user: UserAt::Idle,
            user_saw: NOTHING_SEEN,
            old_is_there: true,
            session: false,
            outcome: Outcome::Undecided,
            writer: WriterAt::Begin,
            cleaners: [IDLE; 2],
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        if state.fate == Fate::Forgotten {
            let next = State {
                fate: Fate::ForgottenLongAgo,
                ..*state
            };
            steps.push((step("time", "passes: the forget is 14 days old", 0), next));
        }
        if state.is_base() {
            let next = State {
                outcome: Outcome::Aborted,
                ..*state
            };
            steps.push((step("C", "aborts W, which has expired", 0), next));
        }
        self.user_acts(state, steps);
        self.writer_acts(state, steps);
        for cleaner in 0..2 {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, mut state: State) -> State {
        state.cleaners.sort_unstable();
        state
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        if state.kept_again && state.fate == Fate::Purged {
            Some("the point is purged, though the user was told that it is kept again")
        } else if !state.old_is_there && state.fate != Fate::Purged {
            Some("the point is not purged, and OLD is gone")
        } else if !state.old_is_there && state.outcome == Outcome::Committed {
            Some("the point of W relies on OLD, which is gone")
        } else {
            None
        }
    }
}

fn without(left_out: LeftOut) {
    breaks(&Purge { left_out }, left_out);
}

#[test]
fn a_purge_and_an_undelete_race_and_nobody_is_told_wrong() {
    holds(
        &Purge {
            left_out: LeftOut::Nothing,
        },
        "purge against undelete and heirs, two cleaners",
    );
}

#[test]
fn sweeping_what_is_only_forgotten_loses_an_undeleted_point() {
    without(LeftOut::PurgeIsARecord);
}

#[test]
fn a_purge_at_another_number_purges_what_is_kept_again() {
    without(LeftOut::PurgeTakesTheNumberItSaw);
}

#[test]
fn an_undelete_that_does_not_read_who_was_first_promises_what_is_purged() {
    without(LeftOut::UndeleteReadsWhoWasFirst);
}

#[test]
fn an_undelete_after_the_purge_brings_back_a_point_without_data() {
    without(LeftOut::PurgeIsTheEnd);
}

#[test]
fn a_base_checked_before_the_session_exists_loses_its_heir() {
    without(LeftOut::BaseCheckedAfterSession);
}

#[test]
fn sessions_read_before_the_purge_lose_an_heir() {
    without(LeftOut::FatesReadBeforeSessions);
}

#[test]
fn points_read_before_sessions_lose_an_heir() {
    without(LeftOut::PointsReadAfterSessions);
}
