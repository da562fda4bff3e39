//! One behaviour, as a hook of each kind: what `pre` and `post` do is a piece of shell, which the kind runs in its own way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffre_engine::config::Config;
use coffre_engine::{HookFailure, HookRunner};
use coffre_sandbox::hook::{self, HookSpec};

use super::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rhai,
    Exec,
    Azure,
    Wasm,
    /// A program in the machine, by the guest agent.
    Agent,
    /// The same by ssh.
    Ssh,
}

impl Kind {
    pub const ALL: [Self; 6] = [Self::Rhai, Self::Exec, Self::Azure, Self::Wasm, Self::Agent, Self::Ssh];
    /// Those that call a program as the kind `exec` does.
    pub const PROGRAMS: [Self; 3] = [Self::Exec, Self::Agent, Self::Ssh];

    /// The line of a table that says where it runs.
    pub fn on(self) -> &'static str {
        match self {
            Self::Agent => "on = \"agent\"\n",
            Self::Ssh => "on = \"ssh:m\"\n",
            _ => "",
        }
    }

    /// What a failure is called in a point.
    pub fn code(self, step: &str, code: &'static str) -> &'static str {
        match (self, step, code) {
            (Self::Azure, "pre", "timed-out") => "FailedPrepostPreScriptTimeout",
            (Self::Azure, "post", "timed-out") => "FailedPrepostPostScriptTimeout",
            (Self::Azure, "pre", _) => "FailedPrepostPreScriptFailed",
            (Self::Azure, "post", _) => "FailedPrepostPostScriptFailed",
            _ => code,
        }
    }
}

/// A hook to be.
#[derive(Clone, Debug)]
pub struct Hook {
    pub kind: Kind,
    pub name: &'static str,
    /// Pieces of shell.
    pub pre: String,
    pub post: String,
    pub timeout_ms: u32,
    pub retries: u32,
    /// `fail`, `downgrade` or `warn`.
    pub on_failure: &'static str,
    behaviour: &'static str,
}

impl Hook {
    /// One that only says in the world's log what it does.
    pub fn new(world: &World, kind: Kind, name: &'static str) -> Self {
        let log = world.log_file().display().to_string();
        Self {
            kind,
            name,
            pre: format!("echo pre {name} >> {log}"),
            post: format!("echo post {name} >> {log}"),
            timeout_ms: 30_000,
            retries: 0,
            on_failure: "downgrade",
            behaviour: "",
        }
    }

    pub fn pre(mut self, more: &str) -> Self {
        self.pre = format!("{}\n{more}", self.pre);
        self
    }

    pub fn post(mut self, more: &str) -> Self {
        self.post = format!("{}\n{more}", self.post);
        self
    }

    pub fn timeout_ms(self, timeout_ms: u32) -> Self {
        Self { timeout_ms, ..self }
    }

    pub fn retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    pub fn on_failure(self, on_failure: &'static str) -> Self {
        Self { on_failure, ..self }
    }

    /// Where its code lies.
    pub fn file(&self) -> String {
        match self.kind {
            Kind::Rhai => format!("scripts/{}.rhai", self.name),
            Kind::Exec | Kind::Agent | Kind::Ssh => format!("scripts/{}", self.name),
            Kind::Azure => format!("scripts/{}.json", self.name),
            Kind::Wasm => format!("scripts/{}.wasm", self.name),
        }
    }

    /// Of a component: what else its settings say.
    pub fn behaviour(self, behaviour: &'static str) -> Self {
        Self { behaviour, ..self }
    }

    /// Writes its files and gives its table in the configuration.
    pub fn table(&self, world: &World) -> String {
        let name = self.name;
        let file = world.path(&self.file()).display().to_string();
        let terms = format!(
            "timeout = \"{}ms\"\nretries = {}\non-failure = \"{}\"\n",
            self.timeout_ms, self.retries, self.on_failure
        );
        match self.kind {
            Kind::Rhai => {
                world.write(&self.file(), &self.rhai(), 0o644);
                let grant = "process = [[\"/bin/sh\", \"-c\", \"{text}\"]]";
                format!("[hook.{name}]\nkind = \"rhai\"\nfile = \"{file}\"\n{terms}[hook.{name}.grant]\n{grant}\n")
            }
            Kind::Exec | Kind::Agent | Kind::Ssh => {
                world.write(&self.file(), &self.exec(), 0o755);
                let on = self.kind.on();
                format!("[hook.{name}]\nkind = \"exec\"\nfile = \"{file}\"\n{on}application = true\n{terms}")
            }
            Kind::Wasm => {
                let path = world.path(&self.file());
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::copy(component(), &path).unwrap();
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
                let settings = format!(
                    "{{ pre = {:?}, post = {:?}, behaviour = {:?} }}",
                    self.pre, self.post, self.behaviour
                );
                let process = "process = [[\"/bin/sh\", \"-c\", \"{text}\"]]";
                let secret = "secret = { password = { command = [\"/bin/echo\", \"hunter2\"] } }";
                format!(
                    "[hook.{name}]\nkind = \"wasm\"\nfile = \"{file}\"\nsettings = {settings}\n{terms}[hook.{name}.grant]\n\
                     {process}\n{secret}\n"
                )
            }
            Kind::Azure => {
                let script = |which: &str, text: &str| {
                    let path = world.write(
                        &format!("scripts/{name}-{which}"),
                        &format!("#!/bin/sh\n{text}\n"),
                        0o700,
                    );
                    path.display().to_string()
                };
                let file = serde_json::json!({
                    "pluginName": "ScriptRunner",
                    "preScriptLocation": script("pre", &self.pre),
                    "postScriptLocation": script("post", &self.post),
                    "preScriptNoOfRetries": self.retries,
                    "timeoutInSeconds": f64::from(self.timeout_ms) / 1000.0,
                    "continueBackupOnFailure": match self.on_failure {
                        "downgrade" => true,
                        "fail" => false,
                        other => panic!("Azure's framework has no way to say {other}"),
                    },
                });
                let path = world.write(&self.file(), &file.to_string(), 0o600);
                format!("[hook.{name}]\nkind = \"azure\"\nfile = \"{}\"\n", path.display())
            }
        }
    }

    fn rhai(&self) -> String {
        let function = |name: &str, text: &str, end: &str| {
            format!(
                "fn {name}(ctx) {{\n\
                 let done = run(\"/bin/sh\", [\"-c\", {text:?}]);\n\
                 if done.status == 75 {{ try_again(done.stderr); }}\n\
                 if done.status != 0 {{ fail(done.stderr); }}\n\
                 {end}\n}}\n"
            )
        };
        [
            function("pre", &self.pre, "application_consistent();"),
            function("post", &self.post, ""),
        ]
        .concat()
    }

    fn exec(&self) -> String {
        format!(
            "#!/bin/sh\ncase $1 in\npre)\n{}\n;;\npost)\n{}\n;;\n*) exit 64;;\nesac\n",
            self.pre, self.post
        )
    }
}

pub async fn load(config: &Config, name: &str) -> Result<Arc<dyn HookRunner>, HookFailure> {
    let mut spec = HookSpec::from_config(config, config.hook(name).unwrap())?;
    // One for all tests, so that a debug build compiles the component once.
    spec.cache_folder = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-hooks"));
    hook::load(name, &spec)
}

/// The component that does what its settings say.
fn component() -> PathBuf {
    built("plugins-test/shell-hook.wasm")
}

/// A plugin that ships.
pub fn shipped(name: &str) -> PathBuf {
    built(&format!("plugins/{name}.wasm"))
}

fn built(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("tmp lies in the target folder");
    let file = target.join(name);
    assert!(
        file.is_file(),
        "{} is not built: run `cargo xtask plugins`",
        file.display()
    );
    file
}
