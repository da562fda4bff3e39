//! Machines that are frozen by their guest agents. The agent is a stand-in: the real one would thaw this host.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use coffre_guard::{Payer, Why};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::killed::told;
use crate::world::{World, is_gone, until};

/// Longer than any of these tests takes.
const LONG: &str = "600000";

/// An agent in a machine that is frozen.
struct Agent {
    socket: PathBuf,
    is_frozen: Arc<AtomicBool>,
    /// So often it closes the connection before it answers.
    refuses: Arc<AtomicU32>,
}

impl Agent {
    fn start(world: &World) -> Self {
        let agent = Self {
            socket: world.path("agent.sock"),
            is_frozen: Arc::new(AtomicBool::new(true)),
            refuses: Arc::default(),
        };
        let listener = UnixListener::bind(&agent.socket).unwrap();
        let (is_frozen, refuses) = (agent.is_frozen.clone(), agent.refuses.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if refuses
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
                {
                    continue;
                }
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                    let text: Vec<u8> = line.iter().copied().filter(|byte| *byte != 0xff).collect();
                    let question: Value = serde_json::from_slice(&text).unwrap();
                    let answer = match question["execute"].as_str().unwrap() {
                        // What somebody else was told and never read comes first.
                        "guest-sync-delimited" => {
                            (&stream).write_all(b"{\"return\": 1}\n\xff").unwrap();
                            question["arguments"]["id"].clone()
                        }
                        "guest-fsfreeze-thaw" => json!(u8::from(is_frozen.swap(false, Ordering::SeqCst)) * 2),
                        other => panic!("{other}"),
                    };
                    (&stream)
                        .write_all(format!("{}\n", json!({ "return": answer })).as_bytes())
                        .unwrap();
                    line.clear();
                }
            }
        });
        agent
    }

    fn is_thawed(&self) -> bool {
        !self.is_frozen.load(Ordering::SeqCst)
    }

    fn words(socket: &Path) -> String {
        format!("the machine whose agent is at {} was ", socket.display())
    }
}

fn frozen(deadline_ms: &str) -> (Agent, World, crate::world::Host) {
    let world = World::new();
    let agent = Agent::start(&world);
    let mut host = world.host(&["agent", deadline_ms, &agent.socket.display().to_string()]);
    host.expect("owed");
    assert!(!agent.is_thawed());
    (agent, world, host)
}

#[test]
fn a_machine_is_thawed_when_its_host_is_killed() {
    let (agent, world, host) = frozen(LONG);
    // Whoever talked to it may be about to hang up.
    agent.refuses.store(2, Ordering::SeqCst);
    host.send(Signal::KILL);
    until(|| agent.is_thawed());
    until(|| is_gone(host.guard));
    let (by, why, text) = told(world.settle());
    assert_eq!((by, why), (Payer::Guard, Why::HostGone), "{text}");
    let words = format!("{}thawed by the guard", Agent::words(&agent.socket));
    assert!(text.starts_with(&words), "{text}");
    assert!(world.ledgers().is_empty());
}

#[test]
fn a_machine_is_thawed_at_the_deadline_though_its_host_is_stopped() {
    let (agent, _world, mut host) = frozen("500");
    host.send(Signal::STOP);
    until(|| agent.is_thawed());
    host.send(Signal::CONT);
    host.go_on();
    host.expect("ByGuard");
}

#[test]
fn a_machine_is_thawed_at_once_when_the_guard_is_killed() {
    let (agent, _world, mut host) = frozen(LONG);
    host.send_guard(Signal::KILL);
    until(|| agent.is_thawed());
    host.go_on();
    host.expect("GuardGone");
}

#[test]
fn a_machine_is_thawed_at_the_next_start_when_all_were_killed() {
    let (agent, world, mut host) = frozen(LONG);
    host.kill_both();
    assert!(!agent.is_thawed());
    let (by, why, text) = told(world.settle());
    assert!(agent.is_thawed());
    assert_eq!((by, why), (Payer::Later, Why::Found), "{text}");
}

#[test]
fn a_host_that_thaws_by_itself_owes_nothing() {
    let (agent, world, mut host) = frozen(LONG);
    host.go_on();
    host.expect("ByHost");
    assert!(!agent.is_thawed(), "that was the host's to do");
    until(|| world.ledgers().is_empty());
}
