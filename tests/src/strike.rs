//! What a program does to its store, one operation after the other, and the one at which it is struck.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::place::Ran;

const SIGKILL: i32 = 9;

/// One request to a server, or one act on a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// `GET`, `HEAD`, `LIST`, `PUT` (if absent), `REPLACE` (a put of any other kind) or `DELETE` of a server; of a folder what tests/preload/store.c says.
    pub verb: String,
    /// Below the vault: `points/00000001/00000002`, or of a listing its prefix.
    pub object: String,
}

impl Operation {
    /// The part of the vault that it is about.
    pub fn part(&self) -> &str {
        self.object.split('/').next().unwrap_or_default()
    }
}

/// How the program, or what it asked for, is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL before the operation is done.
    KillBefore,
    /// SIGKILL when half of its bytes have gone.
    KillMidway,
    /// SIGKILL when it is done, before the program comes to know it.
    KillAfter,
    /// The operation fails with this number, and so do all that match after it. For folders.
    Fail(i32),
    /// A server does it and answers 503.
    UnavailableAfter,
    /// A server answers 409 and has done nothing.
    ConflictBefore,
    /// A server does it, and the connection breaks before its answer.
    CutAfter,
}

impl Blow {
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillMidway | Self::KillAfter)
    }
}

/// The `nth` operation, from one on, of those with this verb (`*` for all) whose object begins like this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    pub blow: Blow,
    pub nth: u32,
    pub verb: String,
    pub object: String,
}

impl Strike {
    pub fn new(blow: Blow, nth: u32, verb: &str, object: &str) -> Self {
        Self {
            blow,
            nth,
            verb: verb.to_owned(),
            object: object.to_owned(),
        }
    }

    pub fn concerns(&self, operation: &Operation) -> bool {
        (self.verb == "*" || self.verb == operation.verb) && operation.object.starts_with(&self.object)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} {} no. {}", self.blow, self.verb, self.object, self.nth)
    }
}

/// What a run did and how it ended.
#[derive(Debug)]
pub struct Struck {
    pub ran: Ran,
    pub killed: bool,
    /// In the order in which they reached the store.
    pub operations: Vec<Operation>,
    /// How many blows fell.
    pub struck: u32,
}

impl Struck {
    pub(crate) fn of(output: Output, operations: Vec<Operation>, struck: u32) -> Self {
        Self {
            killed: output.status.signal() == Some(SIGKILL),
            ran: Ran::from(output),
            operations,
            struck,
        }
    }
}

/// Of every kind of operation, which is a verb and a part of the vault, the first and the last one.
pub fn ends_of_each_kind(operations: &[Operation], blows: impl Fn(&Operation) -> &'static [Blow]) -> Vec<Strike> {
    let mut kinds: BTreeMap<(&str, &str), (&Operation, u32)> = BTreeMap::new();
    for operation in operations {
        let kind = (operation.verb.as_str(), operation.part());
        kinds.entry(kind).or_insert((operation, 0)).1 += 1;
    }
    let mut strikes = Vec::new();
    for ((verb, part), (first, count)) in kinds {
        for blow in blows(first) {
            strikes.push(Strike::new(*blow, 1, verb, part));
            if count > 1 {
                strikes.push(Strike::new(*blow, count, verb, part));
            }
        }
    }
    strikes
}

/// Every operation for which there are blows, by its number among those of its kind.
pub fn each(operations: &[Operation], blows: impl Fn(&Operation) -> &'static [Blow]) -> Vec<Strike> {
    let mut seen: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut strikes = Vec::new();
    for operation in operations {
        let number = seen.entry((operation.verb.as_str(), operation.part())).or_default();
        *number += 1;
        let strike = |blow: &Blow| Strike::new(*blow, *number, &operation.verb, operation.part());
        strikes.extend(blows(operation).iter().map(strike));
    }
    strikes
}
