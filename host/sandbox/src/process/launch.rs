//! Starts a command below its keeper.

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use coffre_guard::tree::{MARKER_NAME, Marker};

use super::Command;

/// Where programs that a command starts by bare name are looked for. Fixed, so that a hook works the same from a terminal,
/// from cron and as a service.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the command, which is `$@` and has an absolute path (so no function or builtin is meant), stops so that what it
/// left behind can be found below us, and ends with its status. The shell's own variables are not handed on.
const KEEPER: &str = r#"unset PWD OLDPWD SHLVL _
"$@"
s=$?; kill -STOP $$; exit $s"#;

#[allow(unsafe_code)]
pub(super) fn start(command: &Command, marker: &Marker, stdin: Stdio) -> std::io::Result<Child> {
    let mut keeper = std::process::Command::new("/bin/sh");
    keeper
        .args(["-c", KEEPER, "coffre-keeper"])
        .arg(&command.program)
        .args(&command.arguments)
        .env_clear()
        .env("PATH", PATH)
        .env(
            "HOME",
            std::env::home_dir()
                .filter(|home| home.is_absolute())
                .unwrap_or_else(|| "/".into()),
        )
        .env("LANG", "C.UTF-8")
        .envs(command.environment.iter().map(|(name, value)| (name, value)))
        .env(MARKER_NAME, marker.text())
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, since another thread may hold any lock. Both
    // closures' calls are bare system calls of rustix (setsid, prctl) that neither allocate nor lock, and turning their
    // errors into io::Error stores a number.
    unsafe {
        keeper.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::set_child_subreaper(Some(rustix::process::Pid::INIT))?;
            Ok(())
        });
    }
    keeper.spawn()
}
