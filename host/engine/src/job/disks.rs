//! Which disks of a machine a backup takes, and what became of those that an earlier point has.

use std::collections::BTreeSet;

use coffre_vault::{Note, NoteLevel, PointDisk};

use super::error::JobError;
use crate::config::DiskSelection;
use crate::machine::{DiskId, DiskInfo};

/// Chooses among the disks that were found. A disk that the config includes by its full name must be there.
pub fn select(
    machine: &str,
    provider: &str,
    selection: &DiskSelection,
    found: Vec<DiskInfo>,
) -> Result<Vec<DiskInfo>, JobError> {
    let mut ids = BTreeSet::new();
    if let Some(twice) = found.iter().find(|disk| !ids.insert(&disk.id)) {
        return Err(JobError::BadAnswer {
            provider: provider.to_owned(),
            what: format!("disk {} twice", twice.id),
        });
    }
    let all: Vec<DiskId> = found.iter().map(|disk| disk.id.clone()).collect();
    let named = selection.include.iter().flatten().filter(|pattern| pattern.is_plain());
    for pattern in named {
        if !all.iter().any(|id| pattern.matches(&id.0)) {
            return Err(JobError::DiskMissing {
                disk: pattern.to_string(),
                found: all,
            });
        }
    }
    let wanted = |disk: &DiskInfo| {
        let included = selection
            .include
            .as_ref()
            .is_none_or(|list| list.iter().any(|one| one.matches(&disk.id.0)));
        included && !selection.exclude.iter().any(|one| one.matches(&disk.id.0))
    };
    let chosen: Vec<DiskInfo> = found.into_iter().filter(wanted).collect();
    if chosen.is_empty() {
        return Err(JobError::NoDisks {
            machine: machine.to_owned(),
            found: all,
        });
    }
    Ok(chosen)
}

/// What is different from the last point: an outcome that stands in the new one.
pub fn compare(before: &[PointDisk], found: &[DiskInfo], taken: &[(DiskId, u64)]) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut note = |level, code: &str, disk: &str, text: String| {
        notes.push(Note {
            level,
            code: code.to_owned(),
            disk: Some(disk.to_owned()),
            text,
        });
    };
    for (id, size_bytes) in taken {
        match before.iter().find(|disk| disk.id == id.0) {
            None => note(NoteLevel::Info, "disk-appeared", &id.0, format!("disk {id} is new")),
            Some(disk) if disk.size_bytes < *size_bytes => {
                let text = format!("disk {id} grew from {} to {size_bytes} bytes", disk.size_bytes);
                note(NoteLevel::Info, "disk-grew", &id.0, text);
            }
            Some(disk) if disk.size_bytes > *size_bytes => {
                let text = format!("disk {id} shrank from {} to {size_bytes} bytes", disk.size_bytes);
                note(NoteLevel::Warning, "disk-shrank", &id.0, text);
            }
            Some(_) => {}
        }
    }
    for disk in before {
        if taken.iter().any(|(id, _)| id.0 == disk.id) {
            continue;
        }
        if found.iter().any(|info| info.id.0 == disk.id) {
            let text = format!("disk {} is not backed up any more: the config leaves it out", disk.id);
            note(NoteLevel::Info, "disk-excluded", &disk.id, text);
        } else {
            note(
                NoteLevel::Warning,
                "disk-vanished",
                &disk.id,
                format!("disk {} is gone", disk.id),
            );
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pattern;

    fn disk(id: &str) -> DiskInfo {
        DiskInfo {
            id: DiskId(id.to_owned()),
            size_bytes: 10,
            label: None,
        }
    }

    fn selection(include: Option<&[&str]>, exclude: &[&str]) -> DiskSelection {
        let patterns = |list: &[&str]| list.iter().map(|text| Pattern::new(text)).collect();
        DiskSelection {
            include: include.map(patterns),
            exclude: patterns(exclude),
        }
    }

    fn chosen(include: Option<&[&str]>, exclude: &[&str]) -> Result<Vec<String>, JobError> {
        let found = ["data1", "data2", "root", "swap"].map(disk).to_vec();
        let chosen = select("m", "p", &selection(include, exclude), found)?;
        Ok(chosen.into_iter().map(|disk| disk.id.0).collect())
    }

    #[test]
    fn disks_are_chosen_by_pattern() {
        assert_eq!(chosen(None, &[]).unwrap().len(), 4);
        assert_eq!(chosen(None, &["swap"]).unwrap(), ["data1", "data2", "root"]);
        assert_eq!(chosen(Some(&["data*", "root"]), &["data2"]).unwrap(), ["data1", "root"]);
        assert_eq!(chosen(Some(&["nothing*", "root"]), &[]).unwrap(), ["root"]);
        assert!(
            matches!(chosen(Some(&["gone", "root"]), &[]), Err(JobError::DiskMissing { disk, .. }) if disk == "gone")
        );
        assert!(matches!(chosen(None, &["*"]), Err(JobError::NoDisks { .. })));
        let twice = select("m", "p", &selection(None, &[]), vec![disk("a"), disk("a")]);
        assert!(matches!(twice, Err(JobError::BadAnswer { .. })));
    }

    #[test]
    fn what_changed_about_the_disks_is_noted() {
        let before = |id: &str, size_bytes| PointDisk {
            id: id.to_owned(),
            size_bytes,
            ..PointDisk::default()
        };
        let taken = |id: &str| (DiskId(id.to_owned()), 10);
        let notes = compare(
            &[
                before("same", 10),
                before("small", 5),
                before("big", 20),
                before("left", 10),
                before("gone", 10),
            ],
            &["same", "small", "big", "left", "new"].map(disk),
            &["same", "small", "big", "new"].map(taken),
        );
        let codes: Vec<_> = notes
            .iter()
            .map(|note| (note.code.as_str(), note.disk.as_deref().unwrap()))
            .collect();
        let expected = [
            ("disk-grew", "small"),
            ("disk-shrank", "big"),
            ("disk-appeared", "new"),
            ("disk-excluded", "left"),
            ("disk-vanished", "gone"),
        ];
        assert_eq!(codes, expected);
    }
}
