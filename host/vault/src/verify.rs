//! Proving that points can be restored.

use std::ops::Range;

use crate::ids::{MachineNumber, SessionNumber};

/// What to verify.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyPlan {
    /// One machine, or all.
    pub machine: Option<MachineNumber>,
    /// Read and open everything, not only look whether it is there at its size.
    pub read_data: bool,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    pub points_done: u64,
    pub points_total: u64,
    pub packs_done: u64,
    pub packs_total: u64,
    pub read_bytes: u64,
    pub damage_found: u64,
}

/// What a verification has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub points: u64,
    pub packs: u64,
    pub chunks: u64,
    pub read_bytes: u64,
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// One thing that is wrong, and what it touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The object's name in the vault.
    pub object: String,
    pub what: String,
    pub touches: Vec<Touched>,
}

/// A part of a recovery point that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    pub machine: String,
    pub point: SessionNumber,
    /// None: the point as a whole, or an attachment.
    pub disk: Option<String>,
    pub ranges: Vec<Range<u64>>,
}

pub(crate) async fn verify(
    _vault: &crate::vault::Vault,
    _plan: VerifyPlan,
    _progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<VerifyReport, crate::read::ReadError> {
    unimplemented!()
}
