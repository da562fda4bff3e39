//! Cleaners that copy what is live out of condemned packs, and take packs away because a copy lies in another.
//!
//! One chunk lies in two packs, P1 and P2, that one piece of the index lists. A point needs it until it is purged; a writer
//! may deduplicate against it at any time. Each of two cleaners condemns any pack, one in each run, and once has a
//! maintenance session in which it may store a copy in a pack of its own, R1 or R2. Whatever a listing may hide, it hides:
//! the pieces that no committed session counts.

mod acts;
mod state;

use crate::checker::{Model, Step, Witness, breaks, holds, step};
use state::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    /// The log that says which packs a copy may not lie in is read after one's own condemn.
    LogReadAfterCondemn,
    /// A copy in a condemned pack is none.
    CopyIsNotCondemned,
    /// A copy in a quarantined pack is none.
    CopyIsNotQuarantined,
    /// A copy is one only if its pack is there.
    CopyIsThere,
    /// Nothing is deleted before the maintenance session is committed.
    DeleteAfterCommit,
    /// What a piece lists beside the doomed packs is listed again before the piece goes.
    SurvivorsAreListedAgain,
    /// A copy that only uncounted pieces list is listed again before anything relies on it.
    CopyIsListedByCountedPieces,
    /// A writer lists again what only uncounted pieces list.
    WriterReliesOnCountedPieces,
    /// The pieces of a session stay counted when its point is purged.
    PurgedPointsCountTheirPieces,
    /// The pieces that points count are read after the points.
    IndexReadAfterPoints,
}

struct Repacking {
    left_out: LeftOut,
    /// Packs that are quarantined, since their bytes are not what they were.
    damaged: u8,
    with_writer: bool,
    /// Only C1 can store chunks and list packs again. It makes room for a writer in the model.
    with_one_maintenance: bool,
}

impl Model for Repacking {
    type State = State;

    const NAMES: &'static [&'static str] = &["P1", "P2", "R1", "R2"];
    const MUST_HAPPEN: &'static [Witness<State>] = &[
        ("both packs are deleted, the chunk is kept", |state| {
            state.packs & (P1 | P2) == 0 && !state.point_is_purged
        }),
        ("a copy of a cleaner is the only one", |state| state.packs == 0b0100),
        ("a cleaner is fenced", |state| state.maintenance[0] == Outcome::Aborted),
    ];

    fn start(&self) -> State {
        let mut cleaners = [IDLE; 2];
        cleaners[1].session_is_lost = self.with_one_maintenance;
        State {
            point_is_purged: false,
            packs: P1 | P2,
            condemned: 0,
            pieces: OLD_PIECE,
            listed: [0; 2],
            maintenance: [Outcome::Undecided; 2],
            writer: WriterAt::Begin,
            written: Outcome::Undecided,
            writer_lists: 0,
            cleaners,
        }
    }

    fn next(&self, state: &State, steps: &mut Vec<(Step, State)>) {
        for fenced in (0..2).filter(|cleaner| state.maintenance[*cleaner] == Outcome::Undecided) {
            let mut next = *state;
            next.maintenance[fenced] = Outcome::Aborted;
            steps.push((
                step(
                    "C",
                    ["aborts the maintenance of C1", "aborts the maintenance of C2"][fenced],
                    0,
                ),
                next,
            ));
        }
        if self.with_writer {
            steps.push((
                step("user", "has the point purged", 0),
                State {
                    point_is_purged: true,
                    ..*state
                },
            ));
            if state.writer_is_undecided() {
                let next = State {
                    written: Outcome::Aborted,
                    ..*state
                };
                steps.push((step("C", "aborts W, which has expired", 0), next));
            }
            self.writer_acts(state, steps);
        }
        for cleaner in 0..2 {
            self.cleaner_acts(state, cleaner, steps);
        }
    }

    fn representative(&self, state: State) -> State {
        if self.with_one_maintenance {
            state
        } else {
            state.min(state.with_cleaners_exchanged())
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let good = state.packs & !self.damaged;
        if state.live() && good == 0 {
            Some("the chunk is in no pack any more")
        } else if state.live() && good & self.counted(state) == 0 {
            Some("no piece that a point counts lists the chunk any more")
        } else {
            None
        }
    }
}

fn without(left_out: LeftOut) {
    breaks(
        &Repacking {
            left_out,
            damaged: 0,
            with_writer: false,
            with_one_maintenance: false,
        },
        left_out,
    );
}

#[test]
fn packs_are_rewritten_crosswise_and_the_chunk_stays() {
    holds(
        &Repacking {
            left_out: LeftOut::Nothing,
            damaged: 0,
            with_writer: false,
            with_one_maintenance: false,
        },
        "two cleaners that repack",
    );
}

#[test]
fn packs_are_rewritten_beside_a_writer_and_the_chunk_stays() {
    let model = Repacking {
        left_out: LeftOut::Nothing,
        damaged: 0,
        with_writer: true,
        with_one_maintenance: true,
    };
    holds(&model, "a writer and two cleaners that repack");
}

#[test]
fn packs_are_rewritten_beside_a_damaged_one_and_the_chunk_stays() {
    let model = Repacking {
        left_out: LeftOut::Nothing,
        damaged: P2,
        with_writer: false,
        with_one_maintenance: false,
    };
    holds(&model, "two cleaners that repack, one damaged pack");
}

#[test]
fn a_log_read_before_the_own_condemn_loses_the_chunk() {
    without(LeftOut::LogReadAfterCondemn);
}

#[test]
fn a_copy_in_a_condemned_pack_loses_the_chunk() {
    without(LeftOut::CopyIsNotCondemned);
}

#[test]
fn a_copy_in_a_quarantined_pack_loses_the_chunk() {
    let left_out = LeftOut::CopyIsNotQuarantined;
    breaks(
        &Repacking {
            left_out,
            damaged: P2,
            with_writer: false,
            with_one_maintenance: false,
        },
        left_out,
    );
}

#[test]
fn a_copy_in_a_pack_that_is_not_there_loses_the_chunk() {
    without(LeftOut::CopyIsThere);
}

#[test]
fn deleting_before_the_maintenance_is_committed_hides_the_chunk() {
    without(LeftOut::DeleteAfterCommit);
}

#[test]
fn replacing_a_piece_without_its_other_listings_hides_the_chunk() {
    without(LeftOut::SurvivorsAreListedAgain);
}

#[test]
fn relying_on_a_copy_that_no_point_counts_hides_the_chunk() {
    without(LeftOut::CopyIsListedByCountedPieces);
}

#[test]
fn an_index_read_before_the_points_loses_the_chunk() {
    without(LeftOut::IndexReadAfterPoints);
}

#[test]
fn a_writer_that_relies_on_what_no_point_counts_hides_the_chunk() {
    let left_out = LeftOut::WriterReliesOnCountedPieces;
    breaks(
        &Repacking {
            left_out,
            damaged: 0,
            with_writer: true,
            with_one_maintenance: false,
        },
        left_out,
    );
}

#[test]
fn a_purge_that_uncounts_the_pieces_of_its_session_hides_the_chunk() {
    let left_out = LeftOut::PurgedPointsCountTheirPieces;
    let model = Repacking {
        left_out,
        damaged: 0,
        with_writer: true,
        with_one_maintenance: true,
    };
    breaks(&model, left_out);
}
