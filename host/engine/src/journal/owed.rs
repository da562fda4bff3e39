//! What a job owes, worked out from the lines of its journal.

use coffre_vault::{MachineNumber, SessionNumber};

use super::Event;
use crate::provider::SnapshotId;

/// What a job still owes, in the order in which it came to owe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    pub hooks: Vec<OwedHook>,
    /// Not released, and whether `take` was answered.
    pub snapshots: Vec<SnapshotId>,
    pub taken: bool,
    pub session: Option<OwedSession>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedHook {
    pub name: String,
    pub memory: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwedSession {
    pub machine: MachineNumber,
    pub session: SessionNumber,
    /// The commit may have reached the vault.
    pub committing: bool,
}

impl Owed {
    pub fn is_nothing(&self) -> bool {
        self.hooks.is_empty() && self.snapshots.is_empty() && self.session.is_none()
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::HookStarting { hook } => {
                if !self.hooks.iter().any(|owed| owed.name == *hook) {
                    self.hooks.push(OwedHook {
                        name: hook.clone(),
                        memory: None,
                    });
                }
            }
            Event::HookPre { hook, memory, .. } => {
                if let Some(owed) = self.hooks.iter_mut().find(|owed| owed.name == *hook) {
                    owed.memory = memory.clone();
                }
            }
            Event::HookEnded { hook, .. } => self.hooks.retain(|owed| owed.name != *hook),
            Event::Taking { snapshot } => self.snapshots.push(snapshot.clone()),
            Event::Taken { .. } => self.taken = true,
            Event::Released { snapshot } => self.snapshots.retain(|owed| owed != snapshot),
            Event::Session { machine, session } => {
                self.session = Some(OwedSession {
                    machine: *machine,
                    session: *session,
                    committing: false,
                });
            }
            Event::Committing { session } => {
                if let Some(owed) = self.session.as_mut().filter(|owed| owed.session == *session) {
                    owed.committing = true;
                }
            }
            Event::Committed { session } | Event::SessionOver { session, .. } => {
                if self.session.is_some_and(|owed| owed.session == *session) {
                    self.session = None;
                }
            }
            Event::Freezing { .. } | Event::Thawed { .. } => {}
            Event::Started(_) | Event::Phase { .. } | Event::Note { .. } | Event::Disks { .. } | Event::Ended(_) => {}
        }
    }
}
