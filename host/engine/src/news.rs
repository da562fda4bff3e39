//! What is worth telling somebody who does not look: what went wrong with a machine since they were last told, and that it is
//! well again.
//!
//! News is the difference between what `status` finds and what a channel was told. What a channel was told stands in the book
//! once it was delivered, so that a restart repeats nothing, and what could not be delivered is tried again with all that has come
//! since. A trouble is told once, however often a run fails for it; when a machine is safe again, that is told once, too.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::status::{Level, MachineStatus};

/// What a channel may be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// A backup failed or died, or no attempt is left.
    Failed,
    /// A due time went by without a point.
    Missed,
    /// The newest good point is worth less than is wanted.
    Downgraded,
    /// There is no good point that is new enough.
    NotSafe,
    /// All of this is over.
    Recovered,
}

impl Topic {
    pub const ALL: [Self; 5] = [
        Self::Failed,
        Self::Missed,
        Self::Downgraded,
        Self::NotSafe,
        Self::Recovered,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Missed => "missed",
            Self::Downgraded => "downgraded",
            Self::NotSafe => "not-safe",
            Self::Recovered => "recovered",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct News {
    pub machine: String,
    pub topic: Topic,
    pub level: Level,
    pub text: String,
    pub hint: Option<String>,
}

/// The troubles of each machine that a channel was told of: topics and codes of reasons.
pub type Told = BTreeMap<String, BTreeSet<(String, String)>>;

/// What a channel that wants `topics` is to be told, and what it will have been told then.
pub fn news(machines: &[MachineStatus], told: &Told, topics: &[Topic]) -> (Vec<News>, Told) {
    let mut found = Vec::new();
    let mut now_told = Told::new();
    let nothing = BTreeSet::new();
    for machine in machines {
        let before = told.get(&machine.machine).unwrap_or(&nothing);
        let mut after = BTreeSet::new();
        for reason in &machine.reasons {
            let topic = match (reason.code, reason.level) {
                (_, Level::NotSafe) => Topic::NotSafe,
                ("failed" | "died" | "gave-up", _) => Topic::Failed,
                ("missed" | "late", _) => Topic::Missed,
                ("downgraded", _) => Topic::Downgraded,
                // That nobody knows is no event, and age without a schedule is not safe in the end.
                _ => continue,
            };
            let key = (topic.as_str().to_owned(), reason.code.to_owned());
            if topics.contains(&topic) && !before.contains(&key) {
                found.push(News {
                    machine: machine.machine.clone(),
                    topic,
                    level: reason.level,
                    text: reason.text.clone(),
                    hint: reason.hint.clone(),
                });
            }
            if topics.contains(&topic) {
                after.insert(key);
            }
        }
        let over = after.is_empty() && machine.level == Level::Safe;
        if over && !before.is_empty() && topics.contains(&Topic::Recovered) {
            found.push(recovered(machine));
        }
        // A trouble that is over while another goes on stays told: the recovery is one.
        if !over {
            after.extend(before.iter().cloned());
        }
        if !after.is_empty() {
            now_told.insert(machine.machine.clone(), after);
        }
    }
    (found, now_told)
}

fn recovered(machine: &MachineStatus) -> News {
    let text = match &machine.last_good {
        Some(good) => format!("safe again, by point {} ({}-consistent)", good.point, good.consistency),
        None => "safe again".to_owned(),
    };
    News {
        machine: machine.machine.clone(),
        topic: Topic::Recovered,
        level: machine.level,
        text,
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Consistency;
    use crate::status::Reason;

    fn machine(level: Level, reasons: &[(&'static str, Level)]) -> MachineStatus {
        MachineStatus {
            machine: "web01".to_owned(),
            vault: "main".to_owned(),
            policy: None,
            level,
            reasons: (reasons.iter())
                .map(|(code, level)| Reason {
                    level: *level,
                    code,
                    text: format!("it is {code}"),
                    hint: None,
                })
                .collect(),
            last_good: None,
            consistency_wanted: Consistency::Crash,
            next_due: None,
            turn: None,
            running: None,
            last_job: None,
            points: 0,
            stored_bytes: 0,
            points_read_at: None,
        }
    }

    /// What a channel hears, step by step.
    fn heard(topics: &[Topic], steps: &[MachineStatus]) -> Vec<String> {
        let mut told = Told::new();
        let mut lines = Vec::new();
        for step in steps {
            let (found, after) = news(std::slice::from_ref(step), &told, topics);
            lines.push(found.iter().map(|one| one.topic.as_str()).collect::<Vec<_>>().join(" "));
            told = after;
            // Nobody is told twice.
            assert_eq!(
                news(std::slice::from_ref(step), &told, topics),
                (Vec::new(), told.clone())
            );
        }
        lines
    }

    #[test]
    fn a_trouble_is_told_once_and_its_end_once() {
        let failed = || machine(Level::Warning, &[("failed", Level::Warning)]);
        let worse = machine(Level::NotSafe, &[("late", Level::NotSafe), ("failed", Level::Warning)]);
        let less = machine(Level::Warning, &[("downgraded", Level::Warning)]);
        let safe = || machine(Level::Safe, &[]);
        let steps = [
            safe(),
            failed(),
            failed(),
            worse,
            less,
            failed(),
            safe(),
            safe(),
            failed(),
        ];
        let heard = heard(&Topic::ALL, &steps);
        assert_eq!(
            heard,
            [
                "",
                "failed",
                "",
                "not-safe",
                "downgraded",
                "",
                "recovered",
                "",
                "failed"
            ]
        );
    }

    #[test]
    fn a_channel_hears_what_it_asked_for() {
        let failed = || machine(Level::Warning, &[("failed", Level::Warning)]);
        let missed = machine(Level::Warning, &[("missed", Level::Warning)]);
        let steps = [failed(), missed, machine(Level::Safe, &[])];
        assert_eq!(heard(&[Topic::Missed], &steps), ["", "missed", ""]);
        // Who was told of no trouble hears of no recovery.
        assert_eq!(heard(&[Topic::NotSafe, Topic::Recovered], &steps), ["", "", ""]);
    }

    #[test]
    fn what_nobody_knows_is_no_news() {
        let unknown = machine(Level::Unknown, &[("not-known", Level::Unknown)]);
        assert_eq!(heard(&Topic::ALL, &[unknown]), [""]);
    }
}
