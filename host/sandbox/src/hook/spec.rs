//! What a hook is made of, and how the configuration's table becomes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use coffre_engine::HookFailure;
use coffre_engine::config::{Config, HookConfig, HookKind, HookPlace, SshConfig};
use coffre_engine::secret::SecretSource;
use serde_json::Value;

use super::failure;
use super::far::Reach;
use super::undo::Services;
use crate::grant::{CommandPattern, fill_in};

/// Compiled components, below the cache folder: with those of plugins.
const COMPILED: &str = "plugins";

/// A hook as it is loaded.
#[derive(Clone, Debug)]
pub struct HookSpec {
    pub kind: HookKind,
    /// By absolute path.
    pub file: PathBuf,
    /// Of an executable: its arguments after `pre` or `post`.
    pub args: Vec<String>,
    /// Of an executable: a `pre` that ends well has brought the application to rest.
    pub application: bool,
    /// None is the host.
    pub on: Option<HookPlace>,
    /// The sockets of guest agents, by machine.
    pub agents: BTreeMap<String, PathBuf>,
    /// Where it runs by ssh, if it does.
    pub ssh: Option<SshConfig>,
    /// The hook's own settings: `ctx.settings`.
    pub settings: Value,
    /// The `process` grants: a program and a pattern per argument, which may hold `${settings.NAME}` of the machine.
    pub commands: Vec<Vec<String>>,
    /// The `secret` grants: what `secret(name)` gives.
    pub secrets: BTreeMap<String, SecretSource>,
    /// The `freeze` grants: mount points, which may hold `${settings.NAME}` of the machine.
    pub freezable: Vec<String>,
    /// The `service` grants: services by the names that their manager has for them.
    pub granted_services: Vec<String>,
    /// What manages services here.
    pub services: Services,
    /// The only folder that scripts import from.
    pub scripts_folder: PathBuf,
    /// Of a component: its grants as they are written, but for secrets.
    pub grants: BTreeMap<String, Value>,
    /// Of a component: where compiled code is kept. None: nowhere.
    pub cache_folder: Option<PathBuf>,
}

impl HookSpec {
    /// A Rhai script on the host, without settings and grants.
    pub fn script(file: impl Into<PathBuf>, scripts_folder: impl Into<PathBuf>) -> Self {
        Self {
            kind: HookKind::Rhai,
            file: file.into(),
            args: Vec::new(),
            application: false,
            on: None,
            agents: BTreeMap::new(),
            ssh: None,
            settings: Value::Object(serde_json::Map::new()),
            commands: Vec::new(),
            secrets: BTreeMap::new(),
            freezable: Vec::new(),
            granted_services: Vec::new(),
            services: Services::here(),
            scripts_folder: scripts_folder.into(),
            grants: BTreeMap::new(),
            cache_folder: None,
        }
    }

    /// As the configuration describes it. Grants that mean nothing to a hook of its kind are refused, since who wrote them
    /// believes that they do something.
    pub fn from_config(config: &Config, hook: &HookConfig) -> Result<Self, HookFailure> {
        let mut spec = Self {
            kind: hook.kind,
            args: hook.args.clone(),
            application: hook.application,
            on: hook.on.clone(),
            agents: (config.machines.values())
                .filter_map(|machine| Some((machine.name.clone(), machine.agent.clone()?)))
                .collect(),
            ssh: match &hook.on {
                Some(HookPlace::Ssh(name)) => config.ssh.get(name).cloned(),
                _ => None,
            },
            settings: hook.settings.clone(),
            cache_folder: Some(config.coffre.cache.join(COMPILED)),
            ..Self::script(&hook.file, &config.coffre.scripts)
        };
        for (grant, value) in &hook.grant.0 {
            let wrong = |cause: &str, hint: &str| invalid(&hook.name, grant, cause, hint);
            match grant.as_str() {
                "process" if hook.kind == HookKind::Rhai => {
                    spec.commands = serde_json::from_value(value.clone()).map_err(|_| {
                        wrong(
                            "must be a list of commands",
                            "process = [[\"/usr/bin/psql\", \"--command={text}\"]]",
                        )
                    })?;
                }
                "freeze" if hook.kind == HookKind::Rhai => {
                    spec.freezable = list(value, |name| name.starts_with('/') || name.starts_with("${"))
                        .ok_or_else(|| wrong("must be a list of mount points", "freeze = [\"/srv/app\"]"))?;
                }
                "service" if hook.kind == HookKind::Rhai => {
                    spec.granted_services = list(value, |name| !name.is_empty() && !name.starts_with('-'))
                        .ok_or_else(|| wrong("must be a list of services", "service = [\"nginx.service\"]"))?;
                }
                "secret" => {
                    let hint = "secret = { password = { file = \"/etc/coffre/db-password\" } }";
                    let table = value
                        .as_object()
                        .ok_or_else(|| wrong("must name secrets and where they are", hint))?;
                    for (name, place) in table {
                        let source = source(place).ok_or_else(|| wrong(&format!("`{name}` says no place"), hint))?;
                        spec.secrets.insert(name.clone(), source);
                    }
                }
                _ if hook.kind == HookKind::Wasm => {
                    spec.grants.insert(grant.clone(), value.clone());
                }
                _ if hook.kind == HookKind::Exec => {
                    return Err(wrong(
                        "means nothing to an executable, which may do what the user who runs Coffre may",
                        "an executable can be granted `secret`",
                    ));
                }
                _ => {
                    return Err(wrong(
                        "means nothing to a script",
                        "a script can be granted `process`, `freeze`, `service` and `secret`",
                    ));
                }
            }
        }
        Ok(spec)
    }

    /// The commands that a machine with these settings lets it run.
    pub(super) fn commands(&self, hook: &str, settings: &Value) -> Result<Vec<CommandPattern>, HookFailure> {
        let hint =
            "process = [[\"/usr/bin/psql\", \"--command=CHECKPOINT\"]]: a program and a pattern for each argument";
        let filled = self
            .commands
            .iter()
            .map(|words| CommandPattern::fill_in(words, settings));
        let filled: Result<Vec<_>, _> = filled.collect();
        filled
            .map(|found| found.concat())
            .map_err(|cause| invalid(hook, "process", &cause, hint))
    }

    /// The mount points that a machine with these settings lets it freeze.
    pub(super) fn freezable(&self, hook: &str, settings: &Value) -> Result<Vec<String>, HookFailure> {
        let filled = self.freezable.iter().map(|mount| fill_in(mount, settings));
        let filled: Result<Vec<_>, _> = filled.collect();
        filled
            .map(|found| found.concat())
            .map_err(|cause| invalid(hook, "freeze", &cause, "freeze = [\"/srv/app\"]"))
    }

    /// How the machine is reached that it runs in; none: it runs on this host. One that is meant for a guest must never run
    /// on the hypervisor instead.
    pub(super) fn reach(&self, name: &str) -> Result<Option<Reach>, HookFailure> {
        let reach = match (&self.on, &self.ssh) {
            (None | Some(HookPlace::Host), _) => return Ok(None),
            (Some(HookPlace::Agent), _) => Reach::Agent(self.agents.clone()),
            (Some(HookPlace::Ssh(_)), Some(host)) => Reach::Ssh(host.clone()),
            (Some(HookPlace::Ssh(host)), None) => {
                let text = format!("the hook `{name}` is to run by ssh, and there is no [ssh.{host}] table");
                return Err(failure::invalid(text, None));
            }
        };
        if self.kind != HookKind::Exec {
            let text = format!("the hook `{name}` is to run inside the machine, which only a program can");
            return Err(failure::invalid(text, Some("use kind = \"exec\"".to_owned())));
        }
        Ok(Some(reach))
    }
}

/// A list of texts that are all right.
fn list(value: &Value, is_right: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    let texts: Vec<String> = serde_json::from_value(value.clone()).ok()?;
    texts.iter().all(|text| is_right(text)).then_some(texts)
}

fn invalid(hook: &str, grant: &str, cause: &str, hint: &str) -> HookFailure {
    failure::invalid(format!("[hook.{hook}.grant] {grant}: {cause}"), Some(hint.to_owned()))
}

fn source(place: &Value) -> Option<SecretSource> {
    let table = place.as_object().filter(|table| table.len() == 1)?;
    let (kind, value) = table.iter().next()?;
    match kind.as_str() {
        "file" => value
            .as_str()
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .map(SecretSource::File),
        "env" => value.as_str().map(|name| SecretSource::Env(name.to_owned())),
        "command" => {
            let words: Vec<String> = serde_json::from_value(value.clone()).ok()?;
            words
                .first()
                .is_some_and(|program| program.starts_with('/'))
                .then_some(SecretSource::Command(words))
        }
        _ => None,
    }
}
