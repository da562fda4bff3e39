//! A provider that misbehaves as its settings say, so that tests can show that the sandbox holds.
//!
//! `behaviour = "WHAT"` with WHAT one of those in the `match`es below; without it the provider is honest: one disk `root`
//! in `IMAGES/root.img`.

use coffre_plugin_sdk::{
    Attachment, Base, Consistency, Description, Disk, Extent, Failure, Finding, Level, ListedChanges, Machine,
    NbdExport, Provider, Request, Snapshot, Source, Step, Steps, TakenDisk, guest_agent, log, process, secret, storage,
    time, unix_socket,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Settings {
    images: String,
    #[serde(default)]
    behaviour: String,
    #[serde(default)]
    path: String,
}

impl Settings {
    fn of(machine: &Machine) -> Self {
        coffre_plugin_sdk::settings(machine).unwrap_or(Self {
            images: String::new(),
            behaviour: "unset".to_owned(),
            path: String::new(),
        })
    }
}

struct Hostile;

coffre_plugin_sdk::provider!(Hostile);

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

fn eat() {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 1024 * 1024]);
    }
}

#[allow(unconditional_recursion)]
fn dive(depth: u64) -> u64 {
    std::hint::black_box(dive(std::hint::black_box(depth + 1)) + depth)
}

fn disk(id: &str, size_bytes: u64) -> Disk {
    Disk {
        id: id.to_owned(),
        size_bytes,
        label: None,
    }
}

/// Calls what the settings name, and says what came back.
fn probe(settings: &Settings) -> Result<String, Failure> {
    let path = settings.path.as_str();
    let target = format!("{}/.coffre/x", settings.images);
    let command = |program: &str, arguments: &[&str]| process::Command {
        program: program.to_owned(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        environment: Vec::new(),
    };
    match settings.behaviour.as_str() {
        "probe-stat" => storage::stat(path).map(|found| format!("{} bytes on {}", found.size_bytes, found.file_system)),
        "probe-list" => storage::list_folder(path).map(|found| format!("{} entries", found.len())),
        "probe-create" => storage::create_folder(path).map(|()| "made".to_owned()),
        "probe-reflink" => storage::reflink(path, &target).map(|()| "cloned".to_owned()),
        "probe-link" => storage::link(path, &target).map(|()| "linked".to_owned()),
        "probe-remove" => storage::remove(path).map(|()| "removed".to_owned()),
        "probe-use" => storage::in_use(path).map(|usage| format!("{:?}: {}", usage.state, usage.how)),
        "probe-freeze" => storage::freeze(path, 1000).map(|()| "frozen".to_owned()),
        "probe-secret" => secret::get(path),
        "probe-echo" => process::run(&command("/bin/echo", &[path]), &[], 1024, 5000)
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        "probe-shell" => {
            process::run(&command("/bin/sh", &["-c", path]), &[], 1024, 5000).map(|output| output.status.to_string())
        }
        "probe-child" => process::Child::spawn(&command("/bin/echo", &["hello"])).map(|_| "spawned".to_owned()),
        "probe-socket" => unix_socket::Connection::connect(path).map(|_| "connected".to_owned()),
        "probe-agent" => {
            guest_agent::freeze(&guest_agent::Agent::Socket(path.to_owned()), None, 1000).map(|count| count.to_string())
        }
        other => Err(Failure::Failed(format!("no such probe: {other}"))),
    }
}

impl Provider for Hostile {
    fn describe() -> Description {
        Description {
            name: "hostile".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::FileSystem,
            one_instant: true,
            tracks_changes: true,
            runs_outside: true,
            settings_schema: "{}".to_owned(),
        }
    }

    fn discover(machine: &Machine) -> Result<Vec<Disk>, Failure> {
        let settings = Settings::of(machine);
        match settings.behaviour.as_str() {
            "loop" => spin(),
            "eat" => {
                eat();
                Ok(Vec::new())
            }
            "dive" => {
                std::hint::black_box(dive(0));
                Ok(Vec::new())
            }
            "panic" => panic!("no mood for disks"),
            "sleep" => {
                time::sleep(u32::MAX);
                spin()
            }
            "flood" => {
                for line in 0..100_000_u32 {
                    log::write(log::Level::Info, &format!("line {line}"));
                }
                Ok(vec![disk("root", 0)])
            }
            "long-line" => {
                log::write(log::Level::Info, &"x".repeat(20 * 1024 * 1024));
                Ok(vec![disk("root", 0)])
            }
            "huge-log" => {
                log::write(log::Level::Info, &"x".repeat(60 * 1024 * 1024));
                Ok(vec![disk("root", 0)])
            }
            "many-disks" => Ok((0..100_000_u32).map(|number| disk(&format!("d{number}"), 0)).collect()),
            "same-disk-twice" => Ok(vec![disk("root", 0), disk("root", 0)]),
            "odd-id" => Ok(vec![disk("../../etc/shadow", 0)]),
            "huge-disk" => Ok(vec![disk("root", u64::MAX)]),
            "escapes" => Err(Failure::Failed("\u{1b}]0;owned\u{7} and \u{1b}[2J".to_owned())),
            name if name.starts_with("probe-") => {
                let said = probe(&settings)?;
                Ok(vec![Disk {
                    id: "probe".to_owned(),
                    size_bytes: 0,
                    label: Some(said),
                }])
            }
            _ => {
                let found = storage::stat(&format!("{}/root.img", settings.images))?;
                Ok(vec![disk("root", found.size_bytes)])
            }
        }
    }

    fn check(machine: &Machine, _disks: &[String]) -> Result<Vec<Finding>, Failure> {
        match Settings::of(machine).behaviour.as_str() {
            "finding-elsewhere" => Ok(vec![Finding {
                level: Level::Note,
                disk: Some("other".to_owned()),
                text: "hm".to_owned(),
            }]),
            _ => Ok(Vec::new()),
        }
    }

    fn take(machine: &Machine, request: &Request) -> Result<Snapshot, Failure> {
        let settings = Settings::of(machine);
        let path = format!("{}/root.img", settings.images);
        let size_bytes = storage::stat(&path)?.size_bytes;
        let honest = TakenDisk {
            id: "root".to_owned(),
            size_bytes,
            source: Source::Path(path),
            token: Some(request.id.clone()),
        };
        let mut taken = Snapshot {
            consistency: Consistency::Crash,
            reason: "it says so".to_owned(),
            one_instant: true,
            disks: vec![honest.clone()],
            frozen_ms: None,
            attachments: Vec::new(),
        };
        let root = &mut taken.disks[0];
        match settings.behaviour.as_str() {
            "take-loop" => spin(),
            "take-elsewhere" => root.source = Source::Path(settings.path),
            "take-nbd" => {
                root.source = Source::Nbd(NbdExport {
                    uri: settings.path,
                    changed_context: None,
                })
            }
            "take-larger" => root.size_bytes += 1,
            "take-stream" => root.source = Source::Stream,
            "take-unasked" => taken.disks.push(TakenDisk {
                id: "other".to_owned(),
                ..honest
            }),
            "take-twice" => taken.disks.push(honest),
            "take-nothing" => taken.disks.clear(),
            "take-best" => taken.consistency = Consistency::Application,
            "take-no-reason" => taken.reason = "  ".to_owned(),
            "take-long-token" => root.token = Some("x".repeat(2000)),
            "take-odd-token" => root.token = Some("a\nb".to_owned()),
            "take-large-attachment" | "take-odd-attachment" => {
                let large = settings.behaviour == "take-large-attachment";
                taken.attachments.push(Attachment {
                    name: if large { "definition" } else { "../definition" }.to_owned(),
                    media_type: "application/xml".to_owned(),
                    content: vec![b'x'; if large { 1024 * 1024 + 1 } else { 1 }],
                });
            }
            _ => {}
        }
        Ok(taken)
    }

    fn changed(machine: &Machine, _id: &str, _disk: &str, _base: &str) -> Result<ListedChanges, Failure> {
        let behaviour = Settings::of(machine).behaviour;
        match behaviour.as_str() {
            "changed-context" => Ok(ListedChanges::InNbdContext),
            "changed-panic" => panic!("no mood for changes"),
            "changed-fail" => Err(Failure::Unavailable("not now".to_owned())),
            _ => Ok(ListedChanges::Listed(Box::new(Lies { behaviour, step: 0 }))),
        }
    }

    fn read(machine: &Machine, _id: &str, _disk: &str, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let mut bytes: Vec<u8> = (0..length).map(|at| (offset + u64::from(at)) as u8).collect();
        if Settings::of(machine).behaviour == "read-short" {
            bytes.pop();
        }
        Ok(bytes)
    }

    fn settle(_machine: &Machine, _keep: &[Base]) -> Result<(), Failure> {
        Ok(())
    }

    fn release(_machine: &Machine, _id: &str) -> Result<(), Failure> {
        Ok(())
    }

    fn held(machine: &Machine) -> Result<Vec<String>, Failure> {
        Ok(match Settings::of(machine).behaviour.as_str() {
            "held-odd" => vec!["../x".to_owned()],
            "held-many" => (0..10_000_u32).map(|number| format!("id-{number}")).collect(),
            _ => Vec::new(),
        })
    }
}

struct Lies {
    behaviour: String,
    step: u32,
}

impl Steps for Lies {
    fn next(&mut self) -> Step {
        let extent = |offset, length| Extent { offset, length };
        self.step += 1;
        Ok(match (self.behaviour.as_str(), self.step) {
            ("list-overlap", 1) => vec![extent(0, 8192), extent(4096, 4096)],
            ("list-unsorted", 1) => vec![extent(8192, 4096), extent(0, 4096)],
            ("list-empty-extent", 1) => vec![extent(0, 0)],
            ("list-past-end", 1) => vec![extent(1 << 40, 4096)],
            ("list-overflow", 1) => vec![extent(u64::MAX - 1, 4096)],
            ("list-back", 1) => vec![extent(8192, 4096)],
            ("list-back", 2) => vec![extent(0, 4096)],
            ("list-too-many", 1) => (0..70_000).map(|number| extent(number * 2, 1)).collect(),
            ("list-gigantic", 1) => vec![extent(0, 1); 2 * 1024 * 1024],
            ("list-loop", _) => spin(),
            ("list-panic", _) => panic!("no mood for lists"),
            ("list-honest", 1) => vec![extent(0, 4096), extent(8192, 4096)],
            ("list-honest", 2) => vec![extent(16384, 4096)],
            _ => Vec::new(),
        })
    }
}
