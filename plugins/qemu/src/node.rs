//! The machine's disks as QEMU knows them: nodes with sizes and bitmaps.

use std::collections::BTreeMap;

use coffre_plugin_sdk::{Disk, Failure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::qmp::Monitor;

/// A disk that can be backed up.
pub struct Attached {
    pub id: String,
    pub node: String,
    pub size_bytes: u64,
    /// Its image can hold bitmaps, which are there again when QEMU starts anew.
    pub keeps_bitmaps: bool,
}

impl Attached {
    pub fn into_disk(self) -> Disk {
        Disk {
            id: self.id,
            size_bytes: self.size_bytes,
            label: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Block {
    #[serde(default)]
    device: String,
    /// The path of the device in the machine.
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
struct Inserted {
    #[serde(rename = "node-name")]
    node: Option<String>,
    ro: bool,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "node-name")]
    node: Option<String>,
    drv: String,
    image: Image,
    #[serde(rename = "dirty-bitmaps", default)]
    bitmaps: Vec<Bitmap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

/// A dirty bitmap. Those without a name are QEMU's own.
#[derive(Deserialize)]
pub struct Bitmap {
    #[serde(default)]
    pub name: String,
    /// It was not written down whole when QEMU ended, and says nothing.
    #[serde(default)]
    pub inconsistent: bool,
}

impl Bitmap {
    pub fn remove(&self, monitor: &mut Monitor, node: &str) -> Result<(), Failure> {
        let bitmap = json!({ "node": node, "name": self.name });
        monitor.run::<Value>("block-dirty-bitmap-remove", bitmap).map(drop)
    }
}

fn nodes(monitor: &mut Monitor) -> Result<Vec<Node>, Failure> {
    monitor.run("query-named-block-nodes", json!({ "flat": true }))
}

pub fn bitmaps(monitor: &mut Monitor, node: &str) -> Result<Vec<Bitmap>, Failure> {
    let found = nodes(monitor)?
        .into_iter()
        .find(|found| found.node.as_deref() == Some(node));
    Ok(found.map(|found| found.bitmaps).unwrap_or_default())
}

/// Whether there is a node of this name.
pub fn is_there(monitor: &mut Monitor, node: &str) -> Result<bool, Failure> {
    Ok(nodes(monitor)?.iter().any(|found| found.node.as_deref() == Some(node)))
}

/// The disks that the settings name, or every writable one that is attached to the machine.
pub fn attached(monitor: &mut Monitor, named: Option<&BTreeMap<String, String>>) -> Result<Vec<Attached>, Failure> {
    let wanted: Vec<(String, String)> = match named {
        Some(named) => named.iter().map(|(id, node)| (id.clone(), node.clone())).collect(),
        None => {
            let blocks: Vec<Block> = monitor.run("query-block", json!({}))?;
            blocks.into_iter().filter_map(Block::disk).collect()
        }
    };
    let nodes = nodes(monitor)?;
    wanted
        .into_iter()
        .map(|(id, node)| {
            let found = nodes.iter().find(|found| found.node.as_deref() == Some(&node));
            let found = found.ok_or_else(|| {
                let names: Vec<&str> = nodes.iter().filter_map(|found| found.node.as_deref()).collect();
                Failure::NotFound(format!(
                    "QEMU has no node `{node}` for disk {id}; it has {}",
                    names.join(", ")
                ))
            })?;
            Ok(Attached {
                id,
                node,
                size_bytes: found.image.virtual_size,
                keeps_bitmaps: found.drv == "qcow2",
            })
        })
        .collect()
}

impl Block {
    /// Its id, which stays the same from run to run, and its node.
    fn disk(self) -> Option<(String, String)> {
        let inserted = self.inserted.filter(|inserted| !inserted.ro)?;
        let qdev = self.qdev.map(|path| {
            let path = path.strip_suffix("/virtio-backend").unwrap_or(&path).to_owned();
            path.rsplit('/').next().unwrap_or_default().to_owned()
        });
        let id = qdev.filter(|id| !id.is_empty()).unwrap_or(self.device);
        let plain = |letter: char| {
            if letter.is_ascii_alphanumeric() || "._-:@+".contains(letter) {
                letter
            } else {
                '_'
            }
        };
        let id: String = id.chars().map(plain).collect();
        Some((id, inserted.node?))
    }
}
