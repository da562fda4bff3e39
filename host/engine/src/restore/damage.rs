//! What a restore has left out because it is damaged.

use std::collections::BTreeMap;
use std::ops::Range;

use parking_lot::Mutex;

use crate::error_chain::Chain;
use crate::machine::DiskId;

/// Bytes of a disk that are zeroes now, and were something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    pub disk: DiskId,
    pub range: Range<u64>,
    /// What is damaged, for the range's beginning.
    pub what: String,
}

/// Gathered by all threads of a restore. Neighbours are one, so that a lost pack does not take memory for each of its pieces
/// as long as they lie together.
#[derive(Default)]
pub(super) struct Skipped(Mutex<BTreeMap<(String, u64), (u64, String)>>);

impl Skipped {
    pub(super) fn add(&self, disk: &DiskId, range: Range<u64>, error: &(dyn std::error::Error + Send + Sync)) {
        let mut all = self.0.lock();
        let key = |at| (disk.0.clone(), at);
        let mut what = Chain(error).to_string();
        let (mut start, mut end) = (range.start, range.end);
        let before = all.range(..=key(start)).next_back();
        if let Some(((of, first), (last, said))) = before
            && *of == disk.0
            && *last >= start
        {
            (start, end, what) = (*first, end.max(*last), said.clone());
        }
        while let Some((behind, last)) = next_within(&all, &key(start + 1), &disk.0, end) {
            all.remove(&key(behind));
            end = end.max(last);
        }
        all.insert(key(start), (end, what));
    }

    /// What was added so far.
    pub(super) fn take(&self) -> Vec<DamagedRange> {
        let all = std::mem::take(&mut *self.0.lock());
        all.into_iter()
            .map(|((disk, start), (end, what))| DamagedRange {
                disk: DiskId(disk),
                range: start..end,
                what,
            })
            .collect()
    }
}

/// The next range of the disk that begins at `end` or before it.
fn next_within(
    all: &BTreeMap<(String, u64), (u64, String)>,
    from: &(String, u64),
    disk: &str,
    end: u64,
) -> Option<(u64, u64)> {
    let ((of, start), (last, _)) = all.range(from..).next()?;
    (of == disk && *start <= end).then_some((*start, *last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_and_disks_are_apart() {
        let skipped = Skipped::default();
        let error = std::io::Error::other("lost");
        let (a, b) = (DiskId("a".to_owned()), DiskId("b".to_owned()));
        for (disk, range) in [
            (&a, 10..20),
            (&a, 40..50),
            (&b, 20..30),
            (&a, 30..40),
            (&a, 20..25),
            (&a, 0..5),
        ] {
            skipped.add(disk, range, &error);
        }
        let ranges: Vec<_> = skipped
            .take()
            .into_iter()
            .map(|found| (found.disk.0, found.range))
            .collect();
        let wanted = [("a", 0..5), ("a", 10..25), ("a", 30..50), ("b", 20..30)];
        assert_eq!(ranges, wanted.map(|(disk, range)| (disk.to_owned(), range)));
    }
}
