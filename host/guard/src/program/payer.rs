//! The paying thread: ends process trees, runs commands, and says what does not work.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::io::Errno;

use super::shout;
use super::slots::{Shared, Slots, State};
use crate::clock::unix_ms;
use crate::debt::{Debt, Payer, Why};
use crate::ledger::{Ledger, Line};
use crate::pay;
use crate::wire::Kind;

pub(super) struct Running {
    slots: Arc<Shared>,
    /// None where no thread could be had: then what is left is paid by whoever waits for it.
    thread: Option<JoinHandle<()>>,
}

/// Begins to pay what comes due.
pub(super) fn start(slots: Arc<Shared>, ledgers: io::Result<(File, File)>) -> Running {
    let shared = slots.clone();
    let thread = ledgers.ok().and_then(|(volatile, durable)| {
        let ledgers = [Ledger::from_file(volatile, false), Ledger::from_file(durable, true)];
        let builder = std::thread::Builder::new().name("payer".to_owned());
        builder.spawn(move || work(&shared, &ledgers)).ok()
    });
    if thread.is_none() {
        shout::say("there is no paying thread: process trees and commands are left to the next start");
    }
    Running { slots, thread }
}

impl Running {
    /// Waits until nothing is due any more.
    pub fn finish(self) {
        self.slots.lock().finishing = true;
        self.slots.due.notify_one();
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// Something to do for this thread.
enum Work {
    Pay {
        at: usize,
        id: u32,
        why: Why,
        text: Vec<u8>,
    },
    Shout {
        text: Vec<u8>,
        error: Errno,
    },
}

fn work(shared: &Shared, [volatile, durable]: &[Ledger; 2]) {
    loop {
        let mut slots = shared.lock();
        let work = loop {
            if let Some(work) = next(&mut slots) {
                break work;
            }
            if slots.finishing {
                return;
            }
            slots = shared.wait(slots);
        };
        drop(slots);
        match work {
            Work::Shout { text, error } => {
                let debt = serde_json::from_slice::<Debt>(&text);
                let what = debt.map_or_else(|_| "thaw a file system".to_owned(), |debt| debt.to_string());
                shout::say(&format!(
                    "cannot {what}: {error}; it is tried again. hint: `fsfreeze --unfreeze MOUNT` by hand, or a restart of the machine"
                ));
            }
            Work::Pay { at, id, why, text } => {
                let (line, ledger) = paid(id, why, &text, volatile, durable);
                if let Err(error) = ledger.append(&line) {
                    shout::say(&format!("{error}: {}", error.source));
                }
                let mut slots = shared.lock();
                if slots.all[at].id == id && slots.all[at].state == State::Due {
                    slots.all[at].state = State::Paid;
                }
            }
        }
    }
}

/// What is most urgent: words about a thaw that fails, then machines to thaw, process trees, commands, the last of each first.
fn next(slots: &mut Slots) -> Option<Work> {
    for slot in slots.all.iter_mut() {
        if let Some(error) = slot.to_shout.take() {
            let text = slot.text().to_vec();
            return Some(Work::Shout { text, error });
        }
    }
    let due = slots
        .all
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.state == State::Due);
    let urgent = |kind| match kind {
        Kind::AgentThaw => 2,
        Kind::EndTree => 1,
        _ => 0,
    };
    let (at, slot) = due.max_by_key(|(_, slot)| (urgent(slot.kind), slot.id))?;
    Some(Work::Pay {
        at,
        id: slot.id,
        why: if slot.host_gone { Why::HostGone } else { Why::Deadline },
        text: slot.text().to_vec(),
    })
}

fn paid<'a>(id: u32, why: Why, text: &[u8], volatile: &'a Ledger, durable: &'a Ledger) -> (Line, &'a Ledger) {
    let by = Payer::Guard;
    let failed = |error: String| {
        shout::say(&error);
        let at_unix_ms = unix_ms();
        Line::Failed {
            id,
            by,
            error,
            at_unix_ms,
        }
    };
    match serde_json::from_slice::<Debt>(text) {
        Ok(debt) => {
            let ledger = if debt.ends_with_the_kernel() { volatile } else { durable };
            let line = match pay::pay(&debt) {
                Ok(outcome) => Line::paid(id, by, why, outcome),
                Err(error) => failed(format!("cannot {debt}: {error}")),
            };
            (line, ledger)
        }
        Err(error) => (failed(format!("a debt that cannot be read: {error}")), volatile),
    }
}
