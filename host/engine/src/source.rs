//! Where the bytes of one disk of a snapshot are read from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use crate::nbd::NbdError;

/// Why a disk's bytes could not be read. Trying again may help where a device or server is flaky; the job decides.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("read {length_bytes} bytes at {offset_bytes} of {what}")]
    Read {
        what: String,
        offset_bytes: u64,
        length_bytes: usize,
        source: io::Error,
    },
    #[error("{what} ends at {end_bytes}, before the {size_bytes} bytes its provider promised")]
    Short {
        what: String,
        end_bytes: u64,
        size_bytes: u64,
    },
    #[error("find data from {offset_bytes} on in {what}")]
    Seek {
        what: String,
        offset_bytes: u64,
        source: io::Error,
    },
    #[error("measure {what}")]
    Measure { what: String, source: io::Error },
    #[error("{0}")]
    Provider(String),
    #[error("read {what}")]
    Nbd { what: String, source: NbdError },
}

/// One disk of one snapshot: a fixed run of bytes that does not change while it is held.
///
/// Calls block and come from reader threads, several at a time; implementations keep no position. A read is retried by
/// nobody: an error fails the disk, and with it the job.
pub trait DiskSource: Send + Sync {
    /// The size as the host measured it; never what a plugin said.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` from `offset_bytes`; the range lies within the size.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError>;

    /// The next range at or after `from_bytes` that may hold anything but zeroes, or none. Sources that cannot tell
    /// return everything from there to the end.
    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError>;
}

/// A regular file or block device, read through a descriptor that was opened and checked by the sandbox.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    what: String,
    size_bytes: u64,
    /// Block devices have no SEEK_DATA.
    knows_holes: bool,
}

impl FileSource {
    /// Measures `file` itself. `what` is how errors call it, usually its path.
    pub fn new(file: File, what: String) -> Result<Self, SourceError> {
        let metadata = file.metadata().map_err(|source| SourceError::Measure {
            what: what.clone(),
            source,
        })?;
        let knows_holes = !metadata.file_type().is_block_device();
        let size_bytes = if knows_holes {
            metadata.len()
        } else {
            // The end of a block device by lseek, which needs no ioctl. `read_at` never uses the position.
            seek(&file, SeekFrom::End(0)).map_err(|source| SourceError::Measure {
                what: what.clone(),
                source: source.into(),
            })?
        };
        // Only a hint: the kernel reads ahead further. A file system that does not take it changes nothing.
        let _ = fadvise(file.as_fd(), 0, None, Advice::Sequential);
        Ok(Self {
            file,
            what,
            size_bytes,
            knows_holes,
        })
    }
}

impl DiskSource for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.file.read_exact_at(buffer, offset_bytes).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                let end_bytes = self.file.metadata().map(|found| found.len()).unwrap_or(offset_bytes);
                SourceError::Short {
                    what: self.what.clone(),
                    end_bytes,
                    size_bytes: self.size_bytes,
                }
            } else {
                SourceError::Read {
                    what: self.what.clone(),
                    offset_bytes,
                    length_bytes: buffer.len(),
                    source,
                }
            }
        })
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError> {
        if from_bytes >= self.size_bytes {
            return Ok(None);
        }
        if !self.knows_holes {
            return Ok(Some(from_bytes..self.size_bytes));
        }
        let failed = |source: Errno| SourceError::Seek {
            what: self.what.clone(),
            offset_bytes: from_bytes,
            source: source.into(),
        };
        let start = match seek(&self.file, SeekFrom::Data(from_bytes)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // The file system does not know holes (EINVAL): everything is data.
            Err(Errno::INVAL) => return Ok(Some(from_bytes..self.size_bytes)),
            Err(source) => return Err(failed(source)),
        };
        let end = seek(&self.file, SeekFrom::Hole(start)).map_err(failed)?;
        if start >= self.size_bytes {
            return Ok(None);
        }
        Ok(Some(start..end.min(self.size_bytes)))
    }
}
