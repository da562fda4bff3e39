//! What a guest answered, checked. A guest can be wrong or hostile; nothing that cannot be true goes on to the engine,
//! and of an answer that breaks one rule nothing is used.

use std::collections::HashSet;

use coffre_engine::{
    Description, DiskId, DiskInfo, Extent, Finding, ProviderError, ProviderErrorKind, SnapshotId, TakeRequest,
};

use super::words;
use crate::guest::bindings::coffre::plugin::types as wit;
use crate::guest::bindings::exports::coffre::plugin::provider as exported;
use crate::guest::plain;
use crate::limits::{
    ATTACHMENT_BYTES, ATTACHMENTS, ATTACHMENTS_BYTES, DISK_BYTES, DISKS, EXTENTS_PER_STEP, FINDINGS, HELD_SNAPSHOTS,
    ID_BYTES, SCHEMA_BYTES, TEXT_BYTES, TOKEN_BYTES,
};

/// A text for people, fit for a terminal.
pub(super) fn text(found: &str) -> String {
    plain(found, TEXT_BYTES)
}

/// A short text without control characters.
pub(super) fn is_plain(text: &str, at_most: usize) -> bool {
    !text.is_empty() && text.len() <= at_most && !text.chars().any(char::is_control)
}

/// An id as the contract has it: it stands in paths, URLs and terminals.
fn is_id(id: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'@' | b'+');
    id.len() <= ID_BYTES && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && id.bytes().all(letter)
}

fn is_snapshot_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Checks the answers of one call.
pub(super) struct Checker<'a> {
    pub plugin: &'a str,
    pub call: &'a str,
}

type Checked<T> = Result<T, ProviderError>;

impl Checker<'_> {
    pub fn bad(&self, what: impl AsRef<str>) -> ProviderError {
        let (plugin, call) = (self.plugin, self.call);
        ProviderError {
            kind: ProviderErrorKind::BadAnswer,
            text: format!(
                "the plugin `{plugin}` answered `{call}` with what cannot be: {}",
                text(what.as_ref())
            ),
            hint: Some(format!(
                "this is a mistake in the plugin `{plugin}`; nothing of the answer was used"
            )),
        }
    }

    pub fn description(&self, found: exported::Description) -> Checked<Description> {
        if !is_plain(&found.name, 64) || !is_plain(&found.version, 64) {
            return Err(self.bad("its name or version is empty, too long or not plain text"));
        }
        let schema_is_object = found.settings_schema.len() <= SCHEMA_BYTES
            && serde_json::from_str::<serde_json::Value>(&found.settings_schema).is_ok_and(|schema| schema.is_object());
        if !schema_is_object {
            return Err(self.bad("its settings-schema is no JSON object of at most 64 KiB"));
        }
        Ok(Description {
            name: found.name,
            version: found.version,
            best_consistency: words::consistency(found.best_consistency),
            one_instant: found.one_instant,
            tracks_changes: found.tracks_changes,
            runs_outside: found.runs_outside,
            settings_schema: found.settings_schema,
        })
    }

    pub fn disks(&self, found: Vec<wit::Disk>) -> Checked<Vec<DiskInfo>> {
        if found.len() > DISKS {
            return Err(self.bad(format!("{} disks; a machine has at most {DISKS}", found.len())));
        }
        let mut seen = HashSet::new();
        let mut disks = Vec::with_capacity(found.len());
        for disk in found {
            if !is_id(&disk.id) {
                return Err(self.bad(format!(
                    "{:?} is no id of a disk",
                    disk.id.chars().take(ID_BYTES).collect::<String>()
                )));
            }
            if !seen.insert(disk.id.clone()) {
                return Err(self.bad(format!("the disk {} twice", disk.id)));
            }
            self.size(&disk.id, disk.size_bytes)?;
            let label = disk
                .label
                .filter(|label| !label.is_empty())
                .map(|label| plain(&label, 256));
            disks.push(DiskInfo {
                id: DiskId(disk.id),
                size_bytes: disk.size_bytes,
                label,
            });
        }
        Ok(disks)
    }

    fn size(&self, disk: &str, size_bytes: u64) -> Checked<()> {
        if size_bytes > DISK_BYTES {
            return Err(self.bad(format!("the disk {disk} with {size_bytes} bytes")));
        }
        Ok(())
    }

    pub fn findings(&self, found: Vec<wit::Finding>, asked: &[DiskId]) -> Checked<Vec<Finding>> {
        if found.len() > FINDINGS {
            return Err(self.bad(format!("{} findings; at most {FINDINGS} are read", found.len())));
        }
        let known = |id: &String| asked.iter().any(|disk| disk.0 == *id);
        let checked = found.into_iter().map(|finding| {
            if finding.disk.as_ref().is_some_and(|disk| !known(disk)) {
                return Err(self.bad("a finding about a disk that nobody asked about"));
            }
            let level = words::level(finding.level);
            Ok(Finding {
                level,
                disk: finding.disk.map(DiskId),
                text: text(&finding.text),
            })
        });
        checked.collect()
    }

    /// Everything about a snapshot but its sources, which are opened.
    pub fn snapshot(
        &self,
        found: &exported::Snapshot,
        request: &TakeRequest,
        description: &Description,
    ) -> Checked<()> {
        let reached = words::consistency(found.consistency);
        if reached > description.best_consistency {
            return Err(self.bad(format!(
                "{reached:?} consistency, where {:?} is the best it can give",
                description.best_consistency
            )));
        }
        if found.reason.trim().is_empty() || text(&found.reason) != found.reason.trim_end() {
            return Err(self.bad("its reason for the consistency is empty, too long or not plain text"));
        }
        let mut missing: HashSet<&str> = request.disks.iter().map(|disk| disk.0.as_str()).collect();
        for disk in &found.disks {
            if !missing.remove(disk.id.as_str()) {
                let id: String = disk.id.chars().take(ID_BYTES).collect();
                return Err(self.bad(format!("the disk {id:?}, which was not asked for, or twice")));
            }
            self.size(&disk.id, disk.size_bytes)?;
            if let Some(token) = &disk.token
                && (token.is_empty()
                    || token.len() > TOKEN_BYTES
                    || !token.bytes().all(|byte| (0x20..0x7F).contains(&byte)))
            {
                return Err(self.bad(format!(
                    "a change token for disk {} that is empty, too long or not printable",
                    disk.id
                )));
            }
        }
        if let Some(disk) = missing.iter().min() {
            return Err(self.bad(format!("no disk {disk}, which was asked for")));
        }
        self.attachments(&found.attachments)
    }

    fn attachments(&self, found: &[wit::Attachment]) -> Checked<()> {
        if found.len() > ATTACHMENTS {
            return Err(self.bad(format!("{} attachments; at most {ATTACHMENTS} are kept", found.len())));
        }
        let mut names = HashSet::new();
        let mut all_bytes = 0;
        for attachment in found {
            if !is_id(&attachment.name) || !names.insert(&attachment.name) {
                return Err(self.bad("an attachment whose name is odd or there twice"));
            }
            if !is_plain(&attachment.media_type, 128) || !attachment.media_type.contains('/') {
                return Err(self.bad(format!("the attachment {} without a media type", attachment.name)));
            }
            if attachment.content.len() > ATTACHMENT_BYTES {
                let bytes = attachment.content.len();
                return Err(self.bad(format!(
                    "the attachment {} of {bytes} bytes; {ATTACHMENT_BYTES} are allowed",
                    attachment.name
                )));
            }
            all_bytes += attachment.content.len();
        }
        if all_bytes > ATTACHMENTS_BYTES {
            return Err(self.bad(format!(
                "attachments of {all_bytes} bytes together; {ATTACHMENTS_BYTES} are allowed"
            )));
        }
        Ok(())
    }

    /// One step of a listing: after `from`, within the disk, sorted, without overlap. Gives the end of the last.
    pub fn extents(
        &self,
        found: &[wit::Extent],
        from_bytes: u64,
        size_bytes: Option<u64>,
    ) -> Checked<(Vec<Extent>, u64)> {
        if found.len() > EXTENTS_PER_STEP {
            return Err(self.bad(format!(
                "{} extents at once; {EXTENTS_PER_STEP} are allowed",
                found.len()
            )));
        }
        let size_bytes = size_bytes.unwrap_or(DISK_BYTES);
        let mut end_bytes = from_bytes;
        let mut extents = Vec::with_capacity(found.len());
        for extent in found {
            let (offset, length) = (extent.offset, extent.length);
            if length == 0 {
                return Err(self.bad(format!("an empty extent at {offset}")));
            }
            if offset < end_bytes {
                return Err(self.bad(format!(
                    "the extent {offset}+{length}, which overlaps or comes before one that ends at {end_bytes}"
                )));
            }
            end_bytes = offset
                .checked_add(length)
                .filter(|end| *end <= size_bytes)
                .ok_or_else(|| {
                    self.bad(format!(
                        "the extent {offset}+{length}, which ends past the disk's {size_bytes} bytes"
                    ))
                })?;
            extents.push(Extent {
                offset_bytes: offset,
                length_bytes: length,
            });
        }
        Ok((extents, end_bytes))
    }

    pub fn held(&self, found: Vec<String>) -> Checked<Vec<SnapshotId>> {
        if found.len() > HELD_SNAPSHOTS {
            return Err(self.bad(format!("{} snapshots; {HELD_SNAPSHOTS} are believed", found.len())));
        }
        let mut seen = HashSet::new();
        for id in &found {
            if !is_snapshot_id(id) || !seen.insert(id) {
                let id: String = id.chars().take(64).collect();
                return Err(self.bad(format!("{id:?} is no snapshot's id, or there twice")));
            }
        }
        Ok(found.into_iter().map(SnapshotId).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKER: Checker<'_> = Checker {
        plugin: "test",
        call: "changed",
    };

    fn extents(found: &[(u64, u64)], from: u64) -> Checked<(Vec<Extent>, u64)> {
        let found: Vec<_> = found
            .iter()
            .map(|(offset, length)| wit::Extent {
                offset: *offset,
                length: *length,
            })
            .collect();
        CHECKER.extents(&found, from, Some(1000))
    }

    #[test]
    fn extents_must_be_sorted_apart_and_within_the_disk() {
        assert_eq!(
            extents(&[(0, 10), (10, 10), (990, 10)], 0).map(|(_, end)| end).ok(),
            Some(1000)
        );
        for wrong in [
            &[(0, 10), (5, 10)][..],
            &[(20, 10), (0, 10)],
            &[(0, 0)],
            &[(990, 11)],
            &[(u64::MAX, 2)],
            &[(1000, 1)],
        ] {
            assert!(extents(wrong, 0).is_err(), "{wrong:?}");
        }
        assert!(extents(&[(10, 10)], 15).is_err(), "a later step must not go back");
    }

    #[test]
    fn ids_with_odd_letters_are_refused() {
        for id in ["", ".hidden", "-x", "a/b", "a b", "a\n", "ä", &"x".repeat(129)] {
            assert!(!is_id(id), "{id:?}");
        }
        assert!(is_id("virtio-0:a.b_c@d+e"));
    }
}
