//! What became of due times.

use jiff::Timestamp;

use super::Plan;

/// How one or several due times of a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub machine: String,
    /// The first of them, and the last one: the same where it is one.
    pub first: Timestamp,
    pub last: Timestamp,
    pub count: u64,
    /// Jobs that were begun for it.
    pub attempts: u32,
    pub fate: Fate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// By what its last attempt said.
    Failed(String),
    Cancelled,
    /// Due again before a job could begin: nothing ran, or there was no place.
    Missed,
    /// Due while the machine's earlier job still ran.
    Overtaken,
}

impl Account {
    pub(super) fn one(machine: &str, due: Timestamp, attempts: u32, fate: Fate) -> Self {
        Self {
            machine: machine.to_owned(),
            first: due,
            last: due,
            count: 1,
            attempts,
            fate,
        }
    }
}

/// The due times after `known` and before `newest`, which will have no job of their own: first those during the machine's
/// last job, then the others.
pub(super) fn missed(
    machine: &str,
    plan: &Plan,
    known: Timestamp,
    newest: Timestamp,
    ran_until: Option<Timestamp>,
) -> impl Iterator<Item = Account> + use<> {
    let mut during: Option<Account> = None;
    let mut after: Option<Account> = None;
    let dues = std::iter::successors(plan.schedule.next_after(known), |due| plan.schedule.next_after(*due));
    for due in dues.take_while(|due| *due < newest) {
        let (account, fate) = match ran_until {
            Some(until) if due <= until => (&mut during, Fate::Overtaken),
            _ => (&mut after, Fate::Missed),
        };
        let account = account.get_or_insert_with(|| Account {
            count: 0,
            ..Account::one(machine, due, 0, fate)
        });
        account.last = due;
        account.count += 1;
    }
    during.into_iter().chain(after)
}
