//! Which recovery points a policy lets go, and the reason for every one that stays or goes. No store and no clock: what is
//! decided follows from what is given, so that a dry run and the real one cannot differ.
//!
//! Only periods that have points count: `daily = 7` is the last seven days on which there was a backup, not the last week of
//! the calendar. A host that was off for a year, or whose clock is ten years ahead, thus loses nothing by the passing of
//! time; points go only because newer ones came.
//!
//! A *good* point is worth what the policy accepts and is not known to be damaged. Lesser ones fill a period that has no good
//! one, but never take the place of a good one, neither in its period nor by using up the number of periods.

mod bucket;
mod reason;
#[cfg(test)]
mod tests;

use coffre_vault::{Fate, Point, SessionNumber};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::{Keep, PolicyConfig};
use crate::machine::Consistency;

use bucket::Stays;
pub use reason::{ForgetReason, KeepReason, Rule};

/// A point taken later than this from now has a time that cannot be right. An hour is more than hosts with any care for their
/// clocks differ.
const FUTURE_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// What a policy says of keeping, and when and where it is asked.
#[derive(Clone, Debug)]
pub struct Rules {
    /// None: everything stays.
    pub keep: Option<Keep>,
    /// A point that is worth less is not a good one.
    pub accept: Consistency,
    /// Whose days, weeks and months.
    pub zone: TimeZone,
    pub now: Timestamp,
}

impl Rules {
    pub fn of(policy: &PolicyConfig, now: Timestamp) -> Self {
        Self {
            keep: policy.keep,
            accept: policy.accept,
            zone: policy.time_zone(),
            now,
        }
    }
}

/// What is known of a point when it is decided upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub number: SessionNumber,
    /// The instant of its snapshot.
    pub taken_at: Option<Timestamp>,
    pub consistency: Consistency,
    pub fate: Fate,
    /// Somebody pinned it, perhaps with a reason.
    pub pinned: Option<Option<String>>,
    /// Something of it is known to be damaged.
    pub damaged: bool,
}

impl Candidate {
    pub fn of(point: &Point) -> Self {
        Self {
            number: point.number,
            taken_at: point.taken_at,
            consistency: point.consistency.reached,
            fate: point.fate,
            pinned: point.pin.as_ref().map(|pin| pin.reason.clone()),
            damaged: false,
        }
    }

    fn is_good(&self, accept: Consistency) -> bool {
        self.consistency >= accept && !self.damaged
    }
}

/// What is to become of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Never without a reason.
    Keep(Vec<KeepReason>),
    Forget(ForgetReason),
    /// It was forgotten or purged before.
    Gone,
}

/// What is to become of one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub point: SessionNumber,
    pub decision: Decision,
}

/// The points of a machine that nobody takes by mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Whatever it is worth.
    pub point: Option<SessionNumber>,
    pub good: Option<SessionNumber>,
}

impl Newest {
    /// By number, which is the order in which points came to be whatever clocks said.
    pub fn of(points: &[Candidate], accept: Consistency) -> Self {
        let newest = |among: &dyn Fn(&Candidate) -> bool| {
            let kept = points.iter().filter(|point| point.fate == Fate::Kept && among(point));
            kept.map(|point| point.number).max()
        };
        Self {
            point: newest(&|_| true),
            good: newest(&|point| point.is_good(accept)),
        }
    }

    /// The one that a machine must not be without: the newest good one, or just the newest where none is good.
    pub fn indispensable(&self) -> Option<SessionNumber> {
        self.good.or(self.point)
    }
}

/// Decides upon all points of a machine; the verdicts come in the order of their numbers.
pub fn decide(points: &[Candidate], rules: &Rules) -> Vec<Verdict> {
    let newest = Newest::of(points, rules.accept);
    let mut points: Vec<&Candidate> = points.iter().collect();
    points.sort_by_key(|point| point.number);
    let stays = rules.keep.map(|keep| Stays::new(&points, &keep, rules));
    let verdicts = points.into_iter().map(|point| Verdict {
        point: point.number,
        decision: decide_one(point, &newest, stays.as_ref(), rules),
    });
    verdicts.collect()
}

fn decide_one(point: &Candidate, newest: &Newest, stays: Option<&Stays>, rules: &Rules) -> Decision {
    let mut reasons = Vec::new();
    match point.fate {
        Fate::Forgotten | Fate::Purged => return Decision::Gone,
        Fate::Unknown => reasons.push(KeepReason::FateUnknown),
        Fate::Kept => {}
    }
    if let Some(reason) = &point.pinned {
        reasons.push(KeepReason::Pinned(reason.clone()));
    }
    match stays {
        None => reasons.push(KeepReason::NoKeep),
        Some(stays) => reasons.extend(stays.reasons(point.number)),
    }
    match point.taken_at {
        None => reasons.push(KeepReason::NoTime),
        Some(taken_at) if taken_at > latest(rules.now) => reasons.push(KeepReason::Future),
        Some(_) => {}
    }
    if newest.good == Some(point.number) {
        reasons.push(KeepReason::NewestGood);
    } else if newest.point == Some(point.number) {
        reasons.push(KeepReason::Newest);
    }
    match stays {
        Some(stays) if reasons.is_empty() => Decision::Forget(stays.why_not(point, rules)),
        _ => Decision::Keep(reasons),
    }
}

/// The last instant that a snapshot may claim.
fn latest(now: Timestamp) -> Timestamp {
    now.checked_add(FUTURE_TOLERANCE).unwrap_or(Timestamp::MAX)
}
