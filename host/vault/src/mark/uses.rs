//! What every pack holds, and what of it lives there: 16 bytes a pack, since a vault has a pack for each few hundred chunks and
//! what is remembered of all of them at once is most of what a clean-up has in memory.
//!
//! Packs of a session are numbered without gaps, so their names are ranges; a pack's place among all of them is its number.

use crate::object::PackKey;

/// What one pack holds, and what of it lives there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackUse {
    pub(crate) chunks: u32,
    pub(crate) stored_bytes: u32,
    /// Live chunks whose canonical copy is here.
    pub(crate) live_chunks: u32,
    pub(crate) live_bytes: u32,
}

/// The names of packs, each with its place among them.
#[derive(Debug)]
pub(super) struct PackPlaces {
    /// The first of a range, and its place; the range ends where the next one's place says.
    ranges: Vec<(PackKey, u32)>,
    count: u32,
}

impl PackPlaces {
    /// Of sorted keys, each once.
    pub(super) fn new(sorted: &[PackKey]) -> Self {
        let mut ranges: Vec<(PackKey, u32)> = Vec::new();
        for (key, place) in sorted.iter().zip(0..) {
            let continues = ranges
                .last()
                .is_some_and(|(first, at)| nth(first, place - at) == Some(*key));
            if !continues {
                ranges.push((*key, place));
            }
        }
        ranges.shrink_to_fit();
        Self {
            ranges,
            count: sorted.len() as u32,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count as usize
    }

    pub(super) fn place(&self, key: &PackKey) -> Option<usize> {
        let range = self.ranges.partition_point(|(first, _)| first <= key).checked_sub(1)?;
        let (first, at) = self.ranges[range];
        let end = self.ranges.get(range + 1).map_or(self.count, |(_, at)| *at);
        let offset = key.number.wrapping_sub(first.number);
        let is_in = (first.machine, first.session) == (key.machine, key.session) && offset < end - at;
        is_in.then(|| (at + offset) as usize)
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = PackKey> + '_ {
        self.ranges.iter().enumerate().flat_map(|(range, (first, at))| {
            let end = self.ranges.get(range + 1).map_or(self.count, |(_, at)| *at);
            (0..end - at).filter_map(|offset| nth(first, offset))
        })
    }
}

fn nth(first: &PackKey, offset: u32) -> Option<PackKey> {
    let number = first.number.checked_add(offset)?;
    Some(PackKey { number, ..*first })
}

/// What every pack that the index lists holds.
#[derive(Debug)]
pub(crate) struct PackUses {
    packs: PackPlaces,
    uses: Vec<PackUse>,
}

impl PackUses {
    pub(super) fn new(packs: PackPlaces) -> Self {
        Self {
            uses: vec![PackUse::default(); packs.len()],
            packs,
        }
    }

    pub(super) fn place(&self, pack: &PackKey) -> Option<usize> {
        self.packs.place(pack)
    }

    pub(super) fn at(&mut self, place: usize) -> &mut PackUse {
        &mut self.uses[place]
    }

    /// Nothing of a pack that the index does not list.
    pub(crate) fn get(&self, pack: &PackKey) -> Option<PackUse> {
        Some(self.uses[self.packs.place(pack)?])
    }

    /// Sorted by the packs' names.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PackKey, PackUse)> + '_ {
        self.packs.iter().zip(self.uses.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::ids::{MachineNumber, SessionNumber};

    proptest! {
        #[test]
        fn a_packs_place_is_its_number_in_a_sorted_list(
            keys in proptest::collection::btree_set((0u32..3, 0u32..3, prop_oneof![0u32..12, Just(u32::MAX), Just(u32::MAX - 1)]), 0..60),
        ) {
            let key = |(machine, session, number): (u32, u32, u32)| PackKey {
                machine: MachineNumber(machine),
                session: SessionNumber(session),
                number,
            };
            let sorted: Vec<PackKey> = keys.iter().copied().map(key).collect();
            let places = PackPlaces::new(&sorted);
            prop_assert!(places.iter().eq(sorted.iter().copied()));
            let all: BTreeSet<PackKey> = sorted.iter().copied().collect();
            for machine in 0..3 {
                for session in 0..3 {
                    for number in (0..13).chain([u32::MAX - 2, u32::MAX - 1, u32::MAX]) {
                        let asked = key((machine, session, number));
                        let wanted = all.contains(&asked).then(|| sorted.binary_search(&asked).unwrap());
                        prop_assert_eq!(places.place(&asked), wanted);
                    }
                }
            }
        }
    }
}
