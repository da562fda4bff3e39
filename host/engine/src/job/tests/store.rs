//! A store in memory that loses a commit, before or after it has it.

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What happens to the next object below a prefix that is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutFault {
    /// It never arrives, and no answer comes.
    HangBefore,
    /// It arrives, and no answer comes.
    HangAfter,
}

#[derive(Debug, Default)]
pub struct BreakingStore {
    inner: InMemory,
    fault: Mutex<Option<(&'static str, PutFault)>>,
    pub reached: Notify,
    given_up: Notify,
}

impl BreakingStore {
    pub fn break_at(&self, part: &'static str, fault: PutFault) {
        *self.fault.lock() = Some((part, fault));
    }

    /// Lets go of whoever still hangs. A process that is killed takes its uploads with it; a job that is dropped in a
    /// test does not, and would keep its pack buffers from all other tests.
    pub fn give_up(&self) {
        self.given_up.notify_waiters();
    }
}

impl fmt::Display for BreakingStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("memory")
    }
}

#[async_trait]
impl ObjectStore for BreakingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // The store in memory would keep the writer's own buffer, of which there are few.
        let payload = PutPayload::from(payload.iter().flatten().copied().collect::<Vec<u8>>());
        let fault = {
            let mut fault = self.fault.lock();
            let hit = fault.as_ref().is_some_and(|(part, _)| location.as_ref().contains(part));
            if hit { fault.take() } else { None }
        };
        match fault {
            None => return self.inner.put_opts(location, payload, options).await,
            Some((_, PutFault::HangBefore)) => {}
            Some((_, PutFault::HangAfter)) => drop(self.inner.put_opts(location, payload, options).await?),
        }
        let given_up = self.given_up.notified();
        self.reached.notify_one();
        given_up.await;
        Err(object_store::Error::Generic {
            store: "memory",
            source: "the process is gone".into(),
        })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
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

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
