//! The waiting thread: takes debts, and when the host is gone or a deadline has passed, thaws.
//!
//! From its first answer on it allocates nothing: places, inbox and the text of what it writes down are made before. It
//! waits for nothing but the socket and the thaw itself; what is owed lies on `/run`, which is memory.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::slots::{DEBTS_AT_MOST, Shared, Slot, Slots, State};
use crate::clock::{now_ns, timespec, unix_ms};
use crate::ioctl;
use crate::ledger::open_for_guard;
use crate::wire::{Code, Hello, Inbox, Kind, Shelter, Tag, VERSION, reply};

/// A host sends each message in one piece: one that is not there within this is half dead, and taken for gone.
const REST_WITHIN: Duration = Duration::from_secs(1);
/// While a host is still freezing, "not frozen" is no answer: so it is asked again.
const STILL_FREEZING_NS: u64 = 10_000_000;
/// A thaw that fails is tried again, soon at first.
const FIRST_RETRY_NS: u64 = 5_000_000;
const LONGEST_RETRY_NS: u64 = 1_000_000_000;
/// What has failed so often is said on every channel there is.
const SHOUTED_AFTER: u32 = 5;
/// What has failed for so long does not get better; it stays written down as owed.
const GIVE_UP_NS: u64 = 600_000_000_000;

pub(super) struct Waiter {
    socket: UnixStream,
    host: i32,
    slots: Arc<Shared>,
    inbox: Inbox,
    /// What ends with the kernel, and what does not.
    volatile: File,
    durable: File,
}

impl Waiter {
    /// Waits for the host's hello, and answers it. None: the host went without a word.
    pub fn meet(socket: UnixStream, slots: Arc<Shared>, shelter: Shelter) -> io::Result<Option<Self>> {
        let mut inbox = Inbox::new();
        let Some(message) = inbox.receive(&socket) else {
            return Ok(None);
        };
        if message.tag != Tag::Hello || message.id != VERSION {
            // It sees an end instead of an answer to what it said.
            return Err(io::Error::other("the host is of another version"));
        }
        let hello: Hello = serde_json::from_slice(message.text)?;
        let waiter = Self {
            volatile: open_for_guard(&hello.volatile)?,
            durable: open_for_guard(&hello.durable)?,
            host: hello.host,
            socket,
            slots,
            inbox,
        };
        waiter.socket.set_read_timeout(Some(REST_WITHIN))?;
        reply(&waiter.socket, Tag::Hello, shelter.to_bits(), Code::Yes)?;
        Ok(Some(waiter))
    }

    /// Copies for the paying thread.
    pub fn ledgers(&self) -> io::Result<(File, File)> {
        Ok((self.volatile.try_clone()?, self.durable.try_clone()?))
    }

    /// Serves until the host is gone and everything is thawed and handed over.
    pub fn wait(mut self) {
        let mut host_gone = false;
        loop {
            let next_ns = act(&mut self.slots.lock(), now_ns(), host_gone, &mut self.volatile);
            self.slots.due.notify_one();
            if host_gone && next_ns.is_none() {
                return;
            }
            let left = next_ns.map(|next| timespec(Duration::from_nanos(next.saturating_sub(now_ns()))));
            if host_gone {
                // Only a thaw that does not work is left.
                let _ = poll(&mut [], left.as_ref());
                continue;
            }
            let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waiting, left.as_ref()) {
                Ok(0) | Err(_) => {}
                Ok(_) => host_gone = !self.hear(),
            }
        }
    }

    /// Takes one message; whether the host is still there. One that talks nonsense is as good as gone.
    fn hear(&mut self) -> bool {
        let Some(message) = self.inbox.receive(&self.socket) else {
            return false;
        };
        let mut slots = self.slots.lock();
        let answer = match message.tag {
            Tag::Owe => {
                let mount = (message.kind == Kind::Thaw)
                    .then(|| open_again(self.host, message.descriptor))
                    .flatten();
                owe(
                    &mut slots,
                    message.id,
                    message.kind,
                    message.deadline_ns,
                    mount,
                    message.text,
                )
            }
            Tag::Paid => take_back(&mut slots, message.id),
            Tag::Held => {
                if let Some(slot) = slots.all.iter_mut().find(|slot| is(slot, message.id)) {
                    slot.held = true;
                }
                return true;
            }
            Tag::Hello => return false,
        };
        reply(&self.socket, message.tag, message.id, answer).is_ok()
    }
}

/// The host's descriptor as one of ours, through `/proc` (proc_pid_fd(5)); allocates nothing.
fn open_again(host: i32, descriptor: i32) -> Option<OwnedFd> {
    let mut path = [0; 48];
    write!(&mut path[..], "/proc/{host}/fd/{descriptor}\0").ok()?;
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

fn is(slot: &Slot, id: u32) -> bool {
    slot.state != State::Free && slot.id == id
}

fn owe(slots: &mut Slots, id: u32, kind: Kind, deadline_ns: u64, mount: Option<OwnedFd>, text: &[u8]) -> Code {
    if (kind == Kind::Thaw) != mount.is_some() || slots.all.iter().any(|slot| is(slot, id)) {
        return Code::No;
    }
    match slots.all.iter_mut().find(|slot| slot.state == State::Free) {
        Some(slot) => {
            slot.fill(id, kind, deadline_ns, mount, text);
            Code::Yes
        }
        None => Code::No,
    }
}

fn take_back(slots: &mut Slots, id: u32) -> Code {
    let Some(slot) = slots.all.iter_mut().find(|slot| is(slot, id)) else {
        return Code::No;
    };
    match slot.state {
        // Being paid this moment: the payer frees it.
        State::Due => Code::PaidByGuard,
        State::Owed | State::GivenUp | State::Free => {
            free(slot);
            Code::Yes
        }
        State::Thawed | State::NotFrozen | State::Paid => {
            free(slot);
            Code::PaidByGuard
        }
    }
}

fn free(slot: &mut Slot) {
    slot.state = State::Free;
    slot.mount = None;
}

/// Pays what is due at `now_ns`: thaws, writes down what was thawed, hands the rest over. Gives when to look again; none
/// if nothing is left that a deadline or another try waits for.
///
/// Thawed is the last frozen first, so that a file system that lies on another one comes before it.
fn act(slots: &mut Slots, now_ns: u64, host_gone: bool, ledger: &mut File) -> Option<u64> {
    let mut next_ns: Option<u64> = None;
    let mut look_at = |at_ns: u64| next_ns = Some(next_ns.map_or(at_ns, |next| next.min(at_ns)));
    let mut order: [Option<(u32, usize)>; DEBTS_AT_MOST] = [None; DEBTS_AT_MOST];
    for (at, slot) in slots.all.iter().enumerate() {
        order[at] = (slot.state == State::Owed).then_some((slot.id, at));
    }
    order.sort_unstable_by(|one, other| other.cmp(one));
    for (_, at) in order.iter().flatten() {
        let slot = &mut slots.all[*at];
        if !host_gone && slot.deadline_ns > now_ns {
            look_at(slot.deadline_ns);
        } else if slot.kind == Kind::Thaw {
            slot.host_gone = host_gone;
            if slot.again_at_ns <= now_ns {
                thaw(slot, now_ns, host_gone);
            }
            if slot.state == State::Owed {
                look_at(slot.again_at_ns);
            }
        }
    }
    // Only now that nothing is frozen any more.
    for slot in slots.all.iter_mut() {
        match slot.state {
            State::Thawed | State::NotFrozen => {
                write_down(slot, ledger);
                slot.state = State::Paid;
                slot.mount = None;
            }
            State::Owed if slot.kind != Kind::Thaw && (host_gone || slot.deadline_ns <= now_ns) => {
                slot.host_gone = host_gone;
                slot.state = State::Due;
            }
            _ => {}
        }
    }
    next_ns
}

fn thaw(slot: &mut Slot, now_ns: u64, host_gone: bool) {
    let Some(mount) = &slot.mount else { return };
    match ioctl::thaw(mount) {
        Ok(()) => slot.state = State::Thawed,
        Err(Errno::INVAL) if slot.held || host_gone => slot.state = State::NotFrozen,
        Err(Errno::INVAL) => slot.again_at_ns = now_ns + STILL_FREEZING_NS,
        Err(error) => {
            if slot.failures == 0 {
                slot.failing_since_ns = now_ns;
            }
            slot.failures += 1;
            let pause = FIRST_RETRY_NS.saturating_mul(1 << slot.failures.min(16));
            slot.again_at_ns = now_ns + pause.min(LONGEST_RETRY_NS);
            if slot.failures >= SHOUTED_AFTER && !slot.shouted {
                slot.shouted = true;
                slot.to_shout = Some(error);
            }
            if now_ns - slot.failing_since_ns > GIVE_UP_NS {
                slot.state = State::GivenUp;
            }
        }
    }
}

/// One line of the ledger, put together by hand: it has no text that would need escaping.
fn write_down(slot: &Slot, ledger: &mut File) {
    let mut line = [0; 160];
    let room = line.len();
    let mut rest = &mut line[..];
    let outcome = if slot.state == State::Thawed {
        "thawed"
    } else {
        "not-frozen"
    };
    let why = if slot.host_gone { "host-gone" } else { "deadline" };
    let written = writeln!(
        rest,
        r#"{{"line":"paid","id":{},"by":"guard","why":"{why}","outcome":"{outcome}","at-unix-ms":{}}}"#,
        slot.id,
        unix_ms()
    );
    let used = room - rest.len();
    if written.is_ok() {
        // Thawing twice is harmless: that it cannot be written down costs the next start a look.
        let _ = ledger.write_all(&line[..used]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::counting::allocations;
    use crate::debt::{Outcome, Payer, Why};
    use crate::ledger::{Content, Ledger};
    use crate::wire::{Message, send};

    /// With a descriptor that cannot be thawed at all (EBADF), which stands for every failure: so no thaw in here does
    /// anything to any file system.
    fn slots_with_a_thaw() -> (Slots, File, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = File::create_new(folder.path().join("ledger")).unwrap();
        let shared = Shared::new();
        let mut slots = std::mem::replace(
            &mut *shared.lock(),
            Slots {
                all: Box::new([]),
                finishing: false,
            },
        );
        let mount = rustix::fs::open(folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(owe(&mut slots, 1, Kind::Thaw, 1000, Some(mount), b"{}"), Code::Yes);
        (slots, ledger, folder)
    }

    #[test]
    fn nothing_is_done_before_the_deadline_while_the_host_lives() {
        let (mut slots, mut ledger, _folder) = slots_with_a_thaw();
        assert_eq!(act(&mut slots, 999, false, &mut ledger), Some(1000));
        assert_eq!(slots.all[0].state, State::Owed);
        assert_eq!(take_back(&mut slots, 1), Code::Yes);
        assert_eq!(act(&mut slots, 2000, false, &mut ledger), None);
        assert_eq!(take_back(&mut slots, 1), Code::No, "it is owed no more");
    }

    #[test]
    fn a_thaw_that_fails_is_tried_again_and_then_shouted_about() {
        let (mut slots, mut ledger, _folder) = slots_with_a_thaw();
        let mut now_ns = 1000;
        for _ in 0..SHOUTED_AFTER {
            let next = act(&mut slots, now_ns, false, &mut ledger).expect("it is tried again");
            assert!(next > now_ns && next <= now_ns + LONGEST_RETRY_NS);
            now_ns = next;
        }
        assert!(slots.all[0].to_shout.is_some());
        assert_eq!(slots.all[0].failures, SHOUTED_AFTER);
        slots.all[0].again_at_ns = 0;
        assert_eq!(act(&mut slots, now_ns + GIVE_UP_NS, true, &mut ledger), None);
        assert_eq!(slots.all[0].state, State::GivenUp);
    }

    #[test]
    fn what_is_no_thaw_is_handed_over_when_it_is_due() {
        let (mut slots, mut ledger, _folder) = slots_with_a_thaw();
        take_back(&mut slots, 1);
        assert_eq!(owe(&mut slots, 2, Kind::EndTree, 500, None, b"{}"), Code::Yes);
        assert_eq!(
            owe(&mut slots, 2, Kind::EndTree, 500, None, b"{}"),
            Code::No,
            "the number is taken"
        );
        assert_eq!(
            owe(&mut slots, 3, Kind::Thaw, 500, None, b"{}"),
            Code::No,
            "a thaw needs its mount"
        );
        assert_eq!(act(&mut slots, 100, true, &mut ledger), None);
        assert_eq!(slots.all[0].state, State::Due);
        assert_eq!(take_back(&mut slots, 2), Code::PaidByGuard);
    }

    #[test]
    fn there_is_an_end_to_places() {
        let (mut slots, _ledger, _folder) = slots_with_a_thaw();
        for id in 2..=DEBTS_AT_MOST as u32 {
            assert_eq!(owe(&mut slots, id, Kind::EndTree, 0, None, b"x"), Code::Yes);
        }
        assert_eq!(owe(&mut slots, 999, Kind::EndTree, 0, None, b"x"), Code::No);
    }

    #[test]
    fn what_is_written_by_hand_can_be_read() {
        let (mut slots, mut ledger, folder) = slots_with_a_thaw();
        slots.all[0].state = State::Thawed;
        slots.all[0].host_gone = true;
        act(&mut slots, 0, false, &mut ledger);
        assert_eq!(slots.all[0].state, State::Paid);
        let line = std::fs::read_to_string(folder.path().join("ledger")).unwrap();
        let owed = r#"{"line":"owed","id":1,"owner":{"machine":"m","job":"j"},"debt":{"kind":"thaw","mount":"/x","device":{"major":1,"minor":2}}}"#;
        let read = Content::parse(format!("{owed}\n{line}").as_bytes());
        let (by, why, outcome, at) = read.entries[&1].paid.clone().unwrap();
        assert_eq!((by, why, outcome), (Payer::Guard, Why::HostGone, Outcome::Thawed));
        assert!(at > 0);
    }

    #[test]
    fn an_armed_guard_allocates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (host, guard) = UnixStream::pair().unwrap();
        let volatile = Ledger::create(&folder.path().join("run"), "1", false).unwrap();
        let durable = Ledger::create(&folder.path().join("state"), "1", true).unwrap();
        let hello = Hello {
            host: std::process::id() as i32,
            volatile: volatile.path.clone(),
            durable: durable.path.clone(),
        };
        let hello = Message {
            text: &serde_json::to_vec(&hello).unwrap(),
            ..Message::plain(Tag::Hello, VERSION)
        };
        send(&host, &hello).unwrap();
        let mut waiter = Waiter::meet(guard, Arc::new(Shared::new()), Shelter::default())
            .unwrap()
            .expect("a hello was said");
        let mount = File::open(folder.path()).unwrap();
        let owe = |id, kind| Message {
            kind,
            deadline_ns: u64::MAX,
            descriptor: mount.as_raw_fd(),
            text: b"some debt",
            ..Message::plain(Tag::Owe, id)
        };
        send(&host, &owe(1, Kind::Thaw)).unwrap();
        send(&host, &owe(2, Kind::EndTree)).unwrap();
        send(&host, &Message::plain(Tag::Held, 1)).unwrap();
        send(&host, &Message::plain(Tag::Paid, 2)).unwrap();

        let before = allocations();
        for _ in 0..4 {
            assert!(waiter.hear());
            act(&mut waiter.slots.lock(), 1, false, &mut waiter.volatile);
        }
        {
            let mut slots = waiter.slots.lock();
            assert!(slots.all[0].held && slots.all[0].mount.is_some());
            assert_eq!(slots.all[1].state, State::Free);
            // As if it had been thawed: no thaw is tried on what is not a scratch file system.
            slots.all[0].state = State::Thawed;
            act(&mut slots, 1, true, &mut waiter.volatile);
            assert_eq!(slots.all[0].state, State::Paid);
        }
        assert_eq!(allocations(), before);
        assert!(
            std::fs::read_to_string(&volatile.path)
                .unwrap()
                .contains("\"outcome\":\"thawed\"")
        );
    }
}
