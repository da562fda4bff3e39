//! A store each of whose requests asks first whether it may go.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::pace::Pace;

/// Requests inside of one call (pages of a listing, tries after a 5xx) are not counted.
#[derive(Clone, Debug)]
pub(super) struct PacedStore {
    inner: Arc<dyn ObjectStore>,
    pace: Arc<dyn Pace>,
}

impl PacedStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, pace: Arc<dyn Pace>) -> Self {
        Self { inner, pace }
    }
}

impl fmt::Display for PacedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(out)
    }
}

#[async_trait]
impl ObjectStore for PacedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.pace.admit(payload.content_length() as u64).await;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pace.admit(0).await;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pace.admit(0).await;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let one = move |location: Path| {
            let store = store.clone();
            async move {
                store.pace.admit(0).await;
                store.inner.delete(&location).await?;
                Ok(location)
            }
        };
        locations.and_then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            store.pace.admit(0).await;
            store.inner.list(prefix.as_ref())
        };
        stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pace.admit(0).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.pace.admit(0).await;
        self.inner.copy_opts(from, to, options).await
    }
}
