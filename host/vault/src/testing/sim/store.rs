//! One program's way to the store, for one life of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::weather::{Death, Fortune, Shown};
use super::{SimWorld, Weather};
use crate::testing::{Fault, Request};

/// An [`ObjectStore`] over a [`SimWorld`].
#[derive(Clone)]
pub struct SimStore {
    life: Arc<Life>,
}

struct Life {
    world: Arc<SimWorld>,
    name: Arc<str>,
    weather: Weather,
    /// How often each object was asked for in each way.
    occurrences: Mutex<HashMap<(Request, String), u64>>,
    dead: AtomicBool,
    died: Notify,
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated store")
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStore({})", self.life.name)
    }
}

impl SimStore {
    pub(super) fn new(world: &Arc<SimWorld>, name: &str, weather: Weather) -> Arc<Self> {
        let life = Life {
            world: Arc::clone(world),
            name: name.into(),
            weather,
            occurrences: Mutex::default(),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        };
        Arc::new(Self { life: Arc::new(life) })
    }

    /// Ends this life: nothing leaves any more, and no answer is heard.
    pub fn kill(&self) {
        self.life.kill("is killed");
    }

    pub fn is_dead(&self) -> bool {
        self.life.dead.load(Ordering::Acquire)
    }

    /// Comes back when this life is over.
    pub async fn died(&self) {
        while !self.is_dead() {
            let died = self.life.died.notified();
            if !self.is_dead() {
                died.await;
            }
        }
    }

    /// Does `act` at the store, and brings back its answer.
    async fn request<T: Send + 'static>(
        &self,
        request: Request,
        object: &str,
        act: impl FnOnce(&SimWorld, &Fortune) -> (Result<T>, String) + Send + 'static,
    ) -> Result<T> {
        let life = &self.life;
        let fortune = life.fortune(request, object);
        if !life.weather.takes_time {
            let (answer, _) = act(&life.world, &fortune);
            return answer;
        }
        life.live_on(fortune.before, fortune.death == Some(Death::Before)).await;
        // From here on the request is on its way, whatever becomes of the program that sent it.
        let (there, object_there, fortune_there) = (Arc::clone(life), object.to_owned(), fortune.clone());
        let arrival = tokio::spawn(async move {
            sleep(fortune_there.way).await;
            there.arrive(request, &object_there, &fortune_there, act)
        });
        if fortune.death == Some(Death::During) {
            life.kill(&format!("dies while it waits for {request:?} {}", named(object)));
        }
        let answer = tokio::select! {
            biased;
            () = self.died() => std::future::pending().await,
            answer = arrival => answer,
        };
        life.live_on(fortune.after, fortune.death == Some(Death::After)).await;
        answer.unwrap_or_else(|panicked| Err(broken(&panicked.to_string())))
    }
}

impl Life {
    fn fortune(&self, request: Request, object: &str) -> Fortune {
        let occurrence = {
            let mut occurrences = self.occurrences.lock();
            let counted = occurrences.entry((request, object.to_owned())).or_default();
            *counted += 1;
            *counted
        };
        let dice = self.world.dice(&self.name, request, named(object), occurrence);
        Fortune::draw(dice, request, object, &self.weather)
    }

    fn kill(&self, how: &str) {
        if !self.dead.swap(true, Ordering::AcqRel) {
            self.world.note(&self.name, how);
            self.died.notify_waiters();
        }
    }

    /// Some time goes by. For the dead it never ends.
    async fn live_on(&self, time: Duration, dies: bool) {
        sleep(time).await;
        if dies {
            self.kill("dies");
        }
        if self.dead.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }

    /// The store does as it was asked, or not.
    fn arrive<T>(
        &self,
        request: Request,
        object: &str,
        fortune: &Fortune,
        act: impl FnOnce(&SimWorld, &Fortune) -> (Result<T>, String),
    ) -> Result<T> {
        let line = format!("{request:?} {}", named(object));
        let (answer, said) = match fortune.fault {
            None => act(&self.world, fortune),
            Some(Fault::ConflictWithNothingStored) => (
                Err(already_there(object)),
                "nothing done, answered: already there".to_owned(),
            ),
            Some(Fault::Refuse | Fault::NotFound) => (Err(broken("503")), "nothing done, answered: 503".to_owned()),
            Some(fault) => {
                let (answer, said) = act(&self.world, fortune);
                let lost = match (fault, answer) {
                    (_, Err(error)) => error,
                    (Fault::AlreadyThere, Ok(_)) => already_there(object),
                    (_, Ok(_)) => broken("503 after the act"),
                };
                let shown = format!("{said}, but answered: {}", short(&lost));
                (Err(lost), shown)
            }
        };
        self.world.note(&self.name, format!("{line}: {said}"));
        answer
    }
}

/// Slots have random names. What happens, and what is told of it, shall not depend on them.
fn named(object: &str) -> &str {
    if object.starts_with("keys/") {
        "a key slot"
    } else {
        object
    }
}

fn short(error: &Error) -> &'static str {
    match error {
        Error::AlreadyExists { .. } => "already there",
        _ => "503",
    }
}

fn broken(what: &str) -> Error {
    Error::Generic {
        store: "simulated",
        source: what.into(),
    }
}

fn already_there(object: &str) -> Error {
    Error::AlreadyExists {
        path: object.to_owned(),
        source: "simulated".into(),
    }
}

fn not_found(object: &str) -> Error {
    Error::NotFound {
        path: object.to_owned(),
        source: "simulated".into(),
    }
}

fn joined(payload: &PutPayload) -> Bytes {
    let mut all = Vec::with_capacity(payload.content_length());
    payload.iter().for_each(|part| all.extend_from_slice(part));
    all.into()
}

fn shown(mut all: Vec<ObjectMeta>, fortune: &Fortune) -> Vec<ObjectMeta> {
    match fortune.shown {
        Shown::All | Shown::AsOf(_) => {}
        Shown::First(parts) => all.truncate(all.len() * parts as usize / 256),
        Shown::AllBut(one_in) => all.retain(|meta| !fortune.dice.of(meta.location.as_ref()).once_in(one_in)),
    }
    all
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (name, bytes) = (location.to_string(), joined(&payload));
        let only_if_absent = opts.mode == PutMode::Create;
        let act = move |world: &SimWorld, _: &Fortune| {
            if world.create(&name, bytes, only_if_absent) {
                let done = PutResult {
                    e_tag: None,
                    version: None,
                    extensions: Default::default(),
                };
                (Ok(done), "created".to_owned())
            } else {
                (Err(already_there(&name)), "already there".to_owned())
            }
        };
        self.request(Request::Put, location.as_ref(), act).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(broken("multipart uploads cannot be conditional and are not used"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let request = if options.head { Request::Head } else { Request::Get };
        let name = location.to_string();
        let act = move |world: &SimWorld, _: &Fortune| {
            let Some((meta, bytes)) = world.read(&name) else {
                return (Err(not_found(&name)), "nothing is there".to_owned());
            };
            match get_result(meta, bytes, options) {
                Ok(result) => (Ok(result), "read".to_owned()),
                Err(error) => (Err(error), "out of range".to_owned()),
            }
        };
        self.request(request, location.as_ref(), act).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let one = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                let name = location.to_string();
                let act = move |world: &SimWorld, _: &Fortune| {
                    let was_there = world.delete(&name);
                    (Ok(()), if was_there { "deleted" } else { "was not there" }.to_owned())
                };
                store.request(Request::Delete, location.as_ref(), act).await?;
                Ok(location)
            }
        };
        locations.then(one).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let object = prefix.as_ref().map_or(String::new(), Path::to_string);
        let listing = async move {
            let act = move |world: &SimWorld, fortune: &Fortune| {
                let at = match fortune.shown {
                    Shown::AsOf(ago) => world.elapsed().saturating_sub(ago),
                    _ => world.elapsed(),
                };
                let all = world.listed(prefix.as_ref(), at);
                let found = shown(all, fortune);
                let said = match fortune.shown {
                    Shown::All => format!("{} objects", found.len()),
                    Shown::AsOf(ago) => format!("{} objects, as of {} s ago", found.len(), ago.as_secs()),
                    Shown::First(_) => format!("{} objects, cut short", found.len()),
                    Shown::AllBut(_) => format!("{} objects, with gaps", found.len()),
                };
                (Ok(found), said)
            };
            match store.request(Request::List, &object, act).await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listing).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(broken("listings with a delimiter are not used"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(broken("copies are not used"))
    }
}

fn get_result(meta: ObjectMeta, bytes: Bytes, options: GetOptions) -> Result<GetResult> {
    let range = match options.range {
        Some(range) => range.as_range(meta.size).map_err(|error| broken(&error.to_string()))?,
        None => 0..meta.size,
    };
    let part = if options.head {
        Bytes::new()
    } else {
        bytes.slice(range.start as usize..range.end as usize)
    };
    Ok(GetResult {
        payload: GetResultPayload::Stream(stream::once(async move { Ok(part) }).boxed()),
        meta,
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    })
}
