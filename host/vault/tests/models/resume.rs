//! A job that was killed, and goes on in a new session with what the old one has sent.
//!
//! The old session, S1, takes a point for its base, sends pack SENT, and may commit. Its program may be killed, or only be
//! slow and go on. The new session, S2, takes the same base and wants to use SENT again, though no piece lists it and no
//! point needs it. The base relies on pack OLD and may be purged; sessions expire at any time. One cleaner runs again and again.

use crate::checker::{Model, Step, Witness, breaks, holds, members, step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// The new session reads the log itself, and what is condemned in it is not used again.
    LogReadAgain,
    /// The new session looks at its base's fate, though the old one has.
    BaseCheckedAgain,
    /// The old session is aborted before the new one sends anything.
    OldIsAborted,
    /// Where its Abort finds the point taken, the new session reads what stands there.
    AbortIsReadBack,
    /// The new session exists before the old one is aborted.
    NewBeforeAbort,
    /// The packs of a session that an undecided one resumes are no candidates for clean-up.
    ResumedPacksAreNoCandidates,
    /// The new session looks whether what it uses again is there.
    SentIsLookedFor,
}

const OLD: u8 = 0b001;
const SENT: u8 = 0b010;
const SENT_AGAIN: u8 = 0b100;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Undecided,
    /// By a session's own program, or by the one that resumes it.
    GivenUp,
    /// By the cleaner.
    Expired,
    Committed(u8),
}

impl Outcome {
    fn relies_on(self) -> u8 {
        if let Self::Committed(packs) = self { packs } else { 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum OldAt {
    Begin,
    CheckBase,
    Send,
    Commit,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum NewAt {
    /// Nothing is to be resumed yet.
    Waits,
    Begin,
    AbortOld,
    ReadLog,
    CheckBase {
        condemned: u8,
    },
    Choose {
        condemned: u8,
    },
    Look,
    Commit {
        pack: u8,
    },
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum CleanerAt {
    Mark,
    Condemn,
    Sessions,
    Drain,
    Read(u8),
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Cleaner {
    at: CleanerAt,
    doomed: u8,
    waits_for: u8,
    base_purged: bool,
    pinned: bool,
    relied_on: u8,
}

const IDLE: Cleaner = Cleaner {
    at: CleanerAt::Mark,
    doomed: 0,
    waits_for: 0,
    base_purged: false,
    pinned: false,
    relied_on: 0,
};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    base_purged: bool,
    packs: u8,
    condemned: u8,
    began: [bool; 2],
    outcomes: [Outcome; 2],
    old: OldAt,
    new: NewAt,
    /// S2 had to send again what S1 had sent.
    sent_again: bool,
    cleaner: Cleaner,
}

impl State {
    fn undecided(&self) -> u8 {
        let undecided = |session: &usize| self.began[*session] && self.outcomes[*session] == Outcome::Undecided;
        (0..2).filter(undecided).map(|session| 1 << session).sum()
    }

    fn needed(&self) -> u8 {
        let base = if self.base_purged { 0 } else { OLD };
        base | self.outcomes[0].relies_on() | self.outcomes[1].relies_on()
    }
}

struct Resume {
    left_out: LeftOut,
}

impl Resume {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    fn old_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, with, old, change: &dyn Fn(&mut State)| {
            let mut next = State { old, ..*state };
            change(&mut next);
            steps.push((step("S1", does, with), next));
        };
        match state.old {
            OldAt::Begin => act("begins upon the base", 0, OldAt::CheckBase, &|next| {
                next.began[0] = true
            }),
            OldAt::CheckBase if state.base_purged => act("finds its base purged", 0, OldAt::Over, &|_| {}),
            OldAt::CheckBase => act("finds its base not purged, inherits", OLD, OldAt::Send, &|_| {}),
            OldAt::Send => act("sends", SENT, OldAt::Commit, &|next| next.packs |= SENT),
            OldAt::Commit if state.outcomes[0] == Outcome::Undecided => {
                // Whether it hears of it or is killed before: the new one finds it committed.
                act("commits a point upon", OLD | SENT, OldAt::Over, &|next| {
                    next.outcomes[0] = Outcome::Committed(OLD | SENT);
                });
            }
            OldAt::Commit => act("finds itself aborted", 0, OldAt::Over, &|_| {}),
            OldAt::Over => {}
        }
    }

    fn new_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, with, new, change: &dyn Fn(&mut State)| {
            let mut next = State { new, ..*state };
            change(&mut next);
            steps.push((step("S2", does, with), next));
        };
        let abort_first = self.without(LeftOut::NewBeforeAbort);
        match state.new {
            NewAt::Waits if state.packs & SENT != 0 => {
                let then = if abort_first { NewAt::AbortOld } else { NewAt::Begin };
                act("is to resume S1", 0, then, &|_| {});
            }
            NewAt::Waits => {}
            NewAt::Begin => {
                let then = if abort_first || self.without(LeftOut::OldIsAborted) {
                    NewAt::ReadLog
                } else {
                    NewAt::AbortOld
                };
                act("begins upon the base", 0, then, &|next| next.began[1] = true);
            }
            NewAt::AbortOld => {
                let then = if abort_first { NewAt::Begin } else { NewAt::ReadLog };
                let committed = matches!(state.outcomes[0], Outcome::Committed(_));
                if state.outcomes[0] == Outcome::Undecided {
                    act("aborts S1", 0, then, &|next| next.outcomes[0] = Outcome::GivenUp);
                } else if committed && !self.without(LeftOut::AbortIsReadBack) {
                    act(
                        "finds S1 committed: there is nothing to resume",
                        0,
                        NewAt::Over,
                        &|_| {},
                    );
                } else {
                    act("finds the point of S1 taken", 0, then, &|_| {});
                }
            }
            NewAt::ReadLog => {
                let own = self.without(LeftOut::LogReadAgain);
                let condemned = if own { 0 } else { state.condemned };
                let does = if own {
                    "keeps to the log as S1 read it:"
                } else {
                    "reads that condemned are:"
                };
                let trusts = self.without(LeftOut::BaseCheckedAgain);
                let then = if trusts {
                    NewAt::Choose { condemned }
                } else {
                    NewAt::CheckBase { condemned }
                };
                act(does, condemned, then, &|_| {});
            }
            NewAt::CheckBase { .. } if state.base_purged => act("finds its base purged", 0, NewAt::Over, &|_| {}),
            NewAt::CheckBase { condemned } => {
                act(
                    "finds its base not purged, inherits",
                    OLD,
                    NewAt::Choose { condemned },
                    &|_| {},
                );
            }
            NewAt::Choose { condemned } if condemned & SENT == 0 => {
                let blind = self.without(LeftOut::SentIsLookedFor);
                let then = if blind {
                    NewAt::Commit { pack: SENT }
                } else {
                    NewAt::Look
                };
                act("uses again", SENT, then, &|_| {});
            }
            NewAt::Look if state.packs & SENT != 0 => {
                act("sees that it is there:", SENT, NewAt::Commit { pack: SENT }, &|_| {});
            }
            NewAt::Choose { .. } | NewAt::Look => {
                act(
                    "sends once more",
                    SENT_AGAIN,
                    NewAt::Commit { pack: SENT_AGAIN },
                    &|next| {
                        next.packs |= SENT_AGAIN;
                        next.sent_again = true;
                    },
                );
            }
            NewAt::Commit { pack } if state.outcomes[1] == Outcome::Undecided => {
                act("commits a point upon", OLD | pack, NewAt::Over, &|next| {
                    next.outcomes[1] = Outcome::Committed(OLD | pack);
                });
            }
            NewAt::Commit { .. } => act("finds itself aborted", 0, NewAt::Over, &|_| {}),
            NewAt::Over => {}
        }
    }

    fn cleaner_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaner;
        let undecided = state.undecided();
        let mut act = |does, with, at, change: &dyn Fn(&mut State)| {
            let mut next = State {
                cleaner: Cleaner { at, ..cleaner },
                ..*state
            };
            change(&mut next);
            steps.push((step("C", does, with), next));
        };
        match cleaner.at {
            CleanerAt::Mark => {
                let resumes = undecided & 0b10 != 0 && !self.without(LeftOut::ResumedPacksAreNoCandidates);
                let of_old = if undecided & 0b01 != 0 || resumes { SENT } else { 0 };
                let of_new = if undecided & 0b10 != 0 { SENT_AGAIN } else { 0 };
                let doomed = state.packs & !state.needed() & !of_old & !of_new;
                if doomed != 0 {
                    act("finds dead", doomed, CleanerAt::Condemn, &|next| {
                        next.cleaner.doomed = doomed
                    });
                }
            }
            CleanerAt::Condemn => act("condemns", cleaner.doomed, CleanerAt::Sessions, &|next| {
                next.condemned |= cleaner.doomed;
            }),
            CleanerAt::Sessions => act("reads the undecided sessions", 0, CleanerAt::Drain, &|next| {
                next.cleaner.waits_for = undecided;
            }),
            CleanerAt::Drain => {
                if cleaner.waits_for & undecided == 0 {
                    act("waits for nobody", 0, CleanerAt::Read(0), &|next| {
                        next.cleaner.waits_for = 0
                    });
                }
            }
            CleanerAt::Read(0) => act("reads the fates", 0, CleanerAt::Read(1), &|next| {
                next.cleaner.base_purged = state.base_purged;
            }),
            CleanerAt::Read(1) => act(
                "reads the undecided sessions and their bases",
                0,
                CleanerAt::Read(2),
                &|next| {
                    next.cleaner.pinned = undecided != 0;
                },
            ),
            CleanerAt::Read(_) => act("reads the points", 0, CleanerAt::Delete, &|next| {
                let relied_on = state.outcomes[0].relies_on() | state.outcomes[1].relies_on();
                let base = if !cleaner.base_purged || cleaner.pinned { OLD } else { 0 };
                next.cleaner = Cleaner {
                    at: CleanerAt::Delete,
                    doomed: cleaner.doomed & !(relied_on | base),
                    ..IDLE
                };
            }),
            CleanerAt::Delete => match members(cleaner.doomed).next() {
                Some(pack) => act("deletes", 1 << pack, CleanerAt::Delete, &|next| {
                    next.packs &= !(1 << pack);
                    next.cleaner.doomed &= !(1 << pack);
                }),
                None => act("takes out of the log what is gone", 0, CleanerAt::Mark, &|next| {
                    next.condemned &= state.packs;
                    next.cleaner = IDLE;
                }),
            },
        }
        if cleaner.at != CleanerAt::Mark {
            act("is killed and starts again", 0, CleanerAt::Mark, &|next| {
                next.cleaner = IDLE
            });
        }
    }
}

impl Model for Resume {
    type State = State;

    const NAMES: &'static [&'static str] = &["OLD", "SENT", "SENT AGAIN"];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("S2 commits with what S1 sent", |state| {
            state.outcomes[1] == Outcome::Committed(OLD | SENT)
        }),
        ("S2 commits with its own", |state| {
            state.outcomes[1] == Outcome::Committed(OLD | SENT_AGAIN)
        }),
        ("S1 commits though it is to be resumed", |state| {
            state.new == NewAt::AbortOld && state.outcomes[0] == Outcome::Committed(OLD | SENT)
        }),
        ("what S1 sent is deleted", |state| {
            state.new != NewAt::Waits && state.packs & SENT == 0
        }),
        ("the base is swept", |state| state.packs & OLD == 0),
        ("S2 needs a base that is purged", |state| {
            state.base_purged && state.outcomes[1].relies_on() != 0
        }),
    ];

    fn start(&self) -> State {
        State {
            base_purged: false,
            packs: OLD,
            condemned: 0,
            began: [false; 2],
            outcomes: [Outcome::Undecided; 2],
            old: OldAt::Begin,
            new: NewAt::Waits,
            sent_again: false,
            cleaner: IDLE,
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        steps.push((
            step("user", "has the base purged", 0),
            State {
                base_purged: true,
                ..*state
            },
        ));
        for expired in members(state.undecided()) {
            let expired = expired as usize;
            let mut next = *state;
            next.outcomes[expired] = Outcome::Expired;
            steps.push((
                step(
                    "C",
                    ["aborts S1, which has expired", "aborts S2, which has expired"][expired],
                    0,
                ),
                next,
            ));
        }
        self.old_acts(state, steps);
        self.new_acts(state, steps);
        self.cleaner_acts(state, steps);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let both = state
            .outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Committed(_)));
        if state.needed() & !state.packs != 0 {
            Some("a point relies on a pack that is gone")
        } else if both {
            Some("one snapshot has become two points")
        } else if state.sent_again && state.outcomes == [Outcome::GivenUp, Outcome::Undecided] {
            Some("nothing had expired, and what S1 had sent was condemned before S2 could use it")
        } else {
            None
        }
    }
}

fn without(left_out: LeftOut) {
    breaks(&Resume { left_out }, left_out);
}

#[test]
fn a_resumed_job_uses_again_what_was_sent_and_nothing_is_lost() {
    holds(
        &Resume {
            left_out: LeftOut::Nothing,
        },
        "a resumed session, its slow predecessor, a cleaner",
    );
}

#[test]
fn a_log_taken_over_from_the_old_session_loses_a_point() {
    without(LeftOut::LogReadAgain);
}

#[test]
fn a_base_taken_over_unchecked_loses_a_point() {
    without(LeftOut::BaseCheckedAgain);
}

#[test]
fn an_old_session_that_is_not_aborted_makes_a_second_point() {
    without(LeftOut::OldIsAborted);
}

#[test]
fn an_abort_that_does_not_read_what_was_first_makes_a_second_point() {
    without(LeftOut::AbortIsReadBack);
}

#[test]
fn aborting_the_old_session_first_lets_go_of_what_it_sent() {
    without(LeftOut::NewBeforeAbort);
}

#[test]
fn packs_of_a_resumed_session_that_are_candidates_are_sent_again() {
    without(LeftOut::ResumedPacksAreNoCandidates);
}

#[test]
fn using_again_what_is_not_looked_for_loses_a_point() {
    without(LeftOut::SentIsLookedFor);
}
