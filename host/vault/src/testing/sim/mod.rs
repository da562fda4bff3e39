//! An object store in virtual time, for the simulation.
//!
//! [`SimWorld`] is what lies in the store, by the store's own clock, and what was done to it. Everybody who uses it does so
//! through a [`SimStore`] of their own, which is one life of one program: it has its own bad luck, and it can die. What a
//! program sent before it died may arrive all the same, as it does in a network.
//!
//! Creating is atomic and reads of one object tell the truth. Listings may be stale or cut short, every answer may be lost,
//! and anything may take hours.

mod store;
mod weather;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectMeta;
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Dice, Request};
pub use store::SimStore;
pub use weather::Weather;

struct Object {
    bytes: Bytes,
    created: Duration,
    /// Kept for listings that are stale.
    deleted: Option<Duration>,
}

struct Act {
    at: Duration,
    who: Arc<str>,
    what: String,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    acts: Vec<Act>,
}

/// What lies in the store, and everything that happened to it.
pub struct SimWorld {
    dice: Dice,
    began: Instant,
    /// What the time really is when the world begins.
    start: Timestamp,
    /// How far the store's clock is off.
    skew: SignedDuration,
    state: Mutex<State>,
}

impl std::fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimWorld({:?})", self.elapsed())
    }
}

impl SimWorld {
    /// Called within a runtime whose clock is paused.
    pub fn new(dice: &Dice, start: Timestamp, skew: SignedDuration) -> Arc<Self> {
        Arc::new(Self {
            dice: dice.of("store"),
            began: Instant::now(),
            start,
            skew,
            state: Mutex::default(),
        })
    }

    /// The way to the store of one life of one program. Names are not used twice, since what happens follows from them.
    pub fn life(self: &Arc<Self>, name: &str, weather: Weather) -> Arc<SimStore> {
        SimStore::new(self, name, weather)
    }

    /// A way to the store where nothing goes wrong and nothing takes time.
    pub fn calm(self: &Arc<Self>, name: &str) -> Arc<SimStore> {
        SimStore::new(self, name, Weather::CALM)
    }

    /// Since the world began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What the time really is.
    pub fn now(&self) -> Timestamp {
        self.start + SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX)
    }

    /// Writes a line of the log that [`SimWorld::log`] shows.
    pub fn note(&self, who: &str, what: impl Into<String>) {
        let act = Act {
            at: self.elapsed(),
            who: who.into(),
            what: what.into(),
        };
        self.state.lock().acts.push(act);
    }

    /// What is there now below a prefix of names, by name.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let state = self.state.lock();
        let there = state.objects.iter().filter(|(_, object)| object.deleted.is_none());
        there
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Since the world began, when an object was made that is there now.
    pub fn created(&self, name: &str) -> Option<Duration> {
        let state = self.state.lock();
        let object = state.objects.get(name)?;
        object.deleted.is_none().then_some(object.created)
    }

    /// When an object was deleted that is not there now.
    pub fn deleted(&self, name: &str) -> Option<Duration> {
        self.state.lock().objects.get(name)?.deleted
    }

    /// What was made below a prefix of names after some time, whether it is there now or not.
    pub fn made_after(&self, prefix: &str, at: Duration) -> Vec<(String, Bytes)> {
        let state = self.state.lock();
        let below = state.objects.iter().filter(|(name, _)| name.starts_with(prefix));
        below
            .filter(|(_, object)| object.created > at)
            .map(|(name, object)| (name.clone(), object.bytes.clone()))
            .collect()
    }

    /// Everything that happened, a line each.
    pub fn log(&self) -> String {
        let mut out = String::new();
        for act in &self.state.lock().acts {
            let seconds = act.at.as_secs();
            let _ = writeln!(
                out,
                "{:>3}d {:02}:{:02}:{:02}.{:03}  {:<22} {}",
                seconds / 86_400,
                seconds / 3600 % 24,
                seconds / 60 % 60,
                seconds % 60,
                act.at.subsec_millis(),
                act.who,
                act.what
            );
        }
        out
    }

    fn meta(&self, name: &str, object: &Object) -> ObjectMeta {
        ObjectMeta {
            location: Path::from(name),
            last_modified: self.store_time(object.created).into(),
            size: object.bytes.len() as u64,
            e_tag: None,
            version: None,
        }
    }

    fn store_time(&self, at: Duration) -> SystemTime {
        let at = SignedDuration::try_from(at).unwrap_or(SignedDuration::MAX);
        let shown = (self.start + at + self.skew).as_duration();
        UNIX_EPOCH + shown.unsigned_abs()
    }

    /// True if the object was not there.
    fn create(&self, name: &str, bytes: Bytes, only_if_absent: bool) -> bool {
        let created = self.elapsed();
        let mut state = self.state.lock();
        let there = state.objects.get(name).is_some_and(|object| object.deleted.is_none());
        if there && only_if_absent {
            return false;
        }
        let object = Object {
            bytes,
            created,
            deleted: None,
        };
        state.objects.insert(name.to_owned(), object);
        true
    }

    fn read(&self, name: &str) -> Option<(ObjectMeta, Bytes)> {
        let state = self.state.lock();
        let object = state.objects.get(name).filter(|object| object.deleted.is_none())?;
        Some((self.meta(name, object), object.bytes.clone()))
    }

    /// True if it was there.
    fn delete(&self, name: &str) -> bool {
        let now = self.elapsed();
        let mut state = self.state.lock();
        match state.objects.get_mut(name) {
            Some(object) if object.deleted.is_none() => {
                object.deleted = Some(now);
                true
            }
            _ => false,
        }
    }

    /// What lay below a folder at some time.
    fn listed(&self, prefix: Option<&Path>, at: Duration) -> Vec<ObjectMeta> {
        let state = self.state.lock();
        let was_there = |object: &Object| object.created <= at && object.deleted.is_none_or(|deleted| deleted > at);
        let below = |name: &str| prefix.is_none_or(|prefix| Path::from(name).prefix_match(prefix).is_some());
        let shown = state
            .objects
            .iter()
            .filter(|(name, object)| was_there(object) && below(name));
        shown.map(|(name, object)| self.meta(name, object)).collect()
    }

    fn dice(&self, who: &str, request: Request, object: &str, occurrence: u64) -> Dice {
        let request = match request {
            Request::Put => "put",
            Request::Overwrite => "overwrite",
            Request::Multipart => "multipart",
            Request::Copy => "copy",
            Request::Get => "get",
            Request::Head => "head",
            Request::List => "list",
            Request::Delete => "delete",
        };
        self.dice.of(who).of(request).nth(object, occurrence)
    }
}
