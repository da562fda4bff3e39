//! Work that computes or waits for the local disk, off the threads of the runtime.
//!
//! When it is done depends on the machine. A test that tells the same story twice has it done where it is asked for, see
//! [`InPlace`].

use tokio::task::{JoinError, spawn_blocking};

/// Does `work` on a thread that may block. An error means that it has panicked.
#[cfg(not(any(test, feature = "testing")))]
pub(crate) async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    spawn_blocking(work).await
}

#[cfg(any(test, feature = "testing"))]
pub(crate) async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if IN_PLACE.get() {
        return Ok(work());
    }
    spawn_blocking(work).await
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static IN_PLACE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// While it lives, nothing that is asked for on this thread goes to another one. For a runtime of one thread, whose vaults
/// have packs enough: whoever waited for one in place would wait for himself.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct InPlace {
    // It is of the thread that made it.
    _not_send: std::marker::PhantomData<*const ()>,
}

#[cfg(any(test, feature = "testing"))]
impl InPlace {
    pub fn begin() -> Self {
        IN_PLACE.set(true);
        Self {
            _not_send: std::marker::PhantomData,
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Drop for InPlace {
    fn drop(&mut self) {
        IN_PLACE.set(false);
    }
}
