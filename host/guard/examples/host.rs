//! A host that owes something and waits, for tests that kill it. It says on stdout what it has done.
//!
//! `host RUN STATE freeze MILLISECONDS MOUNT… | agent MILLISECONDS SOCKET | tree | command FILE`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coffre_guard::tree::{MARKER_NAME, Marker};
use coffre_guard::{Debt, Guard, GuardConfig, Outcome, Owner};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, state, mode, rest @ ..] = arguments.as_slice() else {
        panic!("RUN STATE MODE …");
    };
    let guard = Guard::new(GuardConfig {
        program: std::env::current_exe().unwrap().with_file_name("guard"),
        run: run.into(),
        state: state.into(),
    });
    let owner = Owner {
        machine: "web01".to_owned(),
        job: "j1".to_owned(),
    };
    let shelter = guard.start().unwrap();
    say(&format!("guard {} {}", guard.process().unwrap(), shelter.own_group));
    let hour = Instant::now() + Duration::from_secs(3600);
    match mode.as_str() {
        "freeze" => {
            let gone = Arc::new(AtomicBool::new(false));
            let told = gone.clone();
            let _subscription = guard.on_gone(move || told.store(true, Ordering::SeqCst));
            let deadline = Instant::now() + Duration::from_millis(rest[0].parse().unwrap());
            let mounts: Vec<PathBuf> = rest[1..].iter().map(PathBuf::from).collect();
            let frozen = guard.freeze(&owner, &mounts, &[], deadline).unwrap();
            say("frozen");
            // Until it is told to go on, or the guard is gone.
            let (sender, words) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut line = String::new();
                let _ = std::io::stdin().read_line(&mut line);
                let _ = sender.send(());
            });
            while !gone.load(Ordering::SeqCst) && words.recv_timeout(Duration::from_millis(5)).is_err() {}
            let thawed = frozen.thaw();
            say(&format!(
                "{:?}",
                thawed.mounts.iter().map(|mount| &mount.end).collect::<Vec<_>>()
            ));
        }
        "tree" => {
            let marker = Marker::new();
            let debt = Debt::EndTree {
                marker: marker.text().to_owned(),
            };
            let _owed = guard.owe(&owner, &debt, hour).unwrap();
            let mut child = std::process::Command::new("/bin/sh")
                .args(["-c", "setsid sleep 300 & echo started; wait"])
                .env(MARKER_NAME, marker.text())
                .spawn()
                .unwrap();
            let _ = child.wait();
        }
        "command" => {
            let debt = Debt::Command {
                arguments: vec!["/bin/touch".to_owned(), rest[0].clone()],
                environment: Vec::new(),
                timeout_ms: 5000,
            };
            let _owed = guard.owe(&owner, &debt, hour).unwrap();
            say("owed");
            std::thread::sleep(Duration::from_secs(300));
        }
        "agent" => {
            let debt = Debt::AgentThaw {
                socket: rest[1].clone().into(),
            };
            let deadline = Instant::now() + Duration::from_millis(rest[0].parse().unwrap());
            let owed = guard.owe(&owner, &debt, deadline).unwrap();
            say("owed");
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            say(&format!("{:?}", owed.paid(Outcome::Thawed)));
        }
        other => panic!("no mode {other}"),
    }
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}
