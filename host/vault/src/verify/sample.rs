//! Which packs a sampled verification reads, so that one run after the other reaches all of them.
//!
//! Every pack has a fixed place on a circle, by a hash of its name; a run reads those on the arc that begins where the last
//! run's ended. So `100 / percentage` runs read every pack that was there all the while, each of them once, whatever was
//! added or cleaned up in between, and all that is remembered is one number. It lies in the cache folder: a host that has
//! lost it begins somewhere by chance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::MachineNumber;
use crate::key::random;
use crate::object::PackKey;
use crate::vault::Vault;

/// A part of a whole, above 0 and at most 100 %, in steps of a millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage {
    millionths: u32,
}

/// Why text is no percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no percentage above 0 and up to 100, as in 5% or 0.5%")]
pub struct PercentageError(String);

const WHOLE: u32 = 1_000_000;

impl Percentage {
    /// How many runs reach everything.
    pub fn runs_for_all(self) -> u32 {
        WHOLE.div_ceil(self.millionths)
    }

    pub fn is_all(self) -> bool {
        self.millionths == WHOLE
    }

    /// The arc of the circle. Rounded up, or the last run would end just short of where the first began.
    fn arc(self) -> u64 {
        let arc = (u128::from(self.millionths) << 64).div_ceil(u128::from(WHOLE));
        u64::try_from(arc).unwrap_or(u64::MAX)
    }
}

impl FromStr for Percentage {
    type Err = PercentageError;

    fn from_str(text: &str) -> Result<Self, PercentageError> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let millionths = number
            .parse::<f64>()
            .ok()
            .map(|number| number * f64::from(WHOLE) / 100.0);
        match millionths {
            Some(millionths) if plain && (1.0..=f64::from(WHOLE)).contains(&millionths) => Ok(Self {
                millionths: millionths as u32,
            }),
            _ => Err(PercentageError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Percentage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} %", f64::from(self.millionths) / (f64::from(WHOLE) / 100.0))
    }
}

/// Where each kind of run goes on: all machines (0), or one.
#[derive(Default, Serialize, Deserialize)]
struct Turns(BTreeMap<u32, u64>);

/// The packs of one run.
pub(super) struct Sample {
    machine: u32,
    start: u64,
    arc: u64,
}

impl Sample {
    pub(super) async fn next(vault: &Vault, machine: Option<MachineNumber>, percentage: Percentage) -> Self {
        let machine = machine.map_or(0, |machine| machine.0);
        let start = read(&file(vault)).await.0.get(&machine).copied();
        Self {
            machine,
            start: start.unwrap_or_else(|| u64::from_le_bytes(random())),
            arc: percentage.arc(),
        }
    }

    pub(super) fn takes(&self, pack: &PackKey) -> bool {
        let hash = blake3::hash(&pack.to_bytes());
        let mut place = [0; 8];
        place.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(place).wrapping_sub(self.start) < self.arc || self.arc == u64::MAX
    }

    /// The next run goes on from here. A run that broke off does not come to this, and is repeated.
    pub(super) async fn done(self, vault: &Vault) {
        let path = file(vault);
        let mut turns = read(&path).await;
        turns.0.insert(self.machine, self.start.wrapping_add(self.arc));
        let written = async {
            let new = path.with_extension("json-new");
            tokio::fs::write(&new, serde_json::to_vec(&turns)?).await?;
            tokio::fs::rename(&new, &path).await
        };
        if let Err(error) = written.await {
            tracing::warn!(path = %path.display(), %error, "the next sample begins by chance: this one's end cannot be kept");
        }
    }
}

fn file(vault: &Vault) -> PathBuf {
    vault.cache_folder().join("sampled.json")
}

async fn read(path: &Path) -> Turns {
    match tokio::fs::read(path).await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        Err(_) => Turns::default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::SessionNumber;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn so_many_runs_as_it_says_read_every_pack(
            millionths in 20_000..=WHOLE, start in any::<u64>(), packs in proptest::collection::vec(any::<u32>(), 1..40),
        ) {
            let percentage = Percentage { millionths };
            let mut read = vec![0; packs.len()];
            let mut sample = Sample { machine: 0, start, arc: percentage.arc() };
            for _ in 0..percentage.runs_for_all() {
                for (pack, times) in packs.iter().zip(&mut read) {
                    let key = PackKey { machine: MachineNumber(1), session: SessionNumber(2), number: *pack };
                    *times += u32::from(sample.takes(&key));
                }
                sample.start = sample.start.wrapping_add(sample.arc);
            }
            prop_assert!(read.iter().all(|times| (1..=2).contains(times)), "{:?}", read);
        }
    }

    #[test]
    fn percentages_are_read_as_people_write_them() {
        for (text, runs) in [("5", 20), ("5%", 20), ("0.5 %", 200), ("33%", 4), ("100%", 1)] {
            assert_eq!(text.parse::<Percentage>().unwrap().runs_for_all(), runs, "{text}");
        }
        assert_eq!("12.5%".parse::<Percentage>().unwrap().to_string(), "12.5 %");
        for bad in ["", "%", "0", "101%", "-5%", "5e1", "inf", "nan", "five"] {
            assert!(bad.parse::<Percentage>().is_err(), "{bad}");
        }
    }
}
