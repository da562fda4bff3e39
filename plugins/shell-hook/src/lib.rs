//! A hook that runs pieces of shell, or misbehaves, as its settings say, so that tests can hold it against the contract.

use serde::Deserialize;

#[allow(clippy::all, missing_docs, rust_2018_idioms)]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "application-hook",
    });
}

use bindings::coffre::plugin::types::{Attachment, Failure, Finding, Level};
use bindings::coffre::plugin::{log, process, secret, session, time};
use bindings::exports::coffre::plugin::hook::{Context, Description, Guest, Rest, SnapshotReport};

/// More than any test wants to keep.
const OUTPUT_BYTES: u32 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    pre: String,
    #[serde(default)]
    post: String,
    #[serde(default)]
    behaviour: String,
}

impl Settings {
    fn of(context: &Context) -> Result<Self, Failure> {
        serde_json::from_str(&context.settings).map_err(|error| Failure::InvalidSettings(error.to_string()))
    }
}

/// Runs a piece of shell and gives what it wrote.
fn shell(text: &str) -> Result<String, Failure> {
    let command = process::Command {
        program: "/bin/sh".to_owned(),
        arguments: vec!["-c".to_owned(), text.to_owned()],
        environment: Vec::new(),
    };
    let done = process::run(&command, &[], OUTPUT_BYTES, time::left_ms())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match done.status {
        0 => Ok(text(&done.stdout)),
        75 => Err(Failure::Busy(text(&done.stderr))),
        _ => Err(Failure::Failed(text(&done.stderr))),
    }
}

fn eat() -> ! {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 1 << 20]);
    }
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

struct ShellHook;

bindings::export!(ShellHook with_types_in bindings);

impl Guest for ShellHook {
    fn describe() -> Description {
        Description {
            name: "shell-hook".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            declares_application: true,
            settings_schema: "{}".to_owned(),
        }
    }

    fn check(context: Context) -> Result<Vec<Finding>, Failure> {
        let settings = Settings::of(&context)?;
        let finding = |text: &str| Finding {
            level: Level::Warning,
            disk: None,
            text: text.to_owned(),
        };
        Ok(match settings.behaviour.as_str() {
            "warn" => vec![finding("it is \u{1b}[31mred")],
            _ => Vec::new(),
        })
    }

    fn pre(context: Context) -> Result<Rest, Failure> {
        let settings = Settings::of(&context)?;
        let mut memory = None;
        match settings.behaviour.as_str() {
            "spin" => spin(),
            "eat" => eat(),
            "panic" => panic!("it is what it is"),
            "trespass" => drop(process::run(
                &process::Command {
                    program: "/usr/bin/id".to_owned(),
                    arguments: Vec::new(),
                    environment: Vec::new(),
                },
                &[],
                OUTPUT_BYTES,
                time::left_ms(),
            )?),
            "hold" => drop(session::Live::start(
                "session",
                &process::Command {
                    program: "/bin/sh".to_owned(),
                    arguments: vec!["-c".to_owned(), "cat".to_owned()],
                    environment: Vec::new(),
                },
            )?),
            "tell" => log::write(log::Level::Info, &format!("it is {}", secret::get("password")?)),
            "remember-secret" => memory = Some(secret::get("password")?),
            "remember-much" => memory = Some("x".repeat(64 * 1024 + 1)),
            _ => {}
        }
        let said = shell(&settings.pre)?;
        Ok(Rest {
            application_consistent: true,
            memory: memory.or((!said.is_empty()).then_some(said)),
        })
    }

    fn post(context: Context, memory: Option<String>, snapshot: SnapshotReport) -> Result<Vec<Attachment>, Failure> {
        let settings = Settings::of(&context)?;
        shell(&settings.post)?;
        let attachment = |name: &str, text: String| Attachment {
            name: name.to_owned(),
            media_type: "text/plain".to_owned(),
            content: text.into_bytes(),
        };
        Ok(match settings.behaviour.as_str() {
            "attach" => vec![
                attachment("memory", format!("{memory:?}")),
                attachment("snapshot", format!("{snapshot:?}")),
            ],
            "attach-secret" => vec![attachment("password", secret::get("password")?)],
            "attach-oddly" => vec![attachment("../../etc/passwd", String::new())],
            _ => Vec::new(),
        })
    }
}
