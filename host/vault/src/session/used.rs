//! The packs of others that a session relies on, with their sizes: 4 bytes for each pack, since a session may rely on every
//! pack of a vault. That is an eighth of a bit for each chunk where a pack holds 256.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use crate::ids::{MachineNumber, SessionNumber};
use crate::object::PackKey;

/// A session's packs are numbered without gaps, so their sizes stand in pages, found by number. A page is no longer than its
/// highest number asks for: that of a small session costs little, and one absurd number does not cost a table up to it.
const PAGE_PACKS: u32 = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct UsedPacks {
    /// By the first pack that may stand in it. A zero is a pack that is not used.
    pages: BTreeMap<PackKey, Vec<u32>>,
}

fn place(pack: &PackKey) -> (PackKey, usize) {
    let at = pack.number % PAGE_PACKS;
    let first = PackKey {
        number: pack.number - at,
        ..*pack
    };
    (first, at as usize)
}

impl UsedPacks {
    pub(super) fn contains(&self, pack: &PackKey) -> bool {
        let (first, at) = place(pack);
        let page = self.pages.get(&first);
        page.is_some_and(|page| page.get(at).is_some_and(|size_bytes| *size_bytes != 0))
    }

    pub(super) fn insert(&mut self, pack: PackKey, size_bytes: NonZeroU32) {
        let (first, at) = place(&pack);
        let page = self.pages.entry(first).or_default();
        if page.len() <= at {
            // A vector that grows by itself would take up to twice the page.
            page.reserve_exact((at + 1).next_power_of_two() - page.len());
            page.resize(at + 1, 0);
        }
        page[at] = size_bytes.get();
    }

    /// In order, with their sizes.
    pub(super) fn into_sizes(self) -> impl Iterator<Item = (PackKey, u32)> {
        self.pages.into_iter().flat_map(|(first, page)| in_page(first, page))
    }

    pub(super) fn sessions(&self) -> BTreeSet<(MachineNumber, SessionNumber)> {
        self.pages.keys().map(|first| (first.machine, first.session)).collect()
    }

    pub(super) fn of(&self, machine: MachineNumber, session: SessionNumber) -> impl Iterator<Item = PackKey> + '_ {
        let pages = self.pages.range(numbers(machine, session));
        pages.flat_map(|(first, page)| in_page(*first, page.iter().copied()).map(|(pack, _)| pack))
    }
}

fn numbers(machine: MachineNumber, session: SessionNumber) -> RangeInclusive<PackKey> {
    let numbered = |number| PackKey {
        machine,
        session,
        number,
    };
    numbered(0)..=numbered(u32::MAX)
}

fn in_page(first: PackKey, page: impl IntoIterator<Item = u32>) -> impl Iterator<Item = (PackKey, u32)> {
    let packs = page.into_iter().zip(first.number..=u32::MAX);
    packs
        .filter(|(size_bytes, _)| *size_bytes != 0)
        .map(move |(size_bytes, number)| (PackKey { number, ..first }, size_bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..5, 250u32..260, Just(u32::MAX - 1), Just(u32::MAX), any::<u32>()]
    }

    proptest! {
        #[test]
        fn used_packs_are_what_a_map_of_them_is(
            packs in proptest::collection::vec((0u32..3, 0u32..3, number(), 1u32..=u32::MAX), 0..60),
            others in proptest::collection::vec((0u32..3, 0u32..3, number()), 0..60),
        ) {
            let key = |machine, session, number| PackKey {
                machine: MachineNumber(machine),
                session: SessionNumber(session),
                number,
            };
            let mut used = UsedPacks::default();
            let mut model = BTreeMap::new();
            for (machine, session, number, size_bytes) in packs {
                let pack = key(machine, session, number);
                used.insert(pack, NonZeroU32::new(size_bytes).unwrap());
                model.insert(pack, size_bytes);
            }
            prop_assert!(used.clone().into_sizes().eq(model.iter().map(|(pack, size_bytes)| (*pack, *size_bytes))));
            for pack in others.into_iter().map(|(m, s, n)| key(m, s, n)).chain(model.keys().copied()) {
                prop_assert_eq!(used.contains(&pack), model.contains_key(&pack));
            }
            let sessions: BTreeSet<_> = model.keys().map(|pack| (pack.machine, pack.session)).collect();
            prop_assert_eq!(used.sessions(), sessions);
            for machine in (0..3).map(MachineNumber) {
                for session in (0..3).map(SessionNumber) {
                    let of = model.keys().filter(|pack| (pack.machine, pack.session) == (machine, session));
                    prop_assert!(used.of(machine, session).eq(of.copied()));
                }
            }
        }
    }

    #[test]
    fn every_pack_of_a_large_vault_takes_four_bytes() {
        let mut used = UsedPacks::default();
        let packs = 200_000;
        for number in 0..packs {
            // In the order of a walk over chunks, which is any.
            let pack = PackKey {
                machine: MachineNumber(1),
                session: SessionNumber(0),
                number: (u64::from(number) * 7919 % u64::from(packs)) as u32,
            };
            used.insert(pack, NonZeroU32::MIN);
        }
        let sizes: usize = used.pages.values().map(|page| page.capacity() * size_of::<u32>()).sum();
        assert!(sizes <= (packs + PAGE_PACKS) as usize * 4, "{sizes}");
        assert_eq!(used.into_sizes().count(), packs as usize);
    }
}
