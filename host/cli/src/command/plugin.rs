//! `coffre plugin list|inspect`.

use coffre_sandbox::{Inspection, Origin};
use serde::Serialize;

use crate::args::{Global, PluginCommand};
use crate::exit::Exit;
use crate::output::{Output, size, table};
use crate::plugins;
use crate::report::Report;

#[derive(Serialize)]
struct Document {
    plugins: Vec<Entry>,
}

/// One of `plugin` and `error` is there.
#[derive(Serialize)]
struct Entry {
    name: String,
    plugin: Option<Inspection>,
    error: Option<Report>,
}

pub fn run(command: &PluginCommand, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let catalog = plugins::catalog_to_look_at(global)?;
    match command {
        PluginCommand::List => {
            let plugins = (catalog.list().into_iter())
                .map(|listed| match listed.inspection {
                    Ok(plugin) => Entry {
                        name: listed.name,
                        plugin: Some(plugin),
                        error: None,
                    },
                    Err(error) => Entry {
                        name: listed.name,
                        plugin: None,
                        error: Some(Report::new(&error.into())),
                    },
                })
                .collect();
            list(Document { plugins }, output)
        }
        PluginCommand::Inspect { plugin } => {
            let inspection = catalog.inspect(plugin)?;
            output.result(describe(&inspection))?;
            output.document(&inspection)?;
            Ok(Exit::Done)
        }
    }
}

fn list(document: Document, output: &Output) -> anyhow::Result<Exit> {
    if document.plugins.is_empty() {
        output.line("there are no plugins; in a checkout, `cargo xtask plugins` builds those that ship")?;
    } else {
        let rows = document.plugins.iter().map(|entry| {
            let what = match (&entry.plugin, &entry.error) {
                (Some(plugin), _) => [
                    plugin.version.clone().unwrap_or_default(),
                    plugin.world.map(|world| world.to_string()).unwrap_or_default(),
                    origin(plugin.origin).to_owned(),
                    plugin.summary.clone().unwrap_or_default(),
                ],
                (None, error) => {
                    let text = error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
                    [String::new(), String::new(), "broken".to_owned(), text]
                }
            };
            [vec![entry.name.clone()], what.to_vec()].concat()
        });
        output.result(table(
            &["NAME", "VERSION", "WORLD", "TRUST", "WHAT IT DOES"],
            &[],
            rows.collect(),
        ))?;
    }
    output.document(&document)?;
    Ok(Exit::Done)
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Shipped => "ships",
        Origin::Pinned => "pinned",
        Origin::Dev => "dev",
        Origin::Unknown => "NOT PINNED",
    }
}

fn describe(plugin: &Inspection) -> String {
    let or_dash = |text: &Option<String>| {
        text.clone()
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| "-".to_owned())
    };
    let world = plugin
        .world
        .map_or_else(|| "none that Coffre knows".to_owned(), |world| world.to_string());
    let may_run = match plugin.origin {
        Origin::Shipped => "it ships with this Coffre",
        Origin::Pinned => "its digest is pinned in the configuration",
        Origin::Dev => "the pin is waived (dev); every point made with it says so",
        Origin::Unknown => "NO: it is neither pinned nor one that ships",
    };
    let mut text = String::new();
    let facts = [
        ("name", plugin.name.clone()),
        ("version", or_dash(&plugin.version)),
        ("what it does", or_dash(&plugin.summary)),
        ("world", world),
        ("contract", or_dash(&plugin.contract)),
        ("file", plugin.file.display().to_string()),
        ("sha256", plugin.digest.clone()),
        ("may it run", may_run.to_owned()),
        ("imports", plugin.imports.join(", ")),
        ("exports", plugin.exports.join(", ")),
        ("memory", size(plugin.limits.memory_bytes as u64)),
    ];
    for (name, value) in facts {
        text.push_str(format!("{name:13} {value}").trim_end());
        text.push('\n');
    }
    text.push_str("\nasks for\n");
    if plugin.asked.is_empty() {
        text.push_str("  nothing\n");
    }
    for ask in &plugin.asked {
        text.push_str(&format!("  {} {}: {}\n", ask.kind, ask.value, ask.why));
    }
    text.push_str(if plugin.granted_as_asked {
        "granted, since it ships and the configuration says nothing else\n"
    } else {
        "granted\n"
    });
    if plugin.granted.0.is_empty() {
        text.push_str("  nothing\n");
    }
    for (kind, values) in &plugin.granted.0 {
        for value in values {
            text.push_str(&format!("  {kind} {value}\n"));
        }
    }
    text.push_str("It may do what it asks for and was granted, no more.\n");
    text
}
