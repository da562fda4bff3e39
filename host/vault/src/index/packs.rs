//! A set of packs, or of pieces of the index, as ranges of their numbers: a session's are numbered without gaps, so what was
//! written together takes one range however much it was.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::ids::{MachineNumber, SessionNumber};
use crate::object::PackKey;

/// Machine, session, and the numbers as sorted ranges `[start, end)` that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PackSet {
    machines: BTreeMap<u32, BTreeMap<u32, Vec<(u32, u32)>>>,
}

impl PackSet {
    pub(crate) fn contains(&self, key: &PackKey) -> bool {
        let sessions = self.machines.get(&key.machine.0);
        let ranges = sessions.and_then(|sessions| sessions.get(&key.session.0));
        ranges.is_some_and(|ranges| {
            let at = ranges.partition_point(|(_, end)| *end <= key.number);
            ranges.get(at).is_some_and(|(start, _)| *start <= key.number)
        })
    }

    pub(crate) fn insert(&mut self, key: PackKey) {
        // The last number there is belongs to nothing: a writer does not come so far.
        let Some(after) = key.number.checked_add(1) else { return };
        let sessions = self.machines.entry(key.machine.0).or_default();
        let ranges = sessions.entry(key.session.0).or_default();
        let at = ranges.partition_point(|(_, end)| *end < key.number);
        match ranges.get(at).copied() {
            Some((start, end)) if start <= key.number && key.number < end => {}
            Some((_, end)) if end == key.number => {
                ranges[at].1 = after;
                if ranges.get(at + 1).is_some_and(|(start, _)| *start == after) {
                    ranges[at].1 = ranges.remove(at + 1).1;
                }
            }
            Some((start, _)) if start == after => ranges[at].0 = key.number,
            _ => ranges.insert(at, (key.number, after)),
        }
    }

    /// How many ranges it takes, which is what it costs.
    pub(crate) fn ranges(&self) -> usize {
        self.machines.values().flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    pub(crate) fn len(&self) -> u64 {
        let ranges = self.machines.values().flat_map(BTreeMap::values).flatten();
        ranges.map(|(start, end)| u64::from(end - start)).sum()
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PackKey> + '_ {
        self.machines.iter().flat_map(|(machine, sessions)| {
            sessions.iter().flat_map(|(session, ranges)| {
                let numbers = ranges.iter().flat_map(|(start, end)| Range {
                    start: *start,
                    end: *end,
                });
                numbers.map(|number| PackKey {
                    machine: MachineNumber(*machine),
                    session: SessionNumber(*session),
                    number,
                })
            })
        })
    }
}

impl Extend<PackKey> for PackSet {
    fn extend<I: IntoIterator<Item = PackKey>>(&mut self, keys: I) {
        for key in keys {
            self.insert(key);
        }
    }
}

impl FromIterator<PackKey> for PackSet {
    fn from_iter<I: IntoIterator<Item = PackKey>>(keys: I) -> Self {
        let mut set = Self::default();
        set.extend(keys);
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key((machine, session, number): (u32, u32, u32)) -> PackKey {
        PackKey {
            machine: MachineNumber(machine),
            session: SessionNumber(session),
            number,
        }
    }

    proptest! {
        #[test]
        fn a_set_of_packs_is_a_set(keys in proptest::collection::vec((0u32..3, 0u32..3, 0u32..40), 0..120)) {
            let set: PackSet = keys.iter().copied().map(key).collect();
            let model: BTreeSet<PackKey> = keys.into_iter().map(key).collect();
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.len(), model.len() as u64);
            for machine in 0..3 {
                for number in 0..41 {
                    let key = key((machine, 1, number));
                    prop_assert_eq!(set.contains(&key), model.contains(&key));
                }
            }
            let read: PackSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
            prop_assert_eq!(read, set);
        }
    }

    #[test]
    fn a_whole_session_is_one_range() {
        let set: PackSet = (0..100_000).rev().map(|number| key((1, 7, number))).collect();
        assert_eq!((set.ranges(), set.len()), (1, 100_000));
    }
}
