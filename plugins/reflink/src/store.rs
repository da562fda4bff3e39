//! Where clones are kept, and which of them stay.

use coffre_plugin_sdk::{Base, Failure, if_there, storage};

/// The folders of one machine.
pub struct Store {
    folder: String,
    machine: String,
}

/// A part of a path that cannot lead anywhere else.
pub fn is_plain(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@+".contains(&byte);
    !part.is_empty() && part.len() <= 200 && part.bytes().all(plain) && !part.starts_with('.')
}

/// A machine's name as a part of a path: odd letters as %XX, so that two machines never share a folder.
fn folder_name(machine: &str) -> String {
    let mut name = String::new();
    for byte in machine.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

impl Store {
    pub fn new(folder: String, machine: &str) -> Self {
        let machine = format!("{folder}/{}", folder_name(machine));
        Self { folder, machine }
    }

    pub fn folder(&self) -> &str {
        &self.folder
    }

    pub fn held(&self, id: &str, disk: &str) -> String {
        format!("{}/held/{id}/{disk}", self.machine)
    }

    pub fn base(&self, token: &str, disk: &str) -> String {
        format!("{}/base/{token}/{disk}", self.machine)
    }

    /// Makes the folder of a snapshot and all above it that are ours.
    pub fn make_held(&self, id: &str) -> Result<(), Failure> {
        storage::create_folder(&self.folder)?;
        storage::create_folder(&self.machine)?;
        storage::create_folder(&format!("{}/held", self.machine))?;
        storage::create_folder(&format!("{}/held/{id}", self.machine))
    }

    pub fn all_held(&self) -> Result<Vec<String>, Failure> {
        names(&format!("{}/held", self.machine))
    }

    pub fn release(&self, id: &str) -> Result<(), Failure> {
        if !is_plain(id) {
            return Ok(());
        }
        remove_all(&format!("{}/held/{id}", self.machine))
    }

    /// First keeps what is to be kept, then drops the rest: a crash in between keeps too much, never too little.
    pub fn settle(&self, keep: &[Base]) -> Result<(), Failure> {
        let bases = format!("{}/base", self.machine);
        for base in keep.iter().filter(|base| is_plain(&base.token) && is_plain(&base.disk)) {
            let (held, kept) = (self.held(&base.token, &base.disk), self.base(&base.token, &base.disk));
            if if_there(storage::stat(&kept))?.is_some() || if_there(storage::stat(&held))?.is_none() {
                continue;
            }
            storage::create_folder(&bases)?;
            storage::create_folder(&format!("{bases}/{}", base.token))?;
            storage::link(&held, &kept)?;
            storage::sync(&kept)?;
        }
        for token in names(&bases)? {
            let folder = format!("{bases}/{token}");
            let mut kept = 0;
            for disk in names(&folder)? {
                if keep.iter().any(|base| base.token == token && base.disk == disk) {
                    kept += 1;
                } else {
                    storage::remove(&format!("{folder}/{disk}"))?;
                }
            }
            if kept == 0 {
                storage::remove(&folder)?;
            }
        }
        Ok(())
    }
}

/// What lies in a folder; nothing, if it is not there.
fn names(folder: &str) -> Result<Vec<String>, Failure> {
    let entries = if_there(storage::list_folder(folder))?.unwrap_or_default();
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

fn remove_all(folder: &str) -> Result<(), Failure> {
    for name in names(folder)? {
        storage::remove(&format!("{folder}/{name}"))?;
    }
    storage::remove(folder)
}
