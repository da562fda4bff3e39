//! What changed between two clones of one image, by where their bytes lie.
//!
//! A range is as it was only if both clones map it to the same place on the medium and nothing says that the place means
//! nothing, or if it is a hole in both. That holds because both clones are there at the same time and neither is ever
//! written to: the file system cannot have given a place to anybody else meanwhile. Everything else has changed.

use coffre_plugin_sdk::storage::{self, Mapped, Mapping};
use coffre_plugin_sdk::{Extent, Failure, Step, Steps};

/// What the contract allows at a time.
const EXTENTS_PER_STEP: usize = 65_536;

/// What `storage.extents` gives at a time; fewer are the last.
const PAGE: usize = 65_536;

/// Gives a file's extents from an offset on; at most [`PAGE`], and fewer only at the end.
type Pages = Box<dyn FnMut(u64) -> Result<Vec<Mapped>, Failure>>;

/// Reads a file's extents page by page, in order.
struct Extents {
    pages: Pages,
    size: u64,
    page: std::vec::IntoIter<Mapped>,
    /// Where the next page begins; none: there is no more.
    next_page: Option<u64>,
    current: Option<Mapped>,
}

impl Extents {
    fn new(pages: Pages, size: u64) -> Self {
        Self {
            pages,
            size,
            page: Vec::new().into_iter(),
            next_page: Some(0),
            current: None,
        }
    }

    /// The first extent that ends after `position`.
    fn at(&mut self, position: u64) -> Result<Option<Mapped>, Failure> {
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
                    let page = (self.pages)(from)?;
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
        let of = |path: String| -> Pages { Box::new(move |from| storage::extents(&path, from)) };
        Self::of_pages(of(old), old_size, of(new), new_size)
    }

    fn of_pages(old: Pages, old_size: u64, new: Pages, new_size: u64) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    /// A block of a file: none is a hole, else its place and whether that can be relied on.
    type Block = Option<(u64, bool)>;

    /// Numbers that look random and are the same in every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    /// The extents of a file as a file system would tell them, handed out in short pages.
    fn pages(blocks: &[Block]) -> Pages {
        let mut extents: Vec<Mapped> = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let Some((place, clear)) = block else { continue };
            let traits = if *clear { Mapping::SHARED } else { Mapping::UNWRITTEN };
            let offset = index as u64 * BLOCK;
            match extents.last_mut() {
                Some(last)
                    if end(last) == offset
                        && last.traits == traits
                        && last.location + last.extent.length == place * BLOCK =>
                {
                    last.extent.length += BLOCK;
                }
                _ => extents.push(Mapped {
                    extent: Extent { offset, length: BLOCK },
                    location: place * BLOCK,
                    traits,
                }),
            }
        }
        Box::new(move |from| Ok(extents.iter().filter(|extent| end(extent) > from).copied().collect()))
    }

    fn all(comparison: &mut Comparison) -> Vec<Extent> {
        let mut found = Vec::new();
        loop {
            let step = comparison.next().expect("no failure");
            if step.is_empty() {
                return found;
            }
            found.extend(step);
        }
    }

    #[test]
    fn every_changed_block_is_listed_and_no_unchanged_one() {
        let mut numbers = Numbers(7);
        for _ in 0..2000 {
            let old: Vec<Block> = (0..numbers.below(40))
                .map(|index| (numbers.below(4) > 0).then(|| (index + numbers.below(2) * 100, numbers.below(10) > 0)))
                .collect();
            let mut new = old.clone();
            new.resize(numbers.below(40) as usize, None);
            for block in &mut new {
                match numbers.below(8) {
                    0 => *block = None,
                    1 => *block = Some((numbers.below(200), true)),
                    2 => *block = block.map(|(place, _)| (place, false)),
                    _ => {}
                }
            }
            // The last block need not be whole.
            let cut = if new.is_empty() { 0 } else { numbers.below(BLOCK) };
            let (old_size, new_size) = (old.len() as u64 * BLOCK, new.len() as u64 * BLOCK - cut);
            let found = all(&mut Comparison::of_pages(pages(&old), old_size, pages(&new), new_size));
            let mut last = 0;
            for extent in &found {
                assert!(
                    extent.length > 0 && (extent.offset > last || extent.offset == 0),
                    "{found:?}"
                );
                last = extent.offset + extent.length;
                assert!(last <= new_size, "{found:?}");
            }
            for (index, block) in new.iter().enumerate() {
                let offset = index as u64 * BLOCK;
                let clear = |block: &Block| block.is_none_or(|(_, clear)| clear);
                let same = old.get(index).is_some_and(|old| old == block && clear(block));
                let listed = found
                    .iter()
                    .any(|extent| extent.offset <= offset && offset < extent.offset + extent.length);
                assert_eq!(listed, !same, "block {index}: {old:?} {new:?} {found:?}");
            }
        }
    }

    #[test]
    fn what_is_mapped_past_the_end_does_not_count() {
        let block = |place| Some((place, true));
        let (old, new) = ([block(1), block(2), block(3)], [block(1), block(5), block(6)]);
        let found = all(&mut Comparison::of_pages(
            pages(&old),
            BLOCK + 10,
            pages(&new),
            BLOCK + 10,
        ));
        let found: Vec<_> = found.iter().map(|extent| (extent.offset, extent.length)).collect();
        assert_eq!(found, [(BLOCK, 10)]);
    }
}
