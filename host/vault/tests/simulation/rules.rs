//! The rules of the protocol, left out one by one: a simulation that cannot fail shows nothing.
//!
//! What is noticed is a point that does not restore, or a pack that is gone although a session relies on it that is not over: had
//! it gone a moment later, the session's point would not restore. With the rule the same seed is well, so it is the rule that
//! keeps it.

use coffre_vault::LeftOut;

use crate::{run, tell};

/// Seeds that are searched before the simulation is called blind to a rule. Few, since the search is for small changes alone:
/// after a larger one `survey` finds a seed, in a few hundred at most.
const SEARCHED: u64 = 50;

/// Leaves a rule out and sees that a seed notices. The search begins at one that is known to; a change to the protocol makes
/// other stories, and then another one does.
fn notices(rule: LeftOut, known_seed: u64) {
    for seed in known_seed..known_seed + SEARCHED {
        if let Some(wrong) = run::run(seed, Some(rule)).wrong {
            tell(&format!("simulation without {rule:?}, seed {seed}: {wrong}"));
            let kept = run::run(seed, None);
            assert_eq!(kept.wrong, None, "seed {seed} with every rule");
            return;
        }
    }
    panic!("{SEARCHED} seeds without {rule:?}, and nothing is wrong");
}

#[test]
fn a_log_that_is_read_before_the_session_exists_is_noticed() {
    notices(LeftOut::LogAfterSession, 264);
}

#[test]
fn relying_on_condemned_packs_is_noticed() {
    notices(LeftOut::CondemnedPacks, 0);
}

#[test]
fn inheriting_from_a_base_that_is_not_pinned_is_noticed() {
    notices(LeftOut::PinnedBases, 264);
}

#[test]
fn deleting_before_all_are_decided_that_may_rely_on_it_is_noticed() {
    notices(LeftOut::Drain, 55);
}

#[test]
fn waiting_for_those_of_before_the_condemn_is_noticed() {
    notices(LeftOut::WaitsAfterCondemn, 182);
}

#[test]
fn taking_a_session_for_over_without_a_fence_is_noticed() {
    notices(LeftOut::Fence, 6);
}

#[test]
fn deleting_what_lives_nowhere_else_is_noticed() {
    notices(LeftOut::MovedBeforeDeleted, 1);
}
