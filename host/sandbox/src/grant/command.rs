//! Commands of grants: a program by absolute path and one pattern per argument.
//!
//! An argument's pattern is literal, or has holes with types: `${settings.NAME}`, `{size}` and `{number}` (digits),
//! `{name}` (letters, digits and `. _ -`), `{path:/folder}` and `{new-path:/folder}` (a plain path below the folder),
//! `{path}` (a plain absolute path) and `{text}` (anything, for arguments that can do no harm).
//! What fills a hole at an argument's beginning never begins with `-`, so that no option can be smuggled in, and a path
//! is plain: qemu-img takes `json:` and `nbd:` for one.

use serde_json::Value;

use super::path::components;
use super::settings;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Number,
    Name,
    Text,
    PathBelow(Vec<String>),
}

/// A command with its settings filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandPattern {
    program: String,
    arguments: Vec<Vec<Piece>>,
}

impl CommandPattern {
    pub fn fill_in(words: &[String], settings: &Value) -> Result<Vec<Self>, String> {
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| "a command needs a program".to_owned())?;
        if components(program).is_none_or(|parts| parts.is_empty()) {
            return Err(format!("{program:?} must be the absolute path of a program"));
        }
        let mut found = vec![Vec::new()];
        for argument in arguments {
            let mut ways = Vec::new();
            let starts_with_hole = argument.starts_with("${");
            for text in settings::fill_in(argument, settings)? {
                if starts_with_hole && text.starts_with('-') {
                    return Err(format!("{text:?} (from {argument:?}) would be an option"));
                }
                ways.push(parse(&text, argument)?);
            }
            found = found
                .into_iter()
                .flat_map(|start: Vec<Vec<Piece>>| {
                    ways.iter()
                        .map(move |way| [start.as_slice(), std::slice::from_ref(way)].concat())
                })
                .collect();
        }
        Ok(found
            .into_iter()
            .map(|arguments| Self {
                program: program.clone(),
                arguments,
            })
            .collect())
    }

    pub fn covers(&self, program: &str, arguments: &[String]) -> bool {
        program == self.program
            && arguments.len() == self.arguments.len()
            && self
                .arguments
                .iter()
                .zip(arguments)
                .all(|(pattern, argument)| fits(pattern, argument))
    }
}

/// A setting's value must not bring holes of its own: braces in it stay literal, so holes are looked for only where the
/// grant's own text has them.
fn parse(text: &str, written: &str) -> Result<Vec<Piece>, String> {
    let has_typed_holes = written.replace("${", "").contains('{');
    if !has_typed_holes {
        return Ok(vec![Piece::Literal(text.to_owned())]);
    }
    if written.contains("${") {
        return Err(format!(
            "{written:?}: settings and typed holes cannot be mixed in one argument"
        ));
    }
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        if start > 0 {
            found.push(Piece::Literal(rest[..start].to_owned()));
        }
        let end = rest
            .find('}')
            .filter(|end| *end > start)
            .ok_or_else(|| format!("{written:?} has a `{{` without `}}`"))?;
        found.push(match &rest[start + 1..end] {
            "size" | "number" => Piece::Number,
            "name" => Piece::Name,
            "text" => Piece::Text,
            "path" => Piece::PathBelow(Vec::new()),
            hole => {
                let folder = hole.strip_prefix("path:").or_else(|| hole.strip_prefix("new-path:"));
                let parts = folder.and_then(components);
                let parts = parts.ok_or_else(|| format!("{written:?}: there is no hole {{{hole}}}"))?;
                Piece::PathBelow(parts.into_iter().map(str::to_owned).collect())
            }
        });
        rest = &rest[end + 1..];
    }
    if !rest.is_empty() {
        found.push(Piece::Literal(rest.to_owned()));
    }
    let holes = found.iter().filter(|piece| !matches!(piece, Piece::Literal(_))).count();
    if holes > 1 {
        return Err(format!("{written:?}: one typed hole per argument"));
    }
    Ok(found)
}

fn fits(pattern: &[Piece], argument: &str) -> bool {
    let literal = |piece: Option<&Piece>| match piece {
        Some(Piece::Literal(text)) => text.clone(),
        _ => String::new(),
    };
    let Some(hole) = pattern.iter().position(|piece| !matches!(piece, Piece::Literal(_))) else {
        return literal(pattern.first()) == argument;
    };
    let before = if hole > 0 {
        literal(pattern.first())
    } else {
        String::new()
    };
    let after = literal(pattern.get(hole + 1));
    let Some(filled) = argument
        .strip_prefix(before.as_str())
        .and_then(|rest| rest.strip_suffix(after.as_str()))
    else {
        return false;
    };
    if filled.is_empty() || filled.starts_with('-') || filled.len() > 4096 {
        return false;
    }
    match &pattern[hole] {
        Piece::Literal(_) => false,
        Piece::Text => !filled.contains('\0'),
        Piece::Number => filled.bytes().all(|byte| byte.is_ascii_digit()) && filled.len() <= 20,
        Piece::Name => filled
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')),
        Piece::PathBelow(folder) => components(filled).is_some_and(|parts| {
            parts.len() > folder.len() && folder.iter().zip(&parts).all(|(ours, theirs)| ours == theirs)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn covers(pattern: &[&str], command: &[&str]) -> bool {
        let pattern: Vec<String> = pattern.iter().map(|word| (*word).to_owned()).collect();
        let settings = json!({ "disk": "/vm/a.img", "evil": "{name}" });
        let arguments: Vec<String> = command[1..].iter().map(|word| (*word).to_owned()).collect();
        let patterns = CommandPattern::fill_in(&pattern, &settings).expect("a pattern");
        patterns.iter().any(|pattern| pattern.covers(command[0], &arguments))
    }

    #[test]
    fn holes_are_typed_and_take_no_options() {
        let pattern = [
            "/usr/bin/qemu-img",
            "create",
            "-f",
            "qcow2",
            "{new-path:/scratch}",
            "{size}",
        ];
        let with = |path, size| covers(&pattern, &["/usr/bin/qemu-img", "create", "-f", "qcow2", path, size]);
        assert!(with("/scratch/x.qcow2", "1048576"));
        for path in [
            "json:{}",
            "nbd:unix:/x",
            "/scratch/../etc/x",
            "/scratch",
            "-o",
            "/other/x",
            "scratch/x",
        ] {
            assert!(!with(path, "1"), "{path}");
        }
        for size in ["-1", "1G", "", "0x10"] {
            assert!(!with("/scratch/x", size), "{size}");
        }
        assert!(!covers(
            &pattern,
            &["/bin/qemu-img", "create", "-f", "qcow2", "/scratch/x", "1"]
        ));
        assert!(!covers(
            &pattern,
            &["/usr/bin/qemu-img", "create", "-f", "qcow2", "/scratch/x"]
        ));
    }

    #[test]
    fn text_is_anything_but_an_option_and_a_path_is_plain() {
        let sql = ["/usr/bin/psql", "--command={text}"];
        assert!(covers(&sql, &["/usr/bin/psql", "--command=SELECT 'a; b'"]));
        assert!(!covers(&sql, &["/usr/bin/psql", "--command=-x"]));
        assert!(!covers(&sql, &["/usr/bin/psql", "--file=/etc/shadow"]));
        let path = ["/bin/sync", "{path}"];
        assert!(covers(&path, &["/bin/sync", "/srv/db"]));
        for wrong in ["srv", "-f", "/srv/../etc", "/srv//db", "json:{}", "/"] {
            assert!(!covers(&path, &["/bin/sync", wrong]), "{wrong}");
        }
    }

    #[test]
    fn a_settings_value_is_literal() {
        assert!(covers(&["/bin/x", "${settings.disk}"], &["/bin/x", "/vm/a.img"]));
        assert!(!covers(&["/bin/x", "${settings.evil}"], &["/bin/x", "anything"]));
        assert!(covers(&["/bin/x", "${settings.evil}"], &["/bin/x", "{name}"]));
        assert!(!covers(&["/bin/x", "${settings.missing}"], &["/bin/x", "anything"]));
    }
}
