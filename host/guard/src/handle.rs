//! The host's side: a guard that is started when something is owed for the first time, and what is owed to it.
//!
//! A [`Guard`] is cheap to copy and may be used from any thread; its calls block for a round trip. A debt goes
//! into the ledger, then to the guard, and only when the guard has said yes may it be incurred. Nothing here is undone by
//! being dropped: what was not taken back by [`Owed::paid`] stays owed, and the guard pays it when this process is gone.
//!
//! If the guard itself goes away, a thread of ours notices at once, thaws what is frozen, and tells whoever asked to be told.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::clock::at_ns;
use crate::debt::{Debt, Outcome, Owner, Payer, Why};
use crate::ioctl;
use crate::ledger::{Ledger, LedgerError, Line};
use crate::pay;
use crate::peer;
use crate::wire::{self, Code, Hello, Kind, Message, Shelter, TEXT_AT_MOST_BYTES, Tag, VERSION};

/// A guard answers within microseconds; one that has not after this is as good as gone.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Where the guard that is a service of its own listens, below the run folder.
const SERVICE_SOCKET: &str = "guard.sock";
/// How often a thaw that fails is tried, and the pause between: ten minutes in all.
const THAW_ATTEMPTS: u32 = 600;
const THAW_PAUSE: Duration = Duration::from_secs(1);

/// Why something could not be entrusted to a guard, so that it must not be done.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("start the guard {}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("talk to the guard")]
    Talk(#[source] io::Error),
    #[error("the guard is gone")]
    Gone,
    #[error("the guard takes no more debts")]
    Full,
    #[error("a debt of {bytes} bytes is larger than {TEXT_AT_MOST_BYTES}")]
    TooLarge { bytes: usize },
    #[error("write down what will be owed")]
    Ledger(#[from] LedgerError),
}

impl GuardError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Start { program, source } if source.kind() == io::ErrorKind::NotFound => Some(format!(
                "coffre-guard belongs beside coffre, and {} is not there: install both",
                program.display()
            )),
            Self::Ledger(error) => Some(format!(
                "{} must take writes; `run` and `state` in the config's [coffre] table name the folders",
                error.path.display()
            )),
            Self::Gone | Self::Talk(_) => {
                Some("something ended coffre-guard; see the system's log, then run it again".to_owned())
            }
            Self::Start { .. } | Self::Full | Self::TooLarge { .. } => None,
        }
    }
}

/// Where a guard and its ledgers are.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// `coffre-guard`, which lies beside `coffre`.
    pub program: PathBuf,
    /// In memory: `/run/coffre`.
    pub run: PathBuf,
    pub state: PathBuf,
}

type Callback = Box<dyn Fn() + Send + Sync>;

/// A host's guard.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

struct Inner {
    config: GuardConfig,
    link: Mutex<Option<Arc<Link>>>,
    next_id: AtomicU32,
    on_gone: Arc<Mutex<BTreeMap<u32, Callback>>>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Guard").field("config", &self.inner.config).finish()
    }
}

/// A running guard, and what it is owed.
pub(crate) struct Link {
    socket: UnixStream,
    /// One question at a time.
    talking: Mutex<()>,
    volatile: Ledger,
    durable: Ledger,
    /// The ledgers' lengths with nothing in them.
    began: [u64; 2],
    owed: Mutex<BTreeMap<u32, Standing>>,
    gone: AtomicBool,
    closing: AtomicBool,
    shelter: Shelter,
    process: Option<u32>,
}

/// A debt as we keep it for the case that the guard goes away.
struct Standing {
    durable: bool,
    mount: Option<OwnedFd>,
    /// To thaw by the guest agent.
    by_agent: Option<Debt>,
    /// It has been paid because the guard went away.
    settled: bool,
}

/// A debt that a guard has taken. Dropping it leaves it owed.
#[must_use = "it stays owed until it is paid"]
pub struct Owed {
    /// The guard is not let go while it is owed something.
    _guard: Guard,
    link: Arc<Link>,
    id: u32,
}

/// Who had paid when a debt was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nobody: it is paid by the one who takes it back.
    ByHost,
    /// The guard, since the deadline had passed.
    ByGuard,
    /// We, at once, since the guard was gone.
    GuardGone,
}

/// Ends a subscription of [`Guard::on_gone`] when it is dropped.
pub struct Subscription {
    of: Arc<Mutex<BTreeMap<u32, Callback>>>,
    id: u32,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        locked(&self.of).remove(&self.id);
    }
}

/// What it guards is as whole after a panic as before it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Starts nothing yet.
    pub fn new(config: GuardConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                link: Mutex::new(None),
                next_id: AtomicU32::new(1),
                on_gone: Arc::default(),
            }),
        }
    }

    pub fn config(&self) -> &GuardConfig {
        &self.inner.config
    }

    /// Sees to it that a guard runs, and says how well it is sheltered. For whoever wants to know before anything is
    /// disturbed; [`Self::owe`] does it as well.
    pub fn start(&self) -> Result<Shelter, GuardError> {
        Ok(self.link()?.shelter)
    }

    /// The guard's process, where this host started it.
    pub fn process(&self) -> Option<u32> {
        locked(&self.inner.link).as_ref().and_then(|link| link.process)
    }

    /// Whether a guard that was started has gone away and none has been started since.
    pub fn is_gone(&self) -> bool {
        let link = locked(&self.inner.link);
        link.as_ref().is_some_and(|link| link.gone.load(Ordering::SeqCst))
    }

    /// Calls `callback` when the guard goes away without having been asked to, after what was frozen is thawed.
    pub fn on_gone(&self, callback: impl Fn() + Send + Sync + 'static) -> Subscription {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        locked(&self.inner.on_gone).insert(id, Box::new(callback));
        Subscription {
            of: self.inner.on_gone.clone(),
            id,
        }
    }

    /// Entrusts a debt to the guard. When this has returned, and not before, it may be incurred. After `deadline` the guard
    /// pays it without being asked.
    ///
    /// A thaw is owed by [`Self::freeze`] alone.
    pub fn owe(&self, owner: &Owner, debt: &Debt, deadline: Instant) -> Result<Owed, GuardError> {
        self.owe_with(owner, debt, deadline, None)
    }

    pub(crate) fn owe_with(
        &self,
        owner: &Owner,
        debt: &Debt,
        deadline: Instant,
        mount: Option<OwnedFd>,
    ) -> Result<Owed, GuardError> {
        let link = self.link()?;
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let text = serde_json::to_vec(debt).map_err(|error| GuardError::Talk(error.into()))?;
        if text.len() > TEXT_AT_MOST_BYTES {
            return Err(GuardError::TooLarge { bytes: text.len() });
        }
        let durable = !debt.ends_with_the_kernel();
        link.ledger(durable).append(&Line::Owed {
            id,
            owner: owner.clone(),
            debt: debt.clone(),
        })?;
        let kind = match debt {
            Debt::Thaw { .. } => Kind::Thaw,
            Debt::AgentThaw { .. } => Kind::AgentThaw,
            Debt::EndTree { .. } => Kind::EndTree,
            Debt::Command { .. } => Kind::Command,
        };
        let message = Message {
            tag: Tag::Owe,
            id,
            deadline_ns: at_ns(deadline),
            kind,
            descriptor: mount.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            text: &text,
        };
        match link.ask(&message) {
            Ok(Code::Yes) => {}
            Ok(_) => {
                link.write_off(id, durable);
                return Err(GuardError::Full);
            }
            Err(error) => {
                // It may have heard us: what it does then to something that never came to be is harmless.
                link.write_off(id, durable);
                return Err(error);
            }
        }
        let standing = Standing {
            durable,
            mount,
            by_agent: matches!(debt, Debt::AgentThaw { .. }).then(|| debt.clone()),
            settled: false,
        };
        locked(&link.owed).insert(id, standing);
        let owed = Owed {
            _guard: self.clone(),
            link,
            id,
        };
        if owed.link.gone.load(Ordering::SeqCst) {
            owed.paid(Outcome::Nothing);
            return Err(GuardError::Gone);
        }
        Ok(owed)
    }

    /// The guard that runs, or a new one if there is none any more.
    fn link(&self) -> Result<Arc<Link>, GuardError> {
        let mut current = locked(&self.inner.link);
        if let Some(link) = current.as_ref().filter(|link| !link.gone.load(Ordering::SeqCst)) {
            return Ok(link.clone());
        }
        let link = start(&self.inner.config, &self.inner.on_gone)?;
        if let Some(before) = current.replace(link.clone()) {
            before.close();
        }
        Ok(link)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(link) = locked(&self.link).take() {
            link.close();
        }
    }
}

impl Owed {
    /// Its freeze has come to be.
    pub(crate) fn held(&self) {
        let _talking = locked(&self.link.talking);
        // A guard that is gone is noticed by the one who watches.
        let _ = wire::send(&self.link.socket, &Message::plain(Tag::Held, self.id));
    }

    /// Whether the guard is gone, so that what it was owed has been paid or is to be paid by us.
    pub fn guard_is_gone(&self) -> bool {
        self.link.gone.load(Ordering::SeqCst)
    }

    /// Takes the debt back: it has been paid, or never came to be. Says who paid it.
    pub fn paid(self, outcome: Outcome) -> Settled {
        let answer = self.link.ask(&Message::plain(Tag::Paid, self.id));
        let standing = locked(&self.link.owed).remove(&self.id);
        let settled = match answer {
            Ok(Code::PaidByGuard) => Settled::ByGuard,
            _ if standing.as_ref().is_some_and(|standing| standing.settled) => Settled::GuardGone,
            _ => Settled::ByHost,
        };
        if settled == Settled::ByHost {
            let durable = standing.as_ref().is_some_and(|standing| standing.durable);
            let line = Line::paid(self.id, Payer::Host, Why::Done, outcome);
            // Paid twice is harmless, and owed for ever is not: the next start finds nothing to do.
            let _ = self.link.ledger(durable).append(&line);
        }
        self.link.tidy();
        settled
    }
}

impl Link {
    fn ledger(&self, durable: bool) -> &Ledger {
        if durable { &self.durable } else { &self.volatile }
    }

    /// Says something to the guard and waits for its answer.
    fn ask(&self, message: &Message<'_>) -> Result<Code, GuardError> {
        let _talking = locked(&self.talking);
        if self.gone.load(Ordering::SeqCst) {
            return Err(GuardError::Gone);
        }
        let answer = wire::send(&self.socket, message).and_then(|()| wire::await_reply(&self.socket, message.tag));
        let error = match answer {
            Ok((id, code)) if id == message.id => return Ok(code),
            Ok(_) => GuardError::Talk(io::Error::other("an answer about another debt")),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => {
                GuardError::Gone
            }
            Err(error) => GuardError::Talk(error),
        };
        // Out of step, silent or gone: whoever watches the socket pays what is owed.
        let _ = self.socket.shutdown(Shutdown::Both);
        Err(error)
    }

    /// A debt that was written down and not incurred.
    fn write_off(&self, id: u32, durable: bool) {
        let line = Line::paid(id, Payer::Host, Why::Done, Outcome::Nothing);
        let _ = self.ledger(durable).append(&line);
    }

    /// Shortens the ledgers when nothing is owed.
    fn tidy(&self) {
        let owed = locked(&self.owed);
        if owed.is_empty() {
            for (ledger, began) in [&self.volatile, &self.durable].into_iter().zip(self.began) {
                if ledger.len_bytes() > began {
                    let _ = ledger.forget(began);
                }
            }
        }
    }

    /// Lets the guard go. What is still owed it pays.
    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if locked(&self.owed).is_empty() {
            self.volatile.remove();
            self.durable.remove();
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Waits for the guard to go away; if nobody asked it to, pays at once.
    fn watch(&self, mut child: Option<Child>, on_gone: &Mutex<BTreeMap<u32, Callback>>) {
        loop {
            let mut waiting = [PollFd::new(&self.socket, PollFlags::RDHUP)];
            if poll(&mut waiting, None).is_ok() {
                break;
            }
        }
        if !self.closing.load(Ordering::SeqCst) {
            self.gone.store(true, Ordering::SeqCst);
            self.pay_at_once();
            for callback in locked(on_gone).values() {
                callback();
            }
        }
        if let Some(child) = &mut child {
            let _ = child.wait();
        }
    }

    /// Thaws everything, the last frozen first, what is here before what is in machines: that may take seconds. Process trees and commands are ended and run by those who wait for them.
    fn pay_at_once(&self) {
        self.thaw_at_once();
        for (id, standing) in locked(&self.owed).iter_mut().rev() {
            let Some(debt) = standing.by_agent.as_ref().filter(|_| !standing.settled) else {
                continue;
            };
            // One that does not work stays owed in the ledger.
            if let Ok(outcome) = pay::pay(debt) {
                standing.settled = true;
                let line = Line::paid(*id, Payer::Host, Why::GuardGone, outcome);
                let _ = self.volatile.append(&line);
            }
        }
    }

    fn thaw_at_once(&self) {
        for _ in 0..THAW_ATTEMPTS {
            let mut again = false;
            for (id, standing) in locked(&self.owed).iter_mut().rev() {
                let Some(mount) = standing.mount.as_ref().filter(|_| !standing.settled) else {
                    continue;
                };
                match ioctl::thaw(mount) {
                    Ok(()) => {
                        standing.settled = true;
                        let line = Line::paid(*id, Payer::Host, Why::GuardGone, Outcome::Thawed);
                        let _ = self.volatile.append(&line);
                    }
                    // Not frozen yet: whoever freezes it looks whether the guard is gone when that is done.
                    Err(Errno::INVAL) => {}
                    Err(_) => again = true,
                }
            }
            if !again {
                return;
            }
            std::thread::sleep(THAW_PAUSE);
        }
    }
}

/// Starts a guard or finds the one that is a service, and makes itself known to it.
fn start(config: &GuardConfig, on_gone: &Arc<Mutex<BTreeMap<u32, Callback>>>) -> Result<Arc<Link>, GuardError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    let started = crate::tree::started_ticks(process as i32).unwrap_or_default();
    let name = format!("{process}-{started}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let volatile = Ledger::create(&config.run, &name, false)?;
    let durable = Ledger::create(&config.state, &name, true)?;
    let met = meet(config, &volatile, &durable);
    let (socket, child, shelter) = match met {
        Ok(met) => met,
        Err(error) => {
            volatile.remove();
            durable.remove();
            return Err(error);
        }
    };
    let began = [volatile.len_bytes(), durable.len_bytes()];
    let link = Arc::new(Link {
        socket,
        talking: Mutex::new(()),
        volatile,
        durable,
        began,
        owed: Mutex::default(),
        gone: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        shelter,
        process: child.as_ref().map(Child::id),
    });
    let (watched, callbacks) = (link.clone(), on_gone.clone());
    std::thread::Builder::new()
        .name("guard-watch".to_owned())
        .spawn(move || watched.watch(child, &callbacks))
        .map_err(GuardError::Talk)?;
    Ok(link)
}

fn meet(
    config: &GuardConfig,
    volatile: &Ledger,
    durable: &Ledger,
) -> Result<(UnixStream, Option<Child>, Shelter), GuardError> {
    let (socket, child) = match service(&config.run.join(SERVICE_SOCKET)) {
        Some(socket) => (socket, None),
        None => spawn(&config.program)?,
    };
    socket
        .set_read_timeout(Some(ANSWERS_WITHIN))
        .map_err(GuardError::Talk)?;
    let hello = Hello {
        host: std::process::id() as i32,
        volatile: volatile.path.clone(),
        durable: durable.path.clone(),
    };
    let text = serde_json::to_vec(&hello).map_err(|error| GuardError::Talk(error.into()))?;
    let hello = Message {
        text: &text,
        ..Message::plain(Tag::Hello, VERSION)
    };
    wire::send(&socket, &hello).map_err(GuardError::Talk)?;
    let (bits, _) = wire::await_reply(&socket, Tag::Hello).map_err(GuardError::Talk)?;
    Ok((socket, child, Shelter::from_bits(bits)))
}

/// The guard that is a unit of its own, if one listens there and is of our own user.
fn service(path: &Path) -> Option<UnixStream> {
    let socket = UnixStream::connect(path).ok()?;
    (peer::user_of(&socket).ok()? == rustix::process::geteuid().as_raw()).then_some(socket)
}

fn spawn(program: &Path) -> Result<(UnixStream, Option<Child>), GuardError> {
    let failed = |source: io::Error| GuardError::Start {
        program: program.to_owned(),
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let child = Command::new(program)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    Ok((ours, Some(child)))
}
