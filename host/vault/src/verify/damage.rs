//! Collecting what is wrong, by object, with everything that it touches.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Damage, Touched};
use crate::ids::SessionNumber;
use crate::read::ReadError;

/// More ranges of one disk than this are told as fewer, larger ones: a lost pack can touch a range per page.
const RANGES_LIMIT: usize = 1024;

/// Chunks that are nowhere are told one by one up to so many. More of them lie below lost pieces of the index, which are
/// told by name.
pub(super) const MISSING_LIMIT: u64 = 256;
/// What the others are told as.
const MORE_CHUNKS: &str = "chunk …";

type Where = (String, SessionNumber, Option<String>);

#[derive(Clone, Default)]
struct Finding {
    what: String,
    touches: BTreeMap<Where, Vec<Range<u64>>>,
}

/// What is wrong so far.
#[derive(Clone, Default)]
pub(super) struct Findings {
    by_object: BTreeMap<String, Finding>,
    /// Times that a point needs a chunk which no piece of the index lists.
    chunks_lost: u64,
}

impl Findings {
    pub(super) fn count(&self) -> u64 {
        self.by_object.len() as u64
    }

    pub(super) fn chunks_lost(&self) -> u64 {
        self.chunks_lost
    }

    /// The first word on an object stands; what it touches is added up.
    pub(super) fn add(&mut self, object: &str, what: &str, touched: Option<Touched>) {
        let finding = self.by_object.entry(object.to_owned()).or_default();
        if finding.what.is_empty() {
            finding.what = what.to_owned();
        }
        if let Some(touched) = touched {
            let ranges = finding
                .touches
                .entry((touched.machine, touched.point, touched.disk))
                .or_default();
            for range in touched.ranges {
                push(ranges, range);
            }
        }
    }

    pub(super) fn names(&self, object: &str) -> bool {
        self.by_object.contains_key(object)
    }

    /// Says what is wrong with an object, whatever was said before.
    pub(super) fn describe(&mut self, object: &str, what: String) {
        self.by_object.entry(object.to_owned()).or_default().what = what;
    }

    pub(super) fn add_error(&mut self, error: ReadError, touched: Option<Touched>) {
        let (object, what) = match error {
            ReadError::ChunkMissing(id) => {
                self.chunks_lost += 1;
                let name = format!("chunk {id}");
                if self.chunks_lost <= MISSING_LIMIT || self.by_object.contains_key(&name) {
                    (name, "no piece of the index lists it".to_owned())
                } else {
                    let what = format!("no piece of the index lists {} more", self.chunks_lost - MISSING_LIMIT);
                    self.describe(MORE_CHUNKS, what.clone());
                    (MORE_CHUNKS.to_owned(), what)
                }
            }
            ReadError::PackMissing(pack) => (format!("packs/{pack}"), "it is not there".to_owned()),
            ReadError::ChunkDamaged { id, pack, what } => (format!("packs/{pack}"), format!("chunk {id}: {what}")),
            ReadError::Damaged { object, what } => (object, what),
            other => (String::new(), other.to_string()),
        };
        self.add(&object, &what, touched);
    }

    /// For what could not be read: damage is a finding, anything else is the caller's to tell.
    pub(super) fn add_unread(&mut self, error: ReadError) -> Result<(), ReadError> {
        if error.is_damage() {
            self.add_error(error, None);
            Ok(())
        } else {
            Err(error)
        }
    }

    pub(super) fn into_damage(self) -> Vec<Damage> {
        let damage = self.by_object.into_iter().map(|(object, finding)| {
            let touches = finding
                .touches
                .into_iter()
                .map(|((machine, point, disk), ranges)| Touched {
                    machine,
                    point,
                    disk,
                    ranges,
                })
                .collect();
            Damage {
                object,
                what: finding.what,
                touches,
            }
        });
        damage.collect()
    }
}

/// Ranges come mostly in disk order; neighbours become one.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if let Some(last) = ranges.last_mut()
        && last.start <= range.start
        && range.start <= last.end
    {
        last.end = last.end.max(range.end);
        return;
    }
    if ranges.len() < RANGES_LIMIT {
        ranges.push(range);
    } else if let Some(last) = ranges.last_mut() {
        last.start = last.start.min(range.start);
        last.end = last.end.max(range.end);
    }
}
