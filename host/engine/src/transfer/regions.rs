//! Which regions of a disk changed, coarsely, for a picture.

use std::sync::atomic::{AtomicU64, Ordering};

/// Enough to see a pattern, and 128 bytes in a point. In FORMAT.md.
pub const REGIONS: usize = 128;
/// Full, as a hexadecimal digit.
const FULL: u64 = 15;

/// Changed bytes by region.
#[derive(Debug)]
pub struct Regions([AtomicU64; REGIONS]);

impl Default for Regions {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Regions {
    /// Something changed in the segment that begins at `start_bytes`. A disk that has fewer segments than there are regions has
    /// empty ones in between.
    pub fn add(&self, start_bytes: u64, disk_bytes: u64, changed_bytes: u64) {
        let region = u128::from(start_bytes) * REGIONS as u128 / u128::from(disk_bytes.max(1));
        self.0[(region as usize).min(REGIONS - 1)].fetch_add(changed_bytes, Ordering::Relaxed);
    }

    pub fn reset(&self) {
        for region in &self.0 {
            region.store(0, Ordering::Relaxed);
        }
    }

    /// A digit per region: what changed at all is 1 at least, however large the region.
    pub fn digits(&self, disk_bytes: u64) -> String {
        let region_bytes = (disk_bytes / REGIONS as u64).max(1);
        let digit = |changed: &AtomicU64| {
            let share = u128::from(changed.load(Ordering::Relaxed)) * u128::from(FULL);
            let digit = share.div_ceil(u128::from(region_bytes)).min(u128::from(FULL));
            char::from_digit(digit as u32, 16).unwrap_or('f')
        };
        self.0.iter().map(digit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_region_says_how_much_of_it_changed() {
        let regions = Regions::default();
        assert_eq!(regions.digits(128 * GIB), "0".repeat(REGIONS));
        regions.add(0, 128 * GIB, 4096);
        regions.add(GIB, 128 * GIB, GIB / 2);
        regions.add(127 * GIB + (1023 << 20), 128 * GIB, 2 * GIB);
        let digits = regions.digits(128 * GIB);
        assert_eq!((&digits[..3], &digits[REGIONS - 2..]), ("180", "0f"));
        regions.reset();
        assert_eq!(regions.digits(128 * GIB), "0".repeat(REGIONS));
    }

    #[test]
    fn disks_without_a_size_and_without_end_break_nothing() {
        for disk_bytes in [0, 1, 5 << 20, u64::MAX] {
            let regions = Regions::default();
            for start in [0, disk_bytes / 2, disk_bytes] {
                regions.add(start, disk_bytes, 1 << 20);
            }
            assert_eq!(regions.digits(disk_bytes).len(), REGIONS);
        }
    }
}
