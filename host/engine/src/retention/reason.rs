//! Why a point stays or goes, for people and for programs.

use std::fmt;

use coffre_vault::SessionNumber;

use crate::machine::Consistency;

/// A word of a policy's `keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Last,
    Within,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Last => "last",
            Self::Within => "within",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// One reason for a point to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// A rule of the policy chose it for a bucket: `daily 2026-11-23`, `weekly 2026-W48`, `last 2 of 3`.
    Rule {
        rule: Rule,
        bucket: String,
    },
    /// The policy has no `keep`, so all points stay.
    NoKeep,
    /// The newest good point of a machine goes only by a newer one.
    NewestGood,
    /// The newest point of a machine, though it is not a good one.
    Newest,
    Pinned(Option<String>),
    /// It claims a time that has not come yet, so no rule can judge it.
    Future,
    /// It does not say when it was taken.
    NoTime,
    /// A record of what became of it cannot be read.
    FateUnknown,
}

impl KeepReason {
    /// For programs.
    pub fn code(&self) -> String {
        match self {
            Self::Rule { rule, .. } => rule.to_string(),
            Self::NoKeep => "no-keep".to_owned(),
            Self::NewestGood => "newest-good".to_owned(),
            Self::Newest => "newest".to_owned(),
            Self::Pinned(_) => "pinned".to_owned(),
            Self::Future => "future".to_owned(),
            Self::NoTime => "no-time".to_owned(),
            Self::FateUnknown => "fate-unknown".to_owned(),
        }
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { rule, bucket } => write!(out, "{rule} {bucket}"),
            Self::NoKeep => out.write_str("no `keep`: all stay"),
            Self::NewestGood => out.write_str("newest good one"),
            Self::Newest => out.write_str("newest"),
            Self::Pinned(None) => out.write_str("pinned"),
            Self::Pinned(Some(reason)) => write!(out, "pinned: {reason}"),
            Self::Future => out.write_str("taken in the future"),
            Self::NoTime => out.write_str("does not say when it was taken"),
            Self::FateUnknown => out.write_str("what became of it cannot be read"),
        }
    }
}

/// Why a point goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForgetReason {
    /// Another point stands for its bucket.
    Superseded {
        by: SessionNumber,
        rule: Rule,
        bucket: String,
    },
    /// It would stay if it were worth what the policy accepts.
    Lesser { reached: Consistency, accept: Consistency },
    /// It would stay if nothing of it were damaged.
    Damaged,
    /// All that the rules keep is newer.
    OutOfReach,
}

impl ForgetReason {
    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Superseded { .. } => "superseded",
            Self::Lesser { .. } => "lesser",
            Self::Damaged => "damaged",
            Self::OutOfReach => "out-of-reach",
        }
    }
}

impl fmt::Display for ForgetReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded { by, rule, bucket } => write!(out, "{by} is the one for {rule} {bucket}"),
            Self::Lesser { reached, accept } => write!(out, "{reached} is less than the policy accepts ({accept})"),
            Self::Damaged => out.write_str("it is damaged"),
            Self::OutOfReach => out.write_str("older than all that the rules keep"),
        }
    }
}
