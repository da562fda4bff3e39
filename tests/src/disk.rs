//! Disks with known content.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A sparse file of this size.
pub fn sparse(path: &Path, size_bytes: u64) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.set_len(size_bytes).unwrap();
    file
}

/// Writes bytes that do not compress, the same for the same seed.
pub fn write_noise(file: &File, offset_bytes: u64, length_bytes: u64, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < length_bytes {
        let count = (length_bytes - done).min(buffer.len() as u64) as usize;
        for word in buffer[..count.next_multiple_of(8).min(1 << 20)].chunks_exact_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all_at(&buffer[..count], offset_bytes + done).unwrap();
        done += count as u64;
    }
}

/// Whether two files hold the same bytes; names the first that differs. Holes in both are not read.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let (mut a, mut b) = (File::open(left).unwrap(), File::open(right).unwrap());
    let size = a.metadata().unwrap().len();
    assert_eq!(
        size,
        b.metadata().unwrap().len(),
        "sizes of {} and {}",
        left.display(),
        right.display()
    );
    let mut at = 0;
    let (mut in_a, mut in_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while let Some(data) = next_data(&mut a, at).into_iter().chain(next_data(&mut b, at)).min() {
        at = data;
        let count = (size - at).min(1 << 20) as usize;
        a.seek(SeekFrom::Start(at)).unwrap();
        b.seek(SeekFrom::Start(at)).unwrap();
        a.read_exact(&mut in_a[..count]).unwrap();
        b.read_exact(&mut in_b[..count]).unwrap();
        if let Some(offset) = (0..count).find(|offset| in_a[*offset] != in_b[*offset]) {
            panic!(
                "{} and {} differ at byte {}",
                left.display(),
                right.display(),
                at + offset as u64
            );
        }
        at += count as u64;
        if at >= size {
            break;
        }
    }
}

fn next_data(file: &mut File, from: u64) -> Option<u64> {
    rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(from)).ok()
}
