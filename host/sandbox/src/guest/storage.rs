//! The interface `storage`, as a guest imports it.

use super::bindings::coffre::plugin as wit;
use super::calls::Answer;
use super::instance::GuestState;
use crate::acts;
use crate::acts::MappedFlags;
use crate::grant::GrantKind;

use wit::storage::{Entry, Kind, Mapped, Mapping, Status, Usage, UsageState};

impl From<acts::Kind> for Kind {
    fn from(kind: acts::Kind) -> Self {
        match kind {
            acts::Kind::RegularFile => Self::RegularFile,
            acts::Kind::BlockDevice => Self::BlockDevice,
            acts::Kind::Folder => Self::Folder,
            acts::Kind::Other => Self::Other,
        }
    }
}

impl From<MappedFlags> for Mapping {
    fn from(found: MappedFlags) -> Self {
        let names = [
            (MappedFlags::UNKNOWN, Self::UNKNOWN),
            (MappedFlags::DELAYED, Self::DELAYED),
            (MappedFlags::ENCODED, Self::ENCODED),
            (MappedFlags::ENCRYPTED, Self::ENCRYPTED),
            (MappedFlags::NOT_ALIGNED, Self::NOT_ALIGNED),
            (MappedFlags::INLINE, Self::IN_LINE),
            (MappedFlags::TAIL, Self::TAIL),
            (MappedFlags::UNWRITTEN, Self::UNWRITTEN),
            (MappedFlags::MERGED, Self::MERGED),
            (MappedFlags::SHARED, Self::SHARED),
        ];
        let mut flags = Self::empty();
        for (flag, name) in names {
            if found.has(flag) {
                flags |= name;
            }
        }
        // A flag of a newer kernel says something that we do not understand.
        if found.0 & !(names.iter().fold(MappedFlags::LAST, |all, (flag, _)| all | flag)) != 0 {
            flags |= Self::UNKNOWN;
        }
        flags
    }
}

impl wit::storage::Host for GuestState {
    async fn stat(&mut self, path: String) -> Answer<Status> {
        let found = self.ask(move |broker| broker.stat(&path)).await?;
        Ok(found.map(|found| Status {
            kind: found.kind.into(),
            size_bytes: found.size_bytes,
            modified_ns: found.modified_ns,
            file_system: found.file_system.to_owned(),
            file_system_id: found.file_system_id,
        }))
    }

    async fn list_folder(&mut self, path: String) -> Answer<Vec<Entry>> {
        let found = self.ask(move |broker| broker.list_folder(&path)).await?;
        Ok(found.map(|entries| {
            entries
                .into_iter()
                .map(|entry| Entry {
                    name: entry.name,
                    kind: entry.kind.into(),
                })
                .collect()
        }))
    }

    async fn create_folder(&mut self, path: String) -> Answer<()> {
        self.ask(move |broker| broker.create_folder(&path)).await
    }

    async fn extents(&mut self, path: String, offset: u64) -> Answer<Vec<Mapped>> {
        let found = self.ask(move |broker| broker.extents(&path, offset)).await?;
        Ok(found.map(|extents| {
            let mapped = |found: acts::Mapped| Mapped {
                extent: wit::types::Extent {
                    offset: found.offset_bytes,
                    length: found.length_bytes,
                },
                location: found.location_bytes,
                traits: found.flags.into(),
            };
            extents.into_iter().map(mapped).collect()
        }))
    }

    async fn extent_count(&mut self, path: String, at_most: u32) -> Answer<u32> {
        self.ask(move |broker| broker.extent_count(&path, at_most)).await
    }

    async fn reflink(&mut self, source: String, target: String) -> Answer<()> {
        self.ask(move |broker| broker.reflink(&source, &target)).await
    }

    async fn sync(&mut self, path: String) -> Answer<()> {
        self.ask(move |broker| broker.sync(&path)).await
    }

    async fn link(&mut self, source: String, target: String) -> Answer<()> {
        self.ask(move |broker| broker.link(&source, &target)).await
    }

    async fn remove(&mut self, path: String) -> Answer<()> {
        self.ask(move |broker| broker.remove(&path)).await
    }

    async fn freeze(&mut self, mount_point: String, _at_most_ms: u32) -> Answer<()> {
        Ok(Err(self
            .broker
            .later(GrantKind::Freeze, &mount_point, "freezing a file system")
            .into()))
    }

    async fn thaw(&mut self, mount_point: String) -> Answer<()> {
        Ok(Err(self
            .broker
            .later(GrantKind::Freeze, &mount_point, "freezing a file system")
            .into()))
    }

    async fn in_use(&mut self, path: String) -> Answer<Usage> {
        let found = self.ask(move |broker| broker.usage(&path)).await?;
        Ok(found.map(|found| Usage {
            state: match found.state {
                acts::UsageState::Unused => UsageState::Unused,
                acts::UsageState::InUse => UsageState::InUse,
                acts::UsageState::CannotTell => UsageState::CannotTell,
            },
            how: found.how,
        }))
    }
}
