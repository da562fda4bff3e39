//! The newest records of a table, in memory: one block that is taken at once and given back whole, so that what the
//! allocator keeps does not grow with what has passed through. A tree's nodes lie scattered over the heaps of all threads.

use hashbrown::HashTable;

use super::run::KEY_BYTES;

/// Records in the order in which they came, each once, found by their keys.
pub(super) struct Recent<const N: usize> {
    records: Vec<[u8; N]>,
    /// Places in `records`.
    by_key: HashTable<u32>,
}

impl<const N: usize> Default for Recent<N> {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            by_key: HashTable::new(),
        }
    }
}

impl<const N: usize> Recent<N> {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn insert(&mut self, record: [u8; N]) {
        let Self { records, by_key } = self;
        let hash = hash(&record);
        if by_key.find(hash, |at| records[*at as usize] == record).is_none() {
            let at = u32::try_from(records.len()).expect("a table is written down long before");
            records.push(record);
            by_key.insert_unique(hash, at, |at| self::hash(&records[*at as usize]));
        }
    }

    pub(super) fn with_key<'a>(&'a self, key: &'a [u8; KEY_BYTES]) -> impl Iterator<Item = [u8; N]> + 'a {
        let alike = self.by_key.iter_hash(hash(key));
        let records = alike.map(|at| self.records[*at as usize]);
        records.filter(move |record| record[..KEY_BYTES] == *key)
    }

    pub(super) fn records(&self) -> &[[u8; N]] {
        &self.records
    }

    pub(super) fn into_sorted(self) -> Sorted<N> {
        let mut records = self.records;
        records.sort_unstable();
        Sorted(records)
    }
}

/// Keys are hashes already.
fn hash(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&key[..8]);
    u64::from_le_bytes(first)
}

/// Those that are being written down.
#[derive(Default)]
pub(super) struct Sorted<const N: usize>(Vec<[u8; N]>);

impl<const N: usize> Sorted<N> {
    pub(super) fn with_key(&self, key: &[u8; KEY_BYTES]) -> &[[u8; N]] {
        let from = self.0.partition_point(|record| record[..KEY_BYTES] < key[..]);
        let length = self.0[from..].partition_point(|record| record[..KEY_BYTES] == key[..]);
        &self.0[from..from + length]
    }

    pub(super) fn records(&self) -> &[[u8; N]] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few keys, so that they have several records, and records that come again.
        #[test]
        fn the_newest_records_are_found_as_in_a_set(records in proptest::collection::vec((0u8..20, 0u8..4), 0..200)) {
            let mut recent = Recent::<24>::default();
            let mut set = BTreeSet::new();
            for (key, value) in &records {
                let mut record = [*value; 24];
                record[..KEY_BYTES].fill(*key);
                recent.insert(record);
                set.insert(record);
            }
            prop_assert_eq!(recent.len(), set.len());
            let of_key = |key: u8| set.iter().filter(move |record| record[0] == key).copied();
            for key in 0..21 {
                let found: BTreeSet<_> = recent.with_key(&[key; KEY_BYTES]).collect();
                prop_assert_eq!(found, of_key(key).collect::<BTreeSet<_>>());
            }
            let sorted = recent.into_sorted();
            prop_assert!(sorted.records().iter().eq(&set));
            for key in 0..21 {
                prop_assert!(sorted.with_key(&[key; KEY_BYTES]).iter().copied().eq(of_key(key)));
            }
        }
    }
}
