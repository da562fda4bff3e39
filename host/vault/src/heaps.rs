//! What the C library's allocator keeps of what a process has given back.

#![allow(unsafe_code)] // mallopt(3), twice, with constants.

/// Threads take turns in so many heaps.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// What is at least as large goes back to the system when it is freed: the local index's newest records (6 MiB), pieces of the
/// index, packs. Buffers for chunks and requests are smaller, come and go all the time, and stay in the heaps.
#[cfg(target_env = "gnu")]
const BLOCK_BYTES: libc::c_int = 1 << 20;

/// Bounds what this process's heaps hold. To be called first in `main`, before there are threads.
///
/// glibc gives threads heaps of their own, up to eight for each core, and each keeps what was once allocated in it. Work that
/// moves from thread to thread, as all work on a runtime does, then takes its memory many times over: fetching an index took
/// 194 MiB so, and 47 with two heaps. Nothing here allocates often enough for threads to wait for each other. And once it
/// has freed a large block it puts all up to that size into the heaps, where one small allocation behind it keeps it; saying
/// from which size on blocks are apart turns that off, which leaves 31 MiB.
pub fn keep_few_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and changes the allocator's own settings under its own lock. What it answers says
    // only whether it knows the setting; without it the process takes more memory.
    let _ = unsafe {
        (
            libc::mallopt(libc::M_ARENA_MAX, HEAPS),
            libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK_BYTES),
        )
    };
}
