//! Says what a person must hear on every channel there is. None of them may block.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::NAME;

/// The system log's socket (syslog(3)); journald listens there too. 27 is the facility daemon, at the level error.
const LOG: &str = "/dev/log";
const ERROR: &str = "<27>";
/// The kernel's own log, which is on the console and survives in memory when nothing else takes a word.
const KERNEL_LOG: &str = "/dev/kmsg";

/// Says it to the system log, the kernel's log and on stderr.
pub(crate) fn say(text: &str) {
    let line = format!("{ERROR}{NAME}: {text}");
    if let Ok(socket) = UnixDatagram::unbound()
        && socket.set_nonblocking(true).is_ok()
    {
        let _ = socket.send_to(line.as_bytes(), LOG);
    }
    let mut kernel = OpenOptions::new();
    kernel.write(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    if let Ok(mut log) = kernel.open(KERNEL_LOG) {
        let _ = log.write_all(line.as_bytes());
    }
    on_stderr(&format!("{NAME}: {text}\n"));
}

/// Only if it takes a word at once: a pipe that nobody reads would hold us, and making it non-blocking would change it for
/// everybody else who has it.
pub(crate) fn on_stderr(text: &str) {
    let stderr = std::io::stderr();
    let mut waiting = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut waiting, Some(&now)) == Ok(1) && !waiting[0].revents().contains(PollFlags::ERR) {
        let _ = rustix::io::write(&stderr, text.as_bytes());
    }
}
