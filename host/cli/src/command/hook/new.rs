//! `coffre hook new`: a hook to start from.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use coffre_engine::config::Config;
use serde::Serialize;

use crate::args::{Global, NewHookArgs, NewHookKind};
use crate::exit::{Complaint, Exit};
use crate::output::Output;
use crate::wire;

const RHAI: &str = include_str!("new/start.rhai");
const EXEC: &str = include_str!("new/start.sh");

#[derive(Serialize)]
struct Document {
    hook: String,
    file: PathBuf,
    /// What the configuration needs.
    config: String,
}

pub fn run(args: &NewHookArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    if args.name.is_empty() || !args.name.chars().all(plain) || args.name.starts_with('-') {
        let text = format!("`{}` cannot be the name of a hook", args.name);
        return Err(Complaint::usage(text, "letters, digits, `-` and `_`").into());
    }
    let (folder, in_scripts) = match &args.folder {
        Some(folder) => {
            let folder = std::path::absolute(folder).with_context(|| format!("find {}", folder.display()))?;
            (folder, false)
        }
        None => (scripts_folder(args, global)?, true),
    };
    let (ending, content, mode) = match args.kind {
        NewHookKind::Rhai => ("rhai", RHAI, 0o644),
        NewHookKind::Exec => ("sh", EXEC, 0o755),
    };
    let file = folder.join(format!("{}.{ending}", args.name));
    write(&file, &content.replace("NAME", &args.name), mode)?;
    let config = lines(args, &file, in_scripts);
    output.line(format!(
        "{} is there; change it to what your application needs",
        file.display()
    ))?;
    output.result(format!("\nFor the configuration:\n\n{config}"))?;
    output.line(format!(
        "\nand `hooks = [\"{}\"]` in a machine's table. Then: coffre hook check {0}, coffre hook test {0}",
        args.name
    ))?;
    output.document(&Document {
        hook: args.name.clone(),
        file,
        config,
    })?;
    Ok(Exit::Done)
}

fn scripts_folder(args: &NewHookArgs, global: &Global) -> anyhow::Result<PathBuf> {
    let config: Config = wire::config(global)?;
    if config.hooks.contains_key(&args.name) {
        let text = format!("the configuration has a hook `{}` already", args.name);
        return Err(Complaint::usage(text, "take another name").into());
    }
    Ok(config.coffre.scripts)
}

fn write(file: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut made = match made {
        Ok(made) => made,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = format!("{} exists", file.display());
            return Err(Complaint::usage(text, "take another name, or another --folder").into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = file.parent().unwrap_or(Path::new("/"));
            let text = format!("there is no folder {}", folder.display());
            let hint =
                "make it, only writable for root or the user that runs coffre; or say another one: --folder FOLDER";
            return Err(Complaint::usage(text, hint).into());
        }
        Err(error) => return Err(error).with_context(|| format!("make {}", file.display())),
    };
    made.write_all(content.as_bytes())
        .with_context(|| format!("write {}", file.display()))
}

/// `in_scripts`: the configuration finds the file by its name alone.
fn lines(args: &NewHookArgs, file: &Path, in_scripts: bool) -> String {
    let file = file.file_name().filter(|_| in_scripts).map_or(file, Path::new);
    let (kind, grant) = match args.kind {
        NewHookKind::Rhai => (
            "rhai",
            format!(
                "\n[hook.{}.grant]\nprocess = [[\"/usr/bin/true\", \"pause\"], [\"/usr/bin/true\", \"resume\"]]\n",
                args.name
            ),
        ),
        NewHookKind::Exec => ("exec", String::new()),
    };
    format!(
        "[hook.{}]\nkind = \"{kind}\"\nfile = {:?}\non = \"host\"\ntimeout = \"20s\"\non-failure = \"downgrade\"\n{grant}",
        args.name,
        file.display().to_string()
    )
}
