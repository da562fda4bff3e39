//! A store that does what stores do on their bad days: loses acknowledgements, answers 409 with nothing stored, ignores
//! put-if-absent, leaves objects out of listings, damages and loses them. For tests only.

mod dice;
pub mod fuzz;
mod mortal;
mod records;
mod sim;
pub mod synthetic;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

pub use crate::offload::InPlace;
pub use dice::Dice;
pub use mortal::{Death, MortalStore};
pub use records::{open_object, packs_of_piece, write_log};
pub use sim::{SimStore, SimWorld, Weather};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and an error says so.
    Refuse,
    /// It is done, and the answer is an error: a connection that breaks, a 503 after the act.
    LoseAnswer,
    /// It is done, and the answer is "already there": what a retry within the client meets.
    AlreadyThere,
    /// Nothing is done, and the answer is "already there": S3's 409 for two at once.
    ConflictWithNothingStored,
    /// Reads and deletes only: 404.
    NotFound,
    /// Nothing is done, since whoever asks may not: a role, a retention time.
    Deny,
}

/// How faithful creates are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Creates {
    #[default]
    Atomic,
    /// `If-None-Match` is taken and not looked at.
    Overwrite,
    /// Looks whether something is there, and some time later writes.
    NotAtomic,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Put-if-absent.
    Put,
    /// A put that replaces what is there, or updates it.
    Overwrite,
    /// A put in parts, which cannot be conditional.
    Multipart,
    Get,
    Head,
    List,
    Delete,
    /// And rename.
    Copy,
}

struct Rule {
    request: Request,
    prefix: String,
    fault: Fault,
    /// Requests that pass before the first fault.
    after: usize,
    times: usize,
}

#[derive(Default)]
struct State {
    creates: Creates,
    rules: Vec<Rule>,
    hidden: Vec<String>,
    hidden_once: Vec<String>,
    seen: Vec<(Request, String)>,
    /// How many requests are left until the one at which the client dies, and what becomes of that one.
    dies: Option<(usize, Fault)>,
    /// What the store's clock is ahead of this host's.
    ahead: Duration,
    /// The same when each object was written; what is not here was written before the clock was set.
    written_ahead: HashMap<String, Duration>,
}

/// An object store in memory, or another one, with faults.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    /// Shared with the streams of listings and deletions.
    state: Arc<Mutex<State>>,
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store with faults")
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FaultStore {
    pub fn in_memory() -> Arc<Self> {
        Self::over(Arc::new(InMemory::new()))
    }

    pub fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            state: Arc::default(),
        })
    }

    pub fn set_creates(&self, creates: Creates) {
        self.state.lock().creates = creates;
    }

    /// The next `times` requests of this kind to objects below `prefix` meet a fault.
    pub fn inject(&self, request: Request, prefix: &str, fault: Fault, times: usize) {
        self.inject_after(request, prefix, 0, fault, times);
    }

    /// The same, once `after` such requests have passed.
    pub fn inject_after(&self, request: Request, prefix: &str, after: usize, fault: Fault, times: usize) {
        self.state.lock().rules.push(Rule {
            request,
            prefix: prefix.to_owned(),
            fault,
            after,
            times,
        });
    }

    /// The client dies at the request after the next `requests`: that one meets `fault`, and all later ones are refused until
    /// the store is healed.
    pub fn die_after(&self, requests: usize, fault: Fault) {
        self.state.lock().dies = Some((requests, fault));
    }

    /// Whether the client has died.
    pub fn is_dead(&self) -> bool {
        matches!(self.state.lock().dies, Some((0, Fault::Refuse)))
    }

    /// Time passes in the store. What was written before grows older by it.
    pub fn pass_time(&self, time: Duration) {
        self.state.lock().ahead += time;
    }

    /// An object is from the future, as a store says whose clock was set back since.
    pub fn date_ahead(&self, object: &str, time: Duration) {
        *self.state.lock().written_ahead.entry(object.to_owned()).or_default() += time;
    }

    /// Forgets the faults that have not happened yet.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.dies = None;
        state.rules.clear();
        state.hidden.clear();
        state.hidden_once.clear();
    }

    /// Leaves objects below `prefix` out of listings from now on.
    pub fn hide(&self, prefix: &str) {
        self.state.lock().hidden.push(prefix.to_owned());
    }

    /// Leaves objects below `prefix` out of the next listing that would show some.
    pub fn hide_once(&self, prefix: &str) {
        self.state.lock().hidden_once.push(prefix.to_owned());
    }

    /// Every request so far, in order.
    pub fn seen(&self) -> Vec<(Request, String)> {
        self.state.lock().seen.clone()
    }

    pub fn forget_seen(&self) {
        self.state.lock().seen.clear();
    }

    /// The names of all objects below a prefix, sorted, without any fault.
    pub async fn names(&self, prefix: &str) -> Vec<String> {
        let all: Vec<ObjectMeta> = self
            .inner
            .list(None)
            .try_collect()
            .await
            .expect("the inner store lists");
        let mut names: Vec<String> = all.into_iter().map(|meta| meta.location.to_string()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort();
        names
    }

    pub async fn bytes(&self, object: &str) -> Bytes {
        let result = self.inner.get(&Path::from(object)).await.expect("the object is there");
        result.bytes().await.expect("the inner store reads")
    }

    /// Overwrites an object behind everybody's back.
    pub async fn replace(&self, object: &str, bytes: impl Into<Bytes>) {
        let payload = PutPayload::from(bytes.into());
        self.inner
            .put(&Path::from(object), payload)
            .await
            .expect("the inner store writes");
    }

    /// Flips one bit of an object.
    pub async fn flip(&self, object: &str, at: usize) {
        let mut bytes = self.bytes(object).await.to_vec();
        bytes[at] ^= 1;
        self.replace(object, bytes).await;
    }

    /// Loses an object.
    pub async fn lose(&self, object: &str) {
        self.inner
            .delete(&Path::from(object))
            .await
            .expect("the inner store deletes");
    }

    fn fault(&self, request: Request, location: &Path) -> Option<Fault> {
        self.state.lock().fault(request, location)
    }

    async fn put_really(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        let creates = self.state.lock().creates;
        if opts.mode == PutMode::Create {
            match creates {
                Creates::Atomic => {}
                Creates::Overwrite => opts.mode = PutMode::Overwrite,
                Creates::NotAtomic => {
                    if self.inner.head(location).await.is_ok() {
                        return Err(already_there(location));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    opts.mode = PutMode::Overwrite;
                }
            }
        }
        let put = self.inner.put_opts(location, payload, opts).await?;
        let mut state = self.state.lock();
        let ahead = state.ahead;
        state.written_ahead.insert(location.to_string(), ahead);
        Ok(put)
    }
}

impl State {
    fn fault(&mut self, request: Request, location: &Path) -> Option<Fault> {
        self.seen.push((request, location.to_string()));
        match &mut self.dies {
            Some((0, fault)) => return Some(std::mem::replace(fault, Fault::Refuse)),
            Some((requests, _)) => *requests -= 1,
            None => {}
        }
        let matching =
            |rule: &&mut Rule| rule.times > 0 && rule.request == request && location.as_ref().starts_with(&rule.prefix);
        let rule = self.rules.iter_mut().find(matching)?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }

    /// Says when an object was written by the store's clock.
    fn date(&self, meta: &mut ObjectMeta) {
        meta.last_modified += self
            .written_ahead
            .get(meta.location.as_ref())
            .copied()
            .unwrap_or_default();
    }
}

async fn delete(inner: Arc<dyn ObjectStore>, fault: Option<Fault>, location: Path) -> Result<Path> {
    match fault {
        None => {}
        Some(Fault::Deny) => return Err(denied(&location)),
        Some(Fault::LoseAnswer) => {
            inner.delete(&location).await?;
            return Err(broken("503 after the act"));
        }
        Some(_) => return Err(broken("refused")),
    }
    inner.delete(&location).await?;
    Ok(location)
}

fn denied(location: &Path) -> Error {
    Error::PermissionDenied {
        path: location.to_string(),
        source: "injected".into(),
    }
}

fn broken(what: &'static str) -> Error {
    Error::Generic {
        store: "fault",
        source: what.into(),
    }
}

fn already_there(location: &Path) -> Error {
    Error::AlreadyExists {
        path: location.to_string(),
        source: "injected".into(),
    }
}

fn not_found(location: &Path) -> Error {
    Error::NotFound {
        path: location.to_string(),
        source: "injected".into(),
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let request = match opts.mode {
            PutMode::Create => Request::Put,
            PutMode::Overwrite | PutMode::Update(_) => Request::Overwrite,
        };
        match self.fault(request, location) {
            None => self.put_really(location, payload, opts).await,
            Some(Fault::Refuse | Fault::NotFound) => Err(broken("refused")),
            Some(Fault::Deny) => Err(denied(location)),
            Some(Fault::LoseAnswer) => {
                self.put_really(location, payload, opts).await?;
                Err(broken("503 after the act"))
            }
            Some(Fault::AlreadyThere) => {
                self.put_really(location, payload, opts).await?;
                Err(already_there(location))
            }
            Some(Fault::ConflictWithNothingStored) => Err(already_there(location)),
        }
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.fault(Request::Multipart, location);
        Err(broken("multipart uploads cannot be conditional and are not used"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let request = if options.head { Request::Head } else { Request::Get };
        match self.fault(request, location) {
            None => {
                let mut result = self.inner.get_opts(location, options).await?;
                self.state.lock().date(&mut result.meta);
                Ok(result)
            }
            Some(Fault::Deny) => Err(denied(location)),
            Some(Fault::NotFound) => Err(not_found(location)),
            Some(_) => Err(broken("refused")),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        locations
            .and_then(move |location| {
                let fault = state.lock().fault(Request::Delete, &location);
                delete(Arc::clone(&inner), fault, location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.fault(Request::List, prefix.unwrap_or(&Path::default())).is_some() {
            return futures::stream::once(async { Err(broken("refused")) }).boxed();
        }
        let state = Arc::clone(&self.state);
        let hidden = {
            let mut state = state.lock();
            let asked = prefix.map(Path::as_ref).unwrap_or_default();
            let hidden_once = std::mem::take(&mut state.hidden_once);
            let (now, later): (Vec<String>, _) = hidden_once.into_iter().partition(|name| name.starts_with(asked));
            state.hidden_once = later;
            [state.hidden.as_slice(), &now].concat()
        };
        let shown = move |meta: &ObjectMeta| !hidden.iter().any(|prefix| meta.location.as_ref().starts_with(prefix));
        self.inner
            .list(prefix)
            .try_filter(move |meta| futures::future::ready(shown(meta)))
            .map_ok(move |mut meta| {
                state.lock().date(&mut meta);
                meta
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.fault(Request::Copy, to);
        self.inner.copy_opts(from, to, options).await
    }
}
