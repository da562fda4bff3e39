//! Parity beside the packs of a local vault, for disks that lose sectors or flip bits: enough Reed-Solomon blocks to mend a part
//! of each pack.
//!
//! A pack's parity is an object of its own, written before the pack. It is a help and nothing else: what it says of a pack is
//! believed only where the mended bytes have the hash that the pack had when its parity was made, and the pack's seals have
//! the last word as always. A parity that is damaged, missing or of no pack changes nothing. What cannot be mended is damage
//! as it would be without.
//!
//! On S3 and Azure a store of many disks does the same below, so a vault there has none.

mod file;
mod heal;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub(crate) use file::encode;
pub(crate) use heal::{MendedPack, mended, put_back};

/// How much of a pack its parity can mend, as a part of the pack's size, which is what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parity {
    percent: u8,
}

/// Why text is no [`Parity`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no percentage from 1% to 100%, as in 10%")]
pub struct ParityError(String);

impl Parity {
    /// From 1 to 100.
    pub fn of_percent(percent: u8) -> Option<Self> {
        (1..=100).contains(&percent).then_some(Self { percent })
    }

    /// At least one block: a pack of a few KiB is one sector.
    fn blocks_for(self, blocks: usize) -> usize {
        (blocks * usize::from(self.percent)).div_ceil(100).max(1)
    }
}

impl FromStr for Parity {
    type Err = ParityError;

    fn from_str(text: &str) -> Result<Self, ParityError> {
        let digits = text.strip_suffix('%').map(str::trim_end);
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok());
        percent
            .and_then(Self::of_percent)
            .ok_or_else(|| ParityError(text.to_owned()))
    }
}

impl fmt::Display for Parity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent)
    }
}
