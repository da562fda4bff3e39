//! A local folder as a store. As object_store has it, but for one thing: the end of a register is listed without making a path
//! of every name before it. Registers are folders whose files are never deleted, and a vault of a hundred thousand sessions is
//! to be cleaned up as fast as a new one.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFutureExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::io::Errno;

use crate::ids::parse_key;

/// Of names at once: some two thousand.
const NAMES_BYTES: usize = 64 * 1024;

/// A folder of this host.
#[derive(Debug)]
pub(super) struct LocalStore {
    inner: LocalFileSystem,
}

impl LocalStore {
    pub(super) fn new(inner: LocalFileSystem) -> Self {
        Self { inner }
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

/// What a register's folder has after a name. What is no number is no object of a register.
fn numbers_after(folder: PathBuf, register: &Path, after: &str) -> Result<Vec<ObjectMeta>> {
    let failed = |source: io::Error| Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(source),
    };
    let opened = open(
        &folder,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let opened = match opened {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error.into())),
    };
    // A register of an old vault has a hundred thousand names, and most are passed over: they are looked at where the kernel
    // puts them.
    let mut names = Vec::with_capacity(NAMES_BYTES);
    let mut entries = RawDir::new(&opened, names.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|error| failed(error.into()))?;
        let name = entry.file_name().to_bytes();
        if name <= after.as_bytes() {
            continue;
        }
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| parse_key(name).is_some()) else {
            continue;
        };
        let path = folder.join(name);
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if metadata.is_file() {
            found.push(ObjectMeta {
                location: register.clone().join(name),
                last_modified: metadata.modified().map_err(failed)?.into(),
                size: metadata.len(),
                e_tag: None,
                version: None,
            });
        }
    }
    Ok(found)
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    /// Of registers only, which is all that this is asked of: the names directly below `prefix` that are numbers.
    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let register = prefix.cloned().unwrap_or_default();
        let folder = match self.inner.path_to_filesystem(&register) {
            Ok(folder) => folder,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let after = match offset.prefix_match(&register) {
            Some(mut parts) => parts.next().map(|part| part.as_ref().to_owned()).unwrap_or_default(),
            None => String::new(),
        };
        let listed = tokio::task::spawn_blocking(move || numbers_after(folder, &register, &after)).map(|listed| {
            let listed = listed.map_err(|source| Error::JoinError { source })?;
            Ok::<_, Error>(stream::iter(listed?).map(Ok))
        });
        listed.try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::PutMode;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_register_is_what_the_store_lists_after_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let store = LocalStore::new(inner);
        for name in [
            "gclog/00000000",
            "gclog/0000000f",
            "gclog/00000010",
            "gclog/00000010#1",
            "gclog2/00000011",
        ] {
            fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            fs::write(folder.path().join(name), name).unwrap();
        }
        store
            .put_opts(&Path::from("gclog/00000012"), "new".into(), PutMode::Create.into())
            .await
            .unwrap();
        for (after, wanted) in [
            ("gclog/00000000", 3),
            ("gclog/0000000f", 2),
            ("gclog/00000012", 0),
            ("gclog/", 4),
        ] {
            let offset = Path::from(after);
            let of = |store: &dyn ObjectStore| store.list_with_offset(Some(&Path::from("gclog")), &offset);
            let mut listed: Vec<ObjectMeta> = of(&store).try_collect().await.unwrap();
            listed.sort_by(|a, b| a.location.cmp(&b.location));
            let mut theirs: Vec<ObjectMeta> = of(&store.inner).try_collect().await.unwrap();
            theirs.sort_by(|a, b| a.location.cmp(&b.location));
            let facts = |all: &[ObjectMeta]| -> Vec<_> {
                all.iter()
                    .map(|meta| (meta.location.clone(), meta.size, meta.last_modified))
                    .collect()
            };
            assert_eq!(facts(&listed), facts(&theirs), "{after}");
            assert_eq!(listed.len(), wanted, "{after}");
        }
        let none = store.list_with_offset(
            Some(&Path::from("points/00000001")),
            &Path::from("points/00000001/00000003"),
        );
        assert!(none.try_collect::<Vec<_>>().await.unwrap().is_empty());
    }
}
