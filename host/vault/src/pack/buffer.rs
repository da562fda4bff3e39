//! The few large buffers that packs are built in. They bound the memory of a process however many disks, jobs and vaults it
//! works on: whoever wants a fifth waits until one of the four has left for its vault.

#[cfg(not(test))]
use std::sync::LazyLock;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::PACK_TARGET_BYTES;

/// Packs alive in the process: with two being filled, one is sealed and one is sent.
pub(crate) const PACKS_ALIVE_LIMIT: usize = 4;

/// How long somebody waits without a pack of its own, and with none on its way, before others must close theirs: they may
/// be between two disks, or paused for hours.
const PATIENCE: Duration = Duration::from_millis(200);

struct State {
    alive: usize,
    /// Of those alive, the ones that are closed and will come back by themselves.
    moving: usize,
    free: Vec<Vec<u8>>,
}

/// Somebody who keeps packs open.
pub(crate) trait PackHolder: Send + Sync {
    /// Closes the open packs, unless their owner is at work on them right now. Must not wait.
    fn close_idle(self: Arc<Self>);
}

/// All pack buffers of the process.
pub(crate) struct PackPool {
    /// A pack is closed before it grows beyond this.
    target_bytes: usize,
    alive_limit: usize,
    state: Mutex<State>,
    changed: Condvar,
    holders: Mutex<Vec<Weak<dyn PackHolder>>>,
}

#[cfg(not(test))]
static POOL: LazyLock<Arc<PackPool>> = LazyLock::new(|| PackPool::new(PACK_TARGET_BYTES, PACKS_ALIVE_LIMIT));

/// What came of asking for a buffer.
pub(crate) enum Acquired {
    Buffer(PackBuffer),
    /// All buffers are open packs and none is on its way, so waiting could last for ever: the caller must close a pack of
    /// its own and ask again. Only said to those who have one.
    CloseOne,
}

impl PackPool {
    /// Packs of another size than the process's own, in memory of their own.
    pub(crate) fn new(target_bytes: usize, alive_limit: usize) -> Arc<Self> {
        Arc::new(Self {
            target_bytes,
            alive_limit,
            state: Mutex::new(State {
                alive: 0,
                moving: 0,
                free: Vec::new(),
            }),
            changed: Condvar::new(),
            holders: Mutex::new(Vec::new()),
        })
    }

    #[cfg(not(test))]
    pub(crate) fn get() -> Arc<Self> {
        Arc::clone(&POOL)
    }

    /// Tests run side by side and count packs: each vault has a pool of its own.
    #[cfg(test)]
    pub(crate) fn get() -> Arc<Self> {
        Self::new(PACK_TARGET_BYTES, PACKS_ALIVE_LIMIT)
    }

    /// Makes known who can be asked to close packs.
    pub(crate) fn add_holder(&self, holder: Weak<dyn PackHolder>) {
        let mut holders = self.holders.lock();
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Blocks until a buffer is free. `has_open` says whether the caller keeps an open pack while it waits.
    ///
    /// Nobody waits for ever: while one is moving, it will come back; else the waiter is told to close its own, and if it
    /// has none, others close theirs.
    pub(crate) fn acquire(self: &Arc<Self>, has_open: bool) -> Acquired {
        let mut state = self.state.lock();
        loop {
            if state.alive < self.alive_limit {
                state.alive += 1;
                let bytes = state.free.pop().unwrap_or_default();
                drop(state);
                return Acquired::Buffer(PackBuffer {
                    pool: Arc::clone(self),
                    bytes,
                    moving: false,
                });
            }
            if state.moving == 0 && has_open {
                return Acquired::CloseOne;
            }
            let waited = self.changed.wait_for(&mut state, PATIENCE);
            if waited.timed_out() && state.moving == 0 && state.alive == self.alive_limit {
                MutexGuard::unlocked(&mut state, || {
                    let holders = self.holders.lock().clone();
                    holders
                        .iter()
                        .filter_map(Weak::upgrade)
                        .for_each(PackHolder::close_idle);
                });
            }
        }
    }

    fn give_back(&self, mut bytes: Vec<u8>, moving: bool) {
        bytes.clear();
        let mut state = self.state.lock();
        state.alive -= 1;
        if moving {
            state.moving -= 1;
        }
        state.free.push(bytes);
        // All, since which of the waiters must close a pack may have changed.
        self.changed.notify_all();
    }
}

/// A pack's bytes. The memory is used again when the last reference is gone.
pub(crate) struct PackBuffer {
    pool: Arc<PackPool>,
    pub(super) bytes: Vec<u8>,
    moving: bool,
}

impl PackBuffer {
    /// Says that this pack is closed and will come back without anybody's further doing.
    pub(crate) fn set_moving(&mut self) {
        if !self.moving {
            self.moving = true;
            self.pool.state.lock().moving += 1;
        }
    }

    pub(super) fn target_bytes(&self) -> usize {
        self.pool.target_bytes
    }

    pub(super) fn reserve_all(&mut self) {
        let missing = self.target_bytes().saturating_sub(self.bytes.len());
        self.bytes.reserve_exact(missing);
    }
}

impl AsRef<[u8]> for PackBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PackBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes), self.moving);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pool() -> Arc<PackPool> {
        PackPool::new(PACK_TARGET_BYTES, PACKS_ALIVE_LIMIT)
    }

    fn take(pool: &Arc<PackPool>) -> PackBuffer {
        match pool.acquire(false) {
            Acquired::Buffer(buffer) => buffer,
            Acquired::CloseOne => panic!("nobody was asked to close anything"),
        }
    }

    #[test]
    fn a_fifth_waits_for_one_that_moves() {
        let pool = pool();
        let mut held: Vec<_> = (0..PACKS_ALIVE_LIMIT).map(|_| take(&pool)).collect();
        held[0].set_moving();
        let waiting = Arc::clone(&pool);
        let waiter = std::thread::spawn(move || matches!(waiting.acquire(true), Acquired::Buffer(_)));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        held.remove(0);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn who_holds_open_packs_must_close_one_rather_than_wait_for_ever() {
        let pool = pool();
        let _held: Vec<_> = (0..PACKS_ALIVE_LIMIT).map(|_| take(&pool)).collect();
        assert!(matches!(pool.acquire(true), Acquired::CloseOne));
    }

    #[test]
    fn who_has_no_pack_gets_one_from_those_that_are_idle() {
        struct Idle(Mutex<Vec<PackBuffer>>);
        impl PackHolder for Idle {
            fn close_idle(self: Arc<Self>) {
                self.0.lock().pop();
            }
        }
        let pool = pool();
        let idle = Arc::new(Idle(Mutex::new((0..PACKS_ALIVE_LIMIT).map(|_| take(&pool)).collect())));
        pool.add_holder(Arc::downgrade(&idle) as Weak<dyn PackHolder>);
        assert!(matches!(pool.acquire(false), Acquired::Buffer(_)));
        assert_eq!(idle.0.lock().len(), PACKS_ALIVE_LIMIT - 1);
    }

    #[test]
    fn memory_is_used_again() {
        let pool = pool();
        let mut buffer = take(&pool);
        buffer.reserve_all();
        let address = buffer.bytes.as_ptr();
        drop(buffer);
        assert_eq!(take(&pool).bytes.as_ptr(), address);
    }
}
