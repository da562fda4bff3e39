//! What changed between two clones of one image, by where their bytes lie.
//!
//! A range is as it was only if both clones map it to the same place on the medium and nothing says that the place means
//! nothing, or if it is a hole in both. That holds because both clones are there at the same time and neither is ever
//! written to: the file system cannot have given a place to anybody else meanwhile. Everything else has changed.

use coffre_plugin_sdk::storage::{self, Mapped, Mapping};
use coffre_plugin_sdk::{Extent, Step, Steps};

/// What the contract allows at a time.
const EXTENTS_PER_STEP: usize = 65_536;

/// What `storage.extents` gives at a time; fewer are the last.
const PAGE: usize = 65_536;

/// Reads a file's extents page by page, in order, cut at the file's end.
struct Extents {
    path: String,
    size: u64,
    page: std::vec::IntoIter<Mapped>,
    /// Where the next page begins; none: there is no more.
    next_page: Option<u64>,
    current: Option<Mapped>,
}

impl Extents {
    fn new(path: String, size: u64) -> Self {
        Self {
            path,
            size,
            page: Vec::new().into_iter(),
            next_page: Some(0),
            current: None,
        }
    }

    /// The first extent that ends after `position`.
    fn at(&mut self, position: u64) -> Result<Option<Mapped>, coffre_plugin_sdk::Failure> {
        loop {
            if let Some(current) = self.current
                && end(&current) > position
            {
                return Ok(Some(current));
            }
            self.current = match self.page.next() {
                Some(next) => Some(next),
                None => {
                    let Some(from) = self.next_page else { return Ok(None) };
                    if from >= self.size {
                        self.next_page = None;
                        return Ok(None);
                    }
                    let page = storage::extents(&self.path, from)?;
                    let next = page.last().map(end).filter(|next| page.len() >= PAGE && *next > from);
                    self.next_page = next;
                    self.page = page.into_iter();
                    continue;
                }
            };
        }
    }
}

fn end(mapped: &Mapped) -> u64 {
    mapped.extent.offset.saturating_add(mapped.extent.length)
}

/// The state of a file from a position on, and how far it reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Hole,
    At(u64),
    /// Its place says nothing.
    Unclear,
}

fn piece(found: Option<Mapped>, position: u64) -> (Piece, u64) {
    match found {
        None => (Piece::Hole, u64::MAX),
        Some(mapped) if mapped.extent.offset > position => (Piece::Hole, mapped.extent.offset),
        Some(mapped) => {
            let harmless = Mapping::SHARED | Mapping::MERGED;
            let clear = (mapped.traits | harmless) == harmless;
            let place = mapped.location.wrapping_add(position - mapped.extent.offset);
            (if clear { Piece::At(place) } else { Piece::Unclear }, end(&mapped))
        }
    }
}

/// A comparison under way.
pub struct Comparison {
    old: Extents,
    new: Extents,
    position: u64,
}

impl Comparison {
    pub fn new(old: String, old_size: u64, new: String, new_size: u64) -> Self {
        Self {
            old: Extents::new(old, old_size),
            new: Extents::new(new, new_size),
            position: 0,
        }
    }
}

impl Steps for Comparison {
    fn next(&mut self) -> Step {
        let mut found: Vec<Extent> = Vec::new();
        let size = self.new.size;
        // What lies past the old end is new, whatever it is.
        let common = size.min(self.old.size);
        while self.position < size {
            let position = self.position;
            let (changed, until) = if position >= common {
                (true, size)
            } else {
                let (old, old_until) = piece(self.old.at(position)?, position);
                let (new, new_until) = piece(self.new.at(position)?, position);
                let same = old == new && old != Piece::Unclear;
                (!same, old_until.min(new_until).min(common))
            };
            if changed {
                let full = found.len() == EXTENTS_PER_STEP;
                match found.last_mut() {
                    Some(last) if last.offset + last.length == position => last.length += until - position,
                    _ if full => return Ok(found),
                    _ => found.push(Extent {
                        offset: position,
                        length: until - position,
                    }),
                }
            }
            self.position = until;
        }
        Ok(found)
    }
}
