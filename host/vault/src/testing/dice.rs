//! Draws that follow from a seed and from what they are for, never from the order in which they are asked for: so a run
//! happens again as it did, also where the program under test goes through a hash map.

use std::ops::Range;
use std::time::Duration;

/// A source of numbers for one purpose. The same seed and the same purposes give the same numbers.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { state: mixed(seed) }
    }

    /// Dice for something of its own; throwing them moves nobody else's.
    pub fn of(&self, purpose: &str) -> Self {
        let mut state = self.state;
        for byte in purpose.bytes() {
            state = mixed(state ^ u64::from(byte));
        }
        Self { state: mixed(state) }
    }

    /// As [`Dice::of`], for the `number`th of its kind.
    pub fn nth(&self, purpose: &str, number: u64) -> Self {
        let kind = self.of(purpose);
        Self {
            state: mixed(kind.state ^ mixed(number)),
        }
    }

    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.state)
    }

    /// One of `range`, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// True once in `once_in` throws; never for 0.
    pub fn once_in(&mut self, once_in: u64) -> bool {
        once_in != 0 && self.number().is_multiple_of(once_in)
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.within(0..of.len() as u64) as usize]
    }

    /// From `least` to `most`, each order of magnitude as likely as any other: things that happen within seconds and things
    /// that take days both occur.
    pub fn duration(&mut self, least: Duration, most: Duration) -> Duration {
        let (least_ms, most_ms) = (least.as_millis().max(1) as f64, most.as_millis().max(1) as f64);
        let share = (self.number() >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_millis((least_ms * (most_ms / least_ms).max(1.0).powf(share)) as u64)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_draws_does_not_move_what_another_draws() {
        let dice = Dice::new(7);
        let alone = dice.of("writer").number();
        let mut other = dice.of("cleaner");
        (0..10).for_each(|_| {
            other.number();
        });
        assert_eq!(dice.of("writer").number(), alone);
        assert_ne!(dice.of("cleaner").number(), alone);
        assert_ne!(dice.nth("writer", 1).number(), dice.nth("writer", 2).number());
    }

    #[test]
    fn durations_stay_within_their_bounds() {
        let mut dice = Dice::new(1);
        let (least, most) = (Duration::from_millis(5), Duration::from_secs(86_400));
        let drawn: Vec<Duration> = (0..1000).map(|_| dice.duration(least, most)).collect();
        assert!(drawn.iter().all(|one| (least..=most).contains(one)));
        assert!(drawn.iter().any(|one| *one < Duration::from_secs(1)));
        assert!(drawn.iter().any(|one| *one > Duration::from_secs(3600)));
    }
}
