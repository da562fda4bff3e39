//! Disks that are files or devices of this host, as settings name them. Shared by the providers `image` and `reflink`.
//!
//! ```toml
//! settings = { images = "/var/lib/vm/web01" }                     # every *.img and *.raw in the folder
//! settings = { images = ["/srv/a.img", "/srv/b.raw"] }            # these files
//! settings = { disks = { root = "/dev/vg/web01", data = "/srv/web01-data.img" } }
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::storage::{self, Kind, UsageState};
use crate::{Consistency, Disk, Failure, Finding, Level};

/// Endings that make a file of the folder a disk.
const ENDINGS: [&str; 2] = ["img", "raw"];

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Images {
    One(String),
    Many(Vec<String>),
}

/// A disk and where it lies.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: String,
    pub path: String,
    pub kind: Kind,
    pub size_bytes: u64,
    pub modified_ns: u64,
    pub file_system: String,
    pub file_system_id: u64,
}

impl Image {
    pub fn disk(&self) -> Disk {
        Disk {
            id: self.id.clone(),
            size_bytes: self.size_bytes,
            label: Some(self.path.clone()),
        }
    }
}

/// The folder that `images` names, if it is one.
pub fn folder(images: Option<&Images>) -> Result<Option<&str>, Failure> {
    match images {
        Some(Images::One(path)) if storage::stat(path)?.kind == Kind::Folder => Ok(Some(path)),
        _ => Ok(None),
    }
}

/// Finds the disks, sorted by id.
pub fn find(images: Option<&Images>, disks: Option<&BTreeMap<String, String>>) -> Result<Vec<Image>, Failure> {
    let mut paths: Vec<(String, String)> = Vec::new();
    match images {
        Some(Images::One(path)) if storage::stat(path)?.kind == Kind::Folder => {
            for entry in storage::list_folder(path)? {
                let ending = entry.name.rsplit_once('.').map_or("", |(_, ending)| ending);
                if entry.kind == Kind::RegularFile && !entry.name.starts_with('.') && ENDINGS.contains(&ending) {
                    paths.push((
                        id_of(&entry.name),
                        format!("{}/{}", path.trim_end_matches('/'), entry.name),
                    ));
                }
            }
            if paths.is_empty() && disks.is_none_or(BTreeMap::is_empty) {
                return Err(Failure::NotFound(format!(
                    "{path} holds no disk: no file that ends in .img or .raw"
                )));
            }
        }
        Some(Images::One(path)) => paths.push((id_of(path), path.clone())),
        Some(Images::Many(many)) => paths.extend(many.iter().map(|path| (id_of(path), path.clone()))),
        None if disks.is_none_or(BTreeMap::is_empty) => {
            let text =
                "neither `images` nor `disks` is there: say images = \"/folder\", or disks = { NAME = \"/path\" }";
            return Err(Failure::InvalidSettings(text.to_owned()));
        }
        None => {}
    }
    paths.extend(disks.into_iter().flatten().map(|(id, path)| (id.clone(), path.clone())));
    paths.sort();
    if let Some(twice) = paths.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Failure::InvalidSettings(format!(
            "{} and {} would both be the disk `{}`; give them names: disks = {{ NAME = \"/path\" }}",
            twice[0].1, twice[1].1, twice[0].0
        )));
    }
    paths.into_iter().map(|(id, path)| look(id, path)).collect()
}

fn look(id: String, path: String) -> Result<Image, Failure> {
    let found = storage::stat(&path)?;
    if !matches!(found.kind, Kind::RegularFile | Kind::BlockDevice) {
        return Err(Failure::InvalidSettings(format!(
            "{path} is neither a file nor a block device"
        )));
    }
    Ok(Image {
        id,
        path,
        kind: found.kind,
        size_bytes: found.size_bytes,
        modified_ns: found.modified_ns,
        file_system: found.file_system,
        file_system_id: found.file_system_id,
    })
}

/// Of these images, those that are wanted.
pub fn wanted(images: Vec<Image>, ids: &[String]) -> Result<Vec<Image>, Failure> {
    for id in ids {
        if !images.iter().any(|image| image.id == *id) {
            return Err(Failure::NotFound(format!("the disk `{id}` is not there any more")));
        }
    }
    Ok(images.into_iter().filter(|image| ids.contains(&image.id)).collect())
}

/// A disk's id from its file's name: without folder and ending, odd letters replaced.
fn id_of(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = match name.rsplit_once('.') {
        Some((stem, ending)) if ENDINGS.contains(&ending) && !stem.is_empty() => stem,
        _ => name,
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-:@+".contains(letter);
    let id: String = stem
        .chars()
        .map(|letter| if plain(letter) { letter } else { '_' })
        .collect();
    if id.starts_with(|letter: char| letter.is_ascii_alphanumeric()) {
        id
    } else {
        format!("disk{id}")
    }
}

/// What the disks are worth as they are, and how that is known.
#[derive(Clone, Debug)]
pub struct AtRest {
    pub consistency: Consistency,
    pub reason: String,
}

impl AtRest {
    pub fn is_off(&self) -> bool {
        self.consistency == Consistency::FileSystem
    }
}

/// Asks the host whether anything writes to the images. Off means that every one is shown to be unused.
pub fn at_rest(images: &[Image]) -> Result<AtRest, Failure> {
    for image in images {
        let usage = storage::in_use(&image.path)?;
        if usage.state != UsageState::Unused {
            let reason = format!("the machine is taken as running: {} ({})", usage.how, image.path);
            return Ok(AtRest {
                consistency: Consistency::Crash,
                reason,
            });
        }
    }
    let reason = match images {
        [one] => format!("the machine is off: nothing has {} open for writing", one.path),
        many => format!(
            "the machine is off: nothing has any of its {} images open for writing",
            many.len()
        ),
    };
    Ok(AtRest {
        consistency: Consistency::FileSystem,
        reason,
    })
}

/// A finding about one disk.
pub fn finding(level: Level, disk: &str, text: String) -> Finding {
    Finding {
        level,
        disk: Some(disk.to_owned()),
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::id_of;

    #[test]
    fn ids_are_plain_and_do_not_depend_on_what_lies_beside() {
        assert_eq!(id_of("/vm/root.img"), "root");
        assert_eq!(id_of("/dev/vg/web 01"), "web_01");
        assert_eq!(id_of("/vm/.img"), "disk.img");
        assert_eq!(id_of("/vm/a.qcow2"), "a.qcow2");
    }
}
