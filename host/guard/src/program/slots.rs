//! What a guard is owed, in places made once: the waiting thread fills them and thaws, the paying thread does the rest.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::wire::{Kind, TEXT_AT_MOST_BYTES};

/// How many debts there can be at once: many machines with many mounts and hooks each, in a mebibyte of locked memory.
pub(super) const DEBTS_AT_MOST: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Owed,
    /// For the paying thread.
    Due,
    /// Thawed by us, or not frozen any more; waits to be written down.
    Thawed,
    NotFrozen,
    /// A thaw that has been failing for longer than is sensible.
    GivenUp,
    /// Written down. Until the host takes it back, it is told so.
    Paid,
}

pub(super) struct Slot {
    pub state: State,
    pub id: u32,
    pub kind: Kind,
    pub deadline_ns: u64,
    /// A freeze that has come to be, so that "not frozen" is an answer.
    pub held: bool,
    pub mount: Option<OwnedFd>,
    /// Of a thaw that does not work: how often, since when, and when it is tried again.
    pub failures: u32,
    pub failing_since_ns: u64,
    pub again_at_ns: u64,
    /// Said already that it does not work.
    pub shouted: bool,
    /// To be said by the paying thread.
    pub to_shout: Option<Errno>,
    pub host_gone: bool,
    text_bytes: usize,
    text: [u8; TEXT_AT_MOST_BYTES],
}

impl Slot {
    fn new() -> Self {
        Self {
            state: State::Free,
            id: 0,
            kind: Kind::Thaw,
            deadline_ns: 0,
            held: false,
            mount: None,
            failures: 0,
            failing_since_ns: 0,
            again_at_ns: 0,
            shouted: false,
            to_shout: None,
            host_gone: false,
            text_bytes: 0,
            text: [0; TEXT_AT_MOST_BYTES],
        }
    }

    pub fn text(&self) -> &[u8] {
        &self.text[..self.text_bytes]
    }

    /// Fills a free place; allocates nothing.
    pub fn fill(&mut self, id: u32, kind: Kind, deadline_ns: u64, mount: Option<OwnedFd>, text: &[u8]) {
        self.state = State::Owed;
        self.id = id;
        self.kind = kind;
        self.deadline_ns = deadline_ns;
        self.held = false;
        self.mount = mount;
        self.failures = 0;
        self.again_at_ns = 0;
        self.shouted = false;
        self.to_shout = None;
        self.host_gone = false;
        self.text_bytes = text.len();
        self.text[..text.len()].copy_from_slice(text);
    }
}

/// All places, and whether the paying thread is to end.
pub(super) struct Slots {
    pub all: Box<[Slot]>,
    pub finishing: bool,
}

pub(super) struct Shared {
    slots: Mutex<Slots>,
    /// Something is due, or the end has come.
    pub due: Condvar,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            slots: Mutex::new(Slots {
                all: (0..DEBTS_AT_MOST).map(|_| Slot::new()).collect(),
                finishing: false,
            }),
            due: Condvar::new(),
        }
    }

    /// A thread that panicked must not keep the other one from paying.
    pub fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait<'a>(&self, slots: MutexGuard<'a, Slots>) -> MutexGuard<'a, Slots> {
        self.due.wait(slots).unwrap_or_else(PoisonError::into_inner)
    }
}
