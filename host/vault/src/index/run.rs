//! One sorted run of fixed-size records on local disk, found by the leading bits of their keys.
//!
//! ```text
//! records     count × N bytes, sorted; the first 20 bytes of each are its key
//! starts      (2^bits + 1) × u32 LE: where the records begin whose key has these leading bits
//! footer      magic "COFRUN01" | record size u32 LE | bits u32 LE | count u64 LE | BLAKE3 of the starts, 8 bytes
//! ```
//! Keys are hashes, so every bucket of leading bits holds about [`BUCKET_RECORDS`] records: a lookup is one read of about
//! 3 KiB where the starts fit into memory, else two.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) const KEY_BYTES: usize = 20;
const MAGIC: &[u8; 8] = b"COFRUN01";
const FOOTER_BYTES: usize = 32;
const BUCKET_RECORDS: u64 = 64;
/// Starts of at most 64 KiB are kept in memory: a run of a million records. Those of a larger run are read where they are, so
/// that what a table has in memory does not grow with it; there are few, and the system keeps what is often read.
const STARTS_IN_MEMORY_BITS: u32 = 14;
/// Starts of 16 MiB: beyond 268 million records buckets grow instead.
const BITS_LIMIT: u32 = 22;
/// Of the starts at once, in memory.
const STARTS_BUFFER_BYTES: usize = 64 * 1024;
/// A read goes this far; a bucket that is larger is read in several.
const READ_RECORDS: usize = 4096;

/// A run that is open for reading. Its file may be unlinked meanwhile.
#[derive(Debug)]
pub(super) struct Run<const N: usize> {
    file: File,
    path: PathBuf,
    bits: u32,
    count: u64,
    starts: Option<Vec<u32>>,
}

impl<const N: usize> Run<N> {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let at = size
            .checked_sub(FOOTER_BYTES as u64)
            .ok_or_else(|| broken("too short"))?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, at)?;
        let number = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
        let (record, bits) = (number(8) as usize, number(12));
        let count = u64::from(number(16)) | u64::from(number(20)) << 32;
        if &footer[..8] != MAGIC || record != N || bits > BITS_LIMIT || count > u64::from(u32::MAX) {
            return Err(broken("no run of these records"));
        }
        let starts_bytes = ((1u64 << bits) + 1) * 4;
        if size != count * N as u64 + starts_bytes + FOOTER_BYTES as u64 {
            return Err(broken("cut short"));
        }
        let mut starts = (bits <= STARTS_IN_MEMORY_BITS).then(|| Vec::with_capacity((1 << bits) + 1));
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; starts_bytes.min(STARTS_BUFFER_BYTES as u64) as usize];
        let mut done = 0;
        while done < starts_bytes {
            let length = (starts_bytes - done).min(buffer.len() as u64) as usize;
            let bytes = &mut buffer[..length];
            file.read_exact_at(bytes, count * N as u64 + done)?;
            hasher.update(bytes);
            if let Some(starts) = &mut starts {
                let numbers = bytes.chunks_exact(4);
                starts.extend(numbers.map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])));
            }
            done += length as u64;
        }
        if hasher.finalize().as_bytes()[..8] != footer[24..] {
            return Err(broken("damaged"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            bits,
            count,
            starts,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn range(&self, bucket: u32) -> io::Result<(u64, u64)> {
        if let Some(starts) = &self.starts {
            return Ok((starts[bucket as usize].into(), starts[bucket as usize + 1].into()));
        }
        let mut pair = [0; 8];
        self.file
            .read_exact_at(&mut pair, self.count * N as u64 + u64::from(bucket) * 4)?;
        let start = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
        let end = u32::from_le_bytes([pair[4], pair[5], pair[6], pair[7]]);
        Ok((start.into(), end.into()))
    }

    /// Every record with this key.
    pub(super) fn lookup(&self, key: &[u8; KEY_BYTES], found: &mut Vec<[u8; N]>) -> io::Result<()> {
        self.find(key, found).map(|_| ())
    }

    /// The same, and where in the run the first of them stands.
    pub(super) fn find(&self, key: &[u8; KEY_BYTES], found: &mut Vec<[u8; N]>) -> io::Result<Option<u64>> {
        let (start, end) = self.range(bucket(key, self.bits))?;
        if start > end || end > self.count {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a run of the local index is damaged",
            ));
        }
        let mut at = start;
        let mut first = None;
        let mut buffer = [0; 4096];
        let whole = buffer.len() / N;
        while at < end {
            let records = (end - at).min(whole as u64) as usize;
            let bytes = &mut buffer[..records * N];
            self.file.read_exact_at(bytes, at * N as u64)?;
            for (record, ordinal) in bytes.chunks_exact(N).zip(at..) {
                match record[..KEY_BYTES].cmp(key) {
                    Ordering::Less => {}
                    Ordering::Equal => {
                        first.get_or_insert(ordinal);
                        found.extend(<[u8; N]>::try_from(record));
                    }
                    Ordering::Greater => return Ok(first),
                }
            }
            at += records as u64;
        }
        Ok(first)
    }

    /// All records in order.
    pub(super) fn records(&self) -> Records<'_, N> {
        Records {
            run: self,
            next: 0,
            buffer: Vec::new(),
            at: 0,
        }
    }
}

fn bucket(key: &[u8], bits: u32) -> u32 {
    let leading = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    if bits == 0 { 0 } else { leading >> (32 - bits) }
}

/// Reads a run from its beginning.
pub(super) struct Records<'a, const N: usize> {
    run: &'a Run<N>,
    next: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<const N: usize> Iterator for Records<'_, N> {
    type Item = io::Result<[u8; N]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.buffer.len() {
            let records = (self.run.count - self.next).min(READ_RECORDS as u64) as usize;
            if records == 0 {
                return None;
            }
            self.buffer.resize(records * N, 0);
            if let Err(error) = self.run.file.read_exact_at(&mut self.buffer, self.next * N as u64) {
                return Some(Err(error));
            }
            self.next += records as u64;
            self.at = 0;
        }
        let record = self.buffer[self.at..self.at + N]
            .try_into()
            .expect("the buffer holds whole records");
        self.at += N;
        Some(Ok(record))
    }
}

/// The starts of a run that is being written, on local disk until its records are: they stand behind them.
struct Starts {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    written: u64,
}

impl Starts {
    /// The file has no name: it is gone when the process is.
    fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            out: BufWriter::with_capacity(STARTS_BUFFER_BYTES, tempfile::tempfile_in(folder)?),
            hasher: blake3::Hasher::new(),
            written: 0,
        })
    }

    /// All up to the `starts`-th that are not written yet are `start`.
    fn fill(&mut self, starts: u64, start: u32) -> io::Result<()> {
        while self.written < starts {
            let bytes = start.to_le_bytes();
            self.hasher.update(&bytes);
            self.out.write_all(&bytes)?;
            self.written += 1;
        }
        Ok(())
    }

    /// Gives the hash of what is appended.
    fn append_to(self, out: &mut impl Write) -> io::Result<blake3::Hash> {
        let mut file = self.out.into_inner().map_err(|error| error.into_error())?;
        file.rewind()?;
        io::copy(&mut file, out)?;
        Ok(self.hasher.finalize())
    }
}

/// Writes a run of at most `at_most` records, which come sorted; equal neighbours become one. The file is on disk when
/// this returns, since the manifest will name it.
pub(super) fn write<const N: usize>(
    path: &Path,
    at_most: u64,
    records: impl Iterator<Item = io::Result<[u8; N]>>,
) -> io::Result<()> {
    let buckets = (at_most / BUCKET_RECORDS).max(1);
    let bits = (u64::BITS - 1 - buckets.leading_zeros()).min(BITS_LIMIT);
    let mut starts = Starts::new(path.parent().unwrap_or(Path::new(".")))?;
    let mut out = BufWriter::with_capacity(256 * 1024, File::create(path)?);
    let mut count: u32 = 0;
    let mut last: Option<[u8; N]> = None;
    for record in records {
        let record = record?;
        if last.is_some_and(|last| last == record) {
            continue;
        }
        debug_assert!(last.is_none_or(|last| last < record), "records come sorted");
        starts.fill(u64::from(bucket(&record, bits)) + 1, count)?;
        out.write_all(&record)?;
        count = count
            .checked_add(1)
            .ok_or_else(|| io::Error::other("too many records for one run"))?;
        last = Some(record);
    }
    starts.fill((1 << bits) + 1, count)?;
    let hash = starts.append_to(&mut out)?;
    out.write_all(MAGIC)?;
    out.write_all(&(N as u32).to_le_bytes())?;
    out.write_all(&bits.to_le_bytes())?;
    out.write_all(&u64::from(count).to_le_bytes())?;
    out.write_all(&hash.as_bytes()[..8])?;
    out.into_inner().map_err(|error| error.into_error())?.sync_data()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::index::merge::Merged;

    fn record(key: u32, value: u8) -> [u8; 24] {
        let mut record = [value; 24];
        record[..4].copy_from_slice(&key.to_be_bytes());
        record[4..KEY_BYTES].fill(0);
        record
    }

    fn look(run: &Run<24>, key: u32) -> Vec<[u8; 24]> {
        let mut found = Vec::new();
        let key: [u8; KEY_BYTES] = record(key, 0)[..KEY_BYTES].try_into().unwrap();
        run.lookup(&key, &mut found).unwrap();
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn runs_find_what_a_set_finds(
            keys in proptest::collection::vec((any::<u32>(), 0u8..3), 0..800),
            near in proptest::collection::vec((0u32..50, 0u8..3), 0..800),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let sides: Vec<BTreeSet<[u8; 24]>> =
                [&keys, &near].iter().map(|side| side.iter().map(|(k, v)| record(*k, *v)).collect()).collect();
            let runs: Vec<Run<24>> = sides.iter().enumerate().map(|(i, side)| {
                let path = folder.path().join(i.to_string());
                write(&path, side.len() as u64, side.iter().map(|r| Ok(*r))).unwrap();
                Run::open(&path).unwrap()
            }).collect();
            let both: BTreeSet<_> = sides[0].union(&sides[1]).copied().collect();
            let path = folder.path().join("both");
            write(&path, runs.iter().map(Run::count).sum(), Merged::new(runs.iter().map(Run::records).collect())).unwrap();
            let merged = Run::<24>::open(&path).unwrap();
            prop_assert_eq!(merged.count(), both.len() as u64);
            for (key, _) in keys.iter().chain(&near).chain(&[(77, 0), (u32::MAX, 0)]) {
                let wanted: Vec<_> = both.iter().filter(|r| r[..4] == key.to_be_bytes()).copied().collect();
                prop_assert_eq!(look(&merged, *key), wanted);
            }
        }
    }

    #[test]
    fn a_run_that_is_cut_short_or_garbage_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        write(&path, 100, (0..100).map(|key| Ok(record(key, 1)))).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 10, 31, 32, whole.len() - 1, whole.len() / 2] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Run::<24>::open(&path).is_err(), "{length}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(Run::<20>::open(&path).is_err());
        assert!(Run::<24>::open(&path).is_ok());
    }

    /// Larger than what has its starts in memory.
    #[test]
    fn a_large_run_finds_its_records_and_notices_damaged_starts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let count: u32 = (BUCKET_RECORDS as u32) << (STARTS_IN_MEMORY_BITS + 1);
        let step = u32::MAX / count;
        let records = (0..count).map(|at| Ok(record(at * step, 1)));
        write(&path, count.into(), records).unwrap();
        let run = Run::<24>::open(&path).unwrap();
        assert!(run.starts.is_none());
        for at in (0..count).step_by(997).chain([count - 1]) {
            let key: [u8; KEY_BYTES] = record(at * step, 1)[..KEY_BYTES].try_into().unwrap();
            let mut found = Vec::new();
            assert_eq!(run.find(&key, &mut found).unwrap(), Some(at.into()));
            assert_eq!(found, [record(at * step, 1)]);
            assert_eq!(look(&run, at * step + 1), [[0; 24]; 0]);
        }
        let file = File::options().write(true).open(&path).unwrap();
        let a_start = u64::from(count) * 24 + 4 * 1000;
        file.write_all_at(&[0xff], a_start).unwrap();
        assert!(Run::<24>::open(&path).is_err());
    }
}
