//! What the writer and the cleaners do next.

use super::state::*;
use super::{LeftOut, Repacking};
use crate::checker::{Step, members, step};

impl Repacking {
    fn without(&self, rule: LeftOut) -> bool {
        self.left_out == rule
    }

    /// What the pieces list that committed sessions count: they are found whatever a listing hides.
    pub(super) fn counted(&self, state: &State) -> u8 {
        let forgets = self.without(LeftOut::PurgedPointsCountTheirPieces) && state.point_is_purged;
        state.counted(if forgets {
            state.pieces & !OLD_PIECE
        } else {
            state.pieces
        })
    }

    pub(super) fn writer_acts(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        let mut act = |does, with, at, change: &dyn Fn(&mut State)| {
            let mut next = State { writer: at, ..*state };
            change(&mut next);
            steps.push((step("W", does, with), next));
        };
        match state.writer {
            WriterAt::Begin => act("begins its session", 0, WriterAt::ReadLog, &|_| {}),
            WriterAt::ReadLog => {
                let condemned = state.condemned;
                act(
                    "reads that condemned are:",
                    condemned,
                    WriterAt::Choose { condemned },
                    &|_| {},
                );
            }
            WriterAt::Choose { condemned } => {
                for pack in members(state.listed() & !condemned & !self.damaged) {
                    let pack = 1 << pack;
                    act("deduplicates against", pack, WriterAt::Look { pack }, &|_| {});
                }
            }
            WriterAt::Look { pack } if state.packs & pack != 0 => {
                act("sees that it is there:", pack, WriterAt::Commit, &|next| {
                    if self.counted(state) & pack == 0 && !self.without(LeftOut::WriterReliesOnCountedPieces) {
                        next.writer_lists = pack;
                    }
                });
            }
            WriterAt::Look { pack } => act("sees that it is gone, and fails:", pack, WriterAt::Over, &|_| {}),
            WriterAt::Commit if state.written == Outcome::Undecided => {
                act("commits a point that needs the chunk", 0, WriterAt::Over, &|next| {
                    next.written = Outcome::Committed;
                });
            }
            WriterAt::Commit => act("finds itself aborted", 0, WriterAt::Over, &|_| {}),
            WriterAt::Over => {}
        }
    }

    pub(super) fn cleaner_acts(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        if cleaner.at == CleanerAt::Decide {
            self.decide(state, index, steps);
        }
        let mut act = |does, with, at, change: &dyn Fn(&mut State, &mut Cleaner)| {
            let (mut next, mut changed) = (*state, Cleaner { at, ..cleaner });
            change(&mut next, &mut changed);
            if at == CleanerAt::Begin {
                changed.begin_again();
            }
            next.cleaners[index] = changed;
            steps.push((step(CLEANERS[index], does, with), next));
        };
        let log_first = self.without(LeftOut::LogReadAfterCondemn);
        let index_first = self.without(LeftOut::IndexReadAfterPoints);
        match cleaner.at {
            CleanerAt::Begin if log_first => act("begins a run", 0, CleanerAt::ReadLog, &|_, _| {}),
            CleanerAt::Begin if index_first => act("reads the index", 0, CleanerAt::Condemn, &|_, cleaner| {
                cleaner.index |= self.counted(state);
            }),
            CleanerAt::Begin | CleanerAt::Condemn => {
                let then = if log_first {
                    CleanerAt::Sessions
                } else {
                    CleanerAt::ReadLog
                };
                act("condemns nothing", 0, then, &|_, _| {});
                for pack in members(state.packs & !state.condemned) {
                    act("condemns", 1 << pack, then, &|next, cleaner| {
                        next.condemned |= 1 << pack;
                        if log_first || self.without(LeftOut::CopyIsNotCondemned) {
                            cleaner.doomed |= 1 << pack;
                        }
                    });
                }
            }
            CleanerAt::ReadLog => {
                let then = if log_first {
                    CleanerAt::Condemn
                } else {
                    CleanerAt::Sessions
                };
                act("reads that condemned are:", state.condemned, then, &|_, cleaner| {
                    if !self.without(LeftOut::CopyIsNotCondemned) {
                        cleaner.doomed = state.condemned;
                    }
                });
            }
            CleanerAt::Sessions if cleaner.doomed == 0 => act("is done", 0, CleanerAt::Begin, &|_, _| {}),
            CleanerAt::Sessions if !self.with_writer => {
                // There is nobody to wait for, and the point stays.
                let then = if index_first {
                    CleanerAt::Decide
                } else {
                    CleanerAt::Index
                };
                act("marks the chunk as live", 0, then, &|_, cleaner| cleaner.live = true);
            }
            CleanerAt::Sessions => act("reads the undecided sessions", 0, CleanerAt::Drain, &|_, cleaner| {
                cleaner.waits_for_writer = state.writer_is_undecided();
            }),
            CleanerAt::Drain => {
                if !cleaner.waits_for_writer || state.written != Outcome::Undecided {
                    act("waits for nobody", 0, CleanerAt::Mark, &|_, cleaner| {
                        cleaner.waits_for_writer = false
                    });
                }
            }
            CleanerAt::Mark => {
                let does = if state.live() {
                    "marks the chunk as live"
                } else {
                    "finds the chunk dead"
                };
                let then = if index_first {
                    CleanerAt::Decide
                } else {
                    CleanerAt::Index
                };
                act(does, 0, then, &|_, cleaner| cleaner.live = state.live());
            }
            CleanerAt::Index => {
                let (counted, listed) = (self.counted(state), state.listed());
                act(
                    "reads the pieces that points count:",
                    counted,
                    CleanerAt::Decide,
                    &|_, cleaner| {
                        cleaner.index |= counted;
                    },
                );
                if listed & !counted & !cleaner.index != 0 {
                    act("reads all pieces:", listed, CleanerAt::Decide, &|_, cleaner| {
                        cleaner.index |= listed
                    });
                }
            }
            CleanerAt::Decide => {}
            CleanerAt::Piece => {
                let late = self.without(LeftOut::DeleteAfterCommit);
                let then = if late {
                    CleanerAt::DeletePieces
                } else {
                    CleanerAt::Commit
                };
                act("puts a piece that lists", cleaner.lists, then, &|next, cleaner| {
                    next.pieces |= own_piece(index);
                    next.listed[index] = cleaner.lists;
                    cleaner.lists = 0;
                });
            }
            CleanerAt::Commit if state.maintenance[index] == Outcome::Undecided => {
                let late = self.without(LeftOut::DeleteAfterCommit);
                let then = if late {
                    CleanerAt::Begin
                } else {
                    CleanerAt::DeletePieces
                };
                act("commits its maintenance", 0, then, &|next, _| {
                    next.maintenance[index] = Outcome::Committed
                });
            }
            CleanerAt::Commit => act("finds itself aborted", 0, CleanerAt::Begin, &|_, _| {}),
            CleanerAt::DeletePieces if cleaner.replaces != 0 => {
                act(
                    "deletes the pieces that it replaced",
                    0,
                    CleanerAt::DeletePacks,
                    &|next, cleaner| {
                        next.pieces &= !cleaner.replaces;
                        cleaner.replaces = 0;
                    },
                );
            }
            CleanerAt::DeletePieces | CleanerAt::DeletePacks => {
                if let Some(pack) = members(cleaner.doomed & state.packs).next() {
                    act("deletes", 1 << pack, CleanerAt::DeletePacks, &|next, _| {
                        next.packs &= !(1 << pack)
                    });
                } else {
                    let late = self.without(LeftOut::DeleteAfterCommit) && state.pieces & own_piece(index) != 0;
                    let then = if late { CleanerAt::Commit } else { CleanerAt::Begin };
                    let gone = state.condemned & !state.packs;
                    act("takes out of the log what is gone:", gone, then, &|next, cleaner| {
                        next.condemned &= !gone;
                        cleaner.doomed = 0;
                    });
                }
            }
        }
        self.killed(state, index, steps);
    }

    fn killed(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        if state.cleaners[index].at != CleanerAt::Begin {
            let mut next = *state;
            let cleaner = &mut next.cleaners[index];
            cleaner.session_is_lost |= state.maintenance[index] == Outcome::Undecided;
            cleaner.begin_again();
            steps.push((step(CLEANERS[index], "is killed and starts again", 0), next));
        }
    }

    /// Which copy lets the doomed packs go, or that a copy must be made, and what must be listed again.
    fn decide(&self, state: &State, index: usize, steps: &mut Vec<(Step, State)>) {
        let cleaner = state.cleaners[index];
        let own = own_pack(index);
        let has_session = state.maintenance[index] == Outcome::Undecided && !cleaner.session_is_lost;
        let seen = |piece: &u8| {
            let decided =
                *piece == OLD_PIECE || state.maintenance[piece.trailing_zeros() as usize] != Outcome::Undecided;
            decided && state.piece(*piece) & !cleaner.index == 0 && state.piece(*piece) & cleaner.doomed != 0
        };
        let replaces: u8 = members(state.pieces).map(|bit| 1 << bit).filter(seen).sum();
        let survivors = members(replaces).fold(0, |packs, bit| packs | state.piece(1 << bit)) & !cleaner.doomed;
        let survivors = if self.without(LeftOut::SurvivorsAreListedAgain) {
            0
        } else {
            survivors
        };
        let mut go_on = |does, with, packs, lists| {
            let needs_session = lists != 0 || replaces != 0;
            let mut next = State {
                packs: state.packs | packs,
                ..*state
            };
            let changed = &mut next.cleaners[index];
            (changed.replaces, changed.lists, changed.live) = (replaces, lists, false);
            changed.at = match (needs_session, has_session) {
                (false, _) => CleanerAt::DeletePieces,
                (true, true) => CleanerAt::Piece,
                (true, false) => return,
            };
            steps.push((step(CLEANERS[index], does, with), next));
        };
        let not_there = if self.without(LeftOut::CopyIsThere) {
            0
        } else {
            !state.packs
        };
        let damaged = if self.without(LeftOut::CopyIsNotQuarantined) {
            0
        } else {
            self.damaged
        };
        let copies = cleaner.index & !cleaner.doomed & !not_there & !damaged;
        if !cleaner.live || cleaner.index & cleaner.doomed == 0 {
            go_on("finds nothing live in what is doomed", 0, 0, survivors);
        } else if copies != 0 {
            for copy in members(copies) {
                let copy = 1 << copy;
                let again = copy & !self.counted(state);
                let again = if self.without(LeftOut::CopyIsListedByCountedPieces) {
                    0
                } else {
                    again
                };
                go_on("finds the chunk also in", copy, 0, survivors | again);
            }
        } else if has_session && cleaner.index & state.packs & !self.damaged != 0 {
            go_on("stores the chunk again in", own, own, survivors | own);
        }
    }
}
