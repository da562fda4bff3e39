//! How much goes on at once.

/// Places for jobs on their way to their snapshot, and for transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    snapshots: usize,
    transfers: usize,
    taken_snapshots: usize,
    taken_transfers: usize,
}

impl Places {
    pub fn new(snapshots: usize, transfers: usize) -> Self {
        Self {
            snapshots,
            transfers,
            taken_snapshots: 0,
            taken_transfers: 0,
        }
    }

    /// Takes the limits of `other`. Those that have a place keep it.
    pub(super) fn limits(&mut self, other: Self) {
        self.snapshots = other.snapshots;
        self.transfers = other.transfers;
    }

    pub(super) fn take_snapshot(&mut self) -> bool {
        take(self.snapshots, &mut self.taken_snapshots)
    }

    pub(super) fn leave_snapshot(&mut self) {
        self.taken_snapshots -= 1;
    }

    pub(super) fn take_transfer(&mut self) -> bool {
        take(self.transfers, &mut self.taken_transfers)
    }

    pub(super) fn leave_transfer(&mut self) {
        self.taken_transfers -= 1;
    }
}

fn take(limit: usize, taken: &mut usize) -> bool {
    let free = *taken < limit;
    if free {
        *taken += 1;
    }
    free
}
