//! What a plugin may use. Every limit is a named constant with the reason for its value.

use std::time::Duration;

use serde::Serialize;

/// Linear memory of one instance. Listing the extents of a fragmented disk takes about 16 MiB; a Python component starts
/// with 60 MiB.
pub const MEMORY_BYTES: usize = 128 * 1024 * 1024;

/// Table elements of one instance: function pointers. The first-party plugins have some hundreds, Python some 20,000.
pub const TABLE_ELEMENTS: usize = 100_000;

/// Core instances, memories and tables within one component. A Rust component has 4; componentize-py needs 16 and more.
pub const INSTANCES: usize = 64;
/// See [`INSTANCES`].
pub const MEMORIES: usize = 8;
/// See [`INSTANCES`].
pub const TABLES: usize = 64;

/// Stack of the guest. The default of wasmtime; a guest that recurses past it traps.
pub const STACK_BYTES: usize = 512 * 1024;

/// What one call may hand from guest to host. The largest honest answers are 4 MiB of a streamed disk and 8 MiB of
/// attachments; without a limit, empty strings in a long list grow to a multiple of the guest's memory in the host.
pub const TRANSFER_BYTES: usize = 24 * 1024 * 1024;

/// Resources that a guest may hold open. A listing is one; connections and processes are few.
pub const RESOURCES: usize = 64;

/// A component's file. componentize-py makes 18 MB; more than this is a mistake, and compiling it would take minutes.
pub const COMPONENT_BYTES: u64 = 64 * 1024 * 1024;

/// A manifest's JSON.
pub const MANIFEST_BYTES: usize = 64 * 1024;

/// How often a running guest is looked at. Also how late a deadline can be noticed.
pub const EPOCH_TICK: Duration = Duration::from_millis(10);

/// For `describe`, `discover`, `check` and `held`, which only look.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// For `take`: applications are held meanwhile, and `hold_at_most` is 60 s.
pub const TAKE_DEADLINE: Duration = Duration::from_secs(60);

/// For `changed` and each step of a listing, `read`, `settle` and `release`: nobody is held up, and removing a large
/// clone can take a while. Past it the host reads everything, or calls again later.
pub const WORK_DEADLINE: Duration = Duration::from_secs(120);

/// How long a call may overrun its deadline in a host call that is not interrupted by itself, before it is given up.
pub const DEADLINE_GRACE: Duration = Duration::from_millis(250);

/// One line of a plugin's log; the rest is cut.
pub const LOG_LINE_BYTES: usize = 8 * 1024;

/// Log lines in a second; more are dropped and counted, so that a plugin cannot fill the disk that holds the log.
pub const LOG_LINES_PER_SECOND: u32 = 200;

/// Extents in one step of a listing, and entries of one page of `storage.extents`: 2 MiB on the way.
pub const EXTENTS_PER_STEP: usize = 65_536;

/// Entries of a folder that is listed.
pub const FOLDER_ENTRIES: usize = 65_536;

/// What `extent-count` counts at most: about 3 s of FIEMAP.
pub const EXTENTS_COUNTED: u32 = 1_000_000;

/// Disks of one machine. libvirt's buses end earlier.
pub const DISKS: usize = 256;

/// Findings of one check.
pub const FINDINGS: usize = 256;

/// Snapshots that a provider may say it holds. A machine has one job at a time, so honest lists are short.
pub const HELD_SNAPSHOTS: usize = 1024;

/// Attachments of one snapshot, the size of each, and of all together: they are kept in memory.
pub const ATTACHMENTS: usize = 64;
/// See [`ATTACHMENTS`].
pub const ATTACHMENT_BYTES: usize = 1024 * 1024;
/// See [`ATTACHMENTS`].
pub const ATTACHMENTS_BYTES: usize = 8 * 1024 * 1024;

/// An id of a disk or snapshot's attachment.
pub const ID_BYTES: usize = 128;

/// A change token. It stands in the recovery point.
pub const TOKEN_BYTES: usize = 1024;

/// A text for people.
pub const TEXT_BYTES: usize = 4 * 1024;

/// A settings schema.
pub const SCHEMA_BYTES: usize = 64 * 1024;

/// What `read` is asked for at most.
pub const READ_BYTES: u32 = 4 * 1024 * 1024;

/// The largest disk: offsets and ends of extents stay within what file offsets can say.
pub const DISK_BYTES: u64 = i64::MAX as u64;

/// Output of a program that a plugin runs.
pub const OUTPUT_BYTES: u32 = 16 * 1024 * 1024;

/// What is sent to or received from a socket at once; a guest that has more calls again.
pub const SOCKET_BYTES: u32 = 1024 * 1024;

/// The limits that the operator, or a test, may set otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    pub memory_bytes: usize,
    #[serde(serialize_with = "as_millis")]
    pub look_deadline: Duration,
    #[serde(serialize_with = "as_millis")]
    pub take_deadline: Duration,
    #[serde(serialize_with = "as_millis")]
    pub work_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: MEMORY_BYTES,
            look_deadline: LOOK_DEADLINE,
            take_deadline: TAKE_DEADLINE,
            work_deadline: WORK_DEADLINE,
        }
    }
}

fn as_millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_millis().try_into().unwrap_or(u64::MAX))
}
