//! The local index's manifest: which runs there are, whose pieces they hold, and how far the clean-up log was followed.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::packs::PackSet;

/// What another version wrote is fetched anew.
const VERSION: u32 = 2;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) version: u32,
    /// Grows with every change, so that others see that there was one.
    pub(super) serial: u64,
    pub(super) chunks: Vec<String>,
    pub(super) packs: Vec<String>,
    pub(super) pieces: PackSet,
    pub(super) standing: Standing,
    /// How many packs were gone when the runs were last merged into one without them.
    #[serde(default)]
    pub(super) gone_left_out: u64,
}

/// What the local index knows of packs that are going or gone.
///
/// A checkpoint names what is condemned and not gone. Whoever was away meanwhile holds listings of packs that were condemned
/// and have left since, and nothing that is read at a start says so; he would deduplicate against them, and fail at the
/// commit. So what was condemned is remembered here from the first record that says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// The clean-up log was followed to this number, which was not there yet.
    pub(super) log_end: u32,
    /// What stands here is from a log that ended no later than this. A shorter one cannot say what of it is gone.
    pub(super) known_until: u32,
    /// Every pack that was ever seen condemned. Nothing new relies on one of them, whatever becomes of the log.
    pub(super) condemned: PackSet,
    /// Of those the ones that the newest checkpoint no longer names.
    pub(super) gone: PackSet,
}

impl Standing {
    /// Takes over what another process knows. The log is followed again from where either of the two left off.
    pub(super) fn adopt(&mut self, other: &Self) {
        self.log_end = self.log_end.min(other.log_end);
        self.known_until = self.known_until.max(other.known_until);
        self.condemned.extend(other.condemned.iter());
        self.gone.extend(other.gone.iter());
    }
}

impl Manifest {
    pub(super) fn empty(serial: u64) -> Self {
        Self {
            version: VERSION,
            serial,
            ..Self::default()
        }
    }

    /// Nothing where no manifest is.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(folder.join("manifest.json")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let manifest: Self = serde_json::from_slice(&bytes)?;
        let plain = |name: &String| Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if manifest.version != VERSION || !manifest.chunks.iter().chain(&manifest.packs).all(plain) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a manifest of another version",
            ));
        }
        Ok(Some(manifest))
    }

    /// Replaces the manifest that is there. The runs that it names are on disk already.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join("manifest.new");
        let file = File::create(&new)?;
        serde_json::to_writer(io::BufWriter::new(&file), self)?;
        file.sync_data()?;
        fs::rename(&new, folder.join("manifest.json"))
    }
}
