//! Sorted sources as one sorted whole.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

/// Takes from many sorted sources in order, each read as a stream: memory is one item a source. An error comes out at once
/// and ends it.
pub(crate) struct Merged<I, T> {
    sources: Vec<I>,
    heads: BinaryHeap<Reverse<(T, usize)>>,
    failed: Option<io::Error>,
}

impl<I: Iterator<Item = io::Result<T>>, T: Ord> Merged<I, T> {
    pub(crate) fn new(sources: Vec<I>) -> Self {
        let mut merged = Self {
            heads: BinaryHeap::with_capacity(sources.len()),
            sources,
            failed: None,
        };
        for source in 0..merged.sources.len() {
            merged.pull(source);
        }
        merged
    }

    fn pull(&mut self, source: usize) {
        match self.sources[source].next() {
            Some(Ok(item)) => self.heads.push(Reverse((item, source))),
            Some(Err(error)) => self.failed = Some(error),
            None => {}
        }
    }
}

impl<I: Iterator<Item = io::Result<T>>, T: Ord> Iterator for Merged<I, T> {
    type Item = io::Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.heads.clear();
            return Some(Err(error));
        }
        let Reverse((item, source)) = self.heads.pop()?;
        self.pull(source);
        Some(Ok(item))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merged_sources_are_what_sorting_all_of_them_gives(
            mut sources in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..9),
        ) {
            for source in &mut sources {
                source.sort_unstable();
            }
            let mut wanted: Vec<u8> = sources.concat();
            wanted.sort_unstable();
            let streams = sources.into_iter().map(|source| source.into_iter().map(Ok)).collect();
            let merged: Vec<u8> = Merged::new(streams).collect::<io::Result<_>>().unwrap();
            prop_assert_eq!(merged, wanted);
        }
    }

    #[test]
    fn an_error_ends_the_merge() {
        let broken = vec![Ok(1), Err(io::Error::other("disk")), Ok(3)];
        let whole = vec![Ok(0), Ok(2), Ok(4)];
        let mut merged = Merged::new(vec![broken.into_iter(), whole.into_iter()]);
        let seen: Vec<u8> = merged.by_ref().map_while(Result::ok).collect();
        assert_eq!(seen, [0, 1]);
        assert!(merged.next().is_none());
    }
}
