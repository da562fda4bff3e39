//! What is handed to the far side's shell, and what it reports.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use coffre_guard::tree::{MARKER_NAME, Marker};

use crate::hook::call::Phase;
use crate::hook::limits::{ATTACHMENT_BYTES, ATTACHMENTS, MEMORY_BYTES};
use crate::process::{KEPT_OUTPUT_BYTES, Kept};

/// What the far side does with what stands above it.
const SIDE: &str = include_str!("side.sh");

/// One call.
pub(super) struct Asked<'a> {
    pub phase: Phase,
    /// By its path there.
    pub program: &'a Path,
    /// After the phase.
    pub arguments: &'a [String],
    pub environment: &'a [(String, String)],
    pub facts: &'a str,
    pub memory: &'a str,
    pub secrets: &'a [(String, String)],
    pub time: Duration,
    /// Its standard input stays open for as long as somebody waits.
    pub watch_input: bool,
}

impl Asked<'_> {
    /// The mark of the report's lines, and the script. Secrets stand in it, but in no command line: the shell reads it from
    /// its standard input, and what lays them down is built into the shell.
    pub(super) fn script(&self) -> (String, String) {
        let mark = Marker::new().text().to_owned();
        let yes_no = |truth: bool| if truth { "yes" } else { "no" };
        let mut text = String::new();
        let mut set = |name: &str, value: &str| {
            text.push_str(&format!("{name}={}\n", quoted(value)));
        };
        set("run", &mark);
        set("phase", self.phase.as_str());
        set("program", &self.program.display().to_string());
        set("seconds", &format!("{:.3}", self.time.as_secs_f64()));
        set("whole_seconds", &self.time.as_secs_f64().ceil().to_string());
        set("watch_input", yes_no(self.watch_input));
        set("has_secrets", yes_no(!self.secrets.is_empty()));
        set("keep_bytes", &KEPT_OUTPUT_BYTES.to_string());
        set("memory_bytes", &MEMORY_BYTES.to_string());
        set("attachments", &ATTACHMENTS.to_string());
        set("attachment_bytes", &ATTACHMENT_BYTES.to_string());
        set("context", &BASE64.encode(self.facts));
        set("memory", &BASE64.encode(self.memory));
        let words = std::iter::once(self.phase.as_str()).chain(self.arguments.iter().map(String::as_str));
        let words: Vec<String> = words.map(quoted).collect();
        text.push_str(&format!("set -- {}\n", words.join(" ")));
        text.push_str("lay_secrets() {\n:\n");
        for (name, value) in self.secrets {
            let (value, name) = (quoted(&BASE64.encode(value)), quoted(name));
            text.push_str(&format!("printf %s {value} | base64 -d > \"$folder/secrets/\"{name}\n"));
        }
        text.push_str("}\n");
        text.push_str(&self.call());
        text.push_str(SIDE);
        (mark, text)
    }

    /// What runs the program, in the place of the shell that calls this.
    fn call(&self) -> String {
        let mut told: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| quoted(&format!("{name}={value}")))
            .collect();
        told.push(format!("{MARKER_NAME}=\"$run\""));
        told.push("COFFRE_CONTEXT=\"$folder/context.json\"".to_owned());
        told.push("COFFRE_MEMORY=\"$folder/memory\"".to_owned());
        if self.phase == Phase::Post {
            told.push("COFFRE_ATTACHMENTS=\"$folder/attachments\"".to_owned());
        }
        if !self.secrets.is_empty() {
            told.push("COFFRE_SECRETS=\"$folder/secrets\"".to_owned());
        }
        format!(
            "call() {{ exec $session env -i PATH=\"$PATH\" HOME=\"$HOME\" LANG=C.UTF-8 {} \"$program\" \"$@\"; }}\n",
            told.join(" ")
        )
    }
}

/// As a word that a shell takes as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What the far side says.
#[derive(Debug)]
pub(super) enum Answer {
    /// The program was not run.
    Refused {
        invalid: bool,
        text: String,
    },
    /// It was only looked at.
    Fine,
    Ended(Report),
}

/// What came of a program.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub status: i32,
    pub was_late: bool,
    /// Numbers of processes that could not be killed.
    pub left: String,
    pub stdout: Kept,
    pub stderr: Kept,
    pub memory: Vec<u8>,
    pub attached: Vec<(Vec<u8>, Vec<u8>)>,
    /// Something lies where a file should.
    pub odd: Option<String>,
}

impl Answer {
    /// None: it is not whole. What a login shell may say before is passed over.
    pub(super) fn read(mark: &str, heard: &[u8]) -> Option<Self> {
        let heard = String::from_utf8_lossy(heard);
        let mut report = Report::default();
        let mut has_status = false;
        for line in heard.lines() {
            let Some(line) = line.strip_prefix(mark).and_then(|line| line.strip_prefix(' ')) else {
                continue;
            };
            let mut words = line.split(' ');
            let key = words.next()?;
            match key {
                "refused" => {
                    let invalid = words.next()? == "invalid";
                    let text = String::from_utf8_lossy(&unpacked(words.next())?).into_owned();
                    return Some(Self::Refused { invalid, text });
                }
                "fine" => return Some(Self::Fine),
                "status" => {
                    report.status = words.next()?.parse().ok()?;
                    has_status = true;
                }
                "late" => report.was_late = words.next()? == "yes",
                "left" => report.left = words.collect::<Vec<_>>().join(", "),
                "stdout" => report.stdout = kept(&mut words)?,
                "stderr" => report.stderr = kept(&mut words)?,
                "memory" => report.memory = unpacked(words.next())?,
                "attached" => report.attached.push((unpacked(words.next())?, unpacked(words.next())?)),
                "odd" => report.odd = Some(String::from_utf8_lossy(&unpacked(words.next())?).into_owned()),
                "end" => return has_status.then_some(Self::Ended(report)),
                _ => {}
            }
        }
        None
    }
}

fn unpacked(word: Option<&str>) -> Option<Vec<u8>> {
    BASE64.decode(word.unwrap_or_default()).ok()
}

/// How much more there was, and the beginning.
fn kept<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Kept> {
    let more: u64 = words.next()?.parse().ok()?;
    let bytes = unpacked(words.next())?;
    Some(Kept {
        total_bytes: bytes.len() as u64 + more,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_taken_as_it_is() {
        assert_eq!(quoted("a'b $(c)\n"), r"'a'\''b $(c)".to_owned() + "\n'");
    }

    /// What `/bin/sh` is differs: dash on Debian, bash on RHEL.
    #[test]
    fn the_side_does_the_same_in_every_shell() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("hook");
        let text = "#!/bin/sh\nprintf '[%s]' \"$@\" \"$COFFRE_X\"; cat \"$COFFRE_MEMORY\" \"$COFFRE_SECRETS/key\"\n\
                    echo more >> \"$COFFRE_MEMORY\"; setsid sleep 300 & [ \"$2\" = ends ] || sleep 300; exit 3\n";
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for shell in ["/bin/dash", "/bin/bash"] {
            for word in ["ends", "hangs"] {
                let asked = Asked {
                    phase: Phase::Pre,
                    program: &program,
                    arguments: &[word.to_owned(), String::new(), "it's $(x)".to_owned()],
                    environment: &[("COFFRE_X".to_owned(), "a\nb'".to_owned())],
                    facts: "{}",
                    memory: "old\n",
                    secrets: &[("key".to_owned(), "hunter2".to_owned())],
                    time: Duration::from_secs(if word == "ends" { 30 } else { 1 }),
                    watch_input: false,
                };
                let (mark, script) = asked.script();
                let mut child = std::process::Command::new(shell)
                    .arg("-s")
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut stdin = child.stdin.take().unwrap();
                std::io::Write::write_all(&mut stdin, script.as_bytes()).unwrap();
                drop(stdin);
                let output = child.wait_with_output().unwrap();
                let answer = Answer::read(&mark, &output.stdout);
                let Some(Answer::Ended(report)) = answer else {
                    panic!("{shell} {word}: {answer:?} {output:?}");
                };
                assert_eq!(report.was_late, word == "hangs", "{shell}");
                assert!(report.status == 3 || word == "hangs", "{shell}: {report:?}");
                assert_eq!(
                    String::from_utf8_lossy(&report.stdout.bytes),
                    format!("[pre][{word}][][it's $(x)][a\nb']old\nhunter2"),
                    "{shell}"
                );
                assert_eq!(report.memory, b"old\nmore\n", "{shell}");
                assert_eq!(report.left, "", "{shell}");
            }
        }
    }

    #[test]
    fn a_report_that_is_cut_anywhere_is_none() {
        let whole = "m here\nm started\nm status 3\nm late no\nm stdout 5 YQ==\nm stderr 0 \nm memory eA==\nm attached bg== eQ==\nm end\n";
        let Some(Answer::Ended(report)) = Answer::read("m", format!("motd\n{whole}").as_bytes()) else {
            panic!("it is whole");
        };
        assert_eq!((report.status, report.was_late), (3, false));
        assert_eq!(
            (report.stdout.bytes.as_slice(), report.stdout.total_bytes),
            (&b"a"[..], 6)
        );
        assert_eq!(report.memory, b"x");
        assert_eq!(report.attached, [(b"n".to_vec(), b"y".to_vec())]);
        for length in 0..whole.len() - 4 {
            assert!(Answer::read("m", &whole.as_bytes()[..length]).is_none(), "{length}");
        }
    }
}
