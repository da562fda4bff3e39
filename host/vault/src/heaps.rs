//! How many heaps the C library's allocator keeps for a process.

#![allow(unsafe_code)] // mallopt(3), once, with constants.

/// Threads take turns in so many heaps.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Bounds the heaps of this process. To be called first in `main`, before there are threads.
///
/// glibc gives threads heaps of their own, up to eight for each core, and each keeps what was once allocated in it. Work that
/// moves from thread to thread, as all work on a runtime does, then takes its memory many times over: fetching an index took
/// 194 MiB so, and 47 with two heaps. Nothing here allocates often enough for threads to wait for each other.
pub fn keep_few_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and changes the allocator's own settings under its own lock. What it answers says
    // only whether it knows the setting; without it the process takes more memory.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) };
}
