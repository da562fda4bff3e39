//! Fills `${settings.NAME}` in: grants can name the operator's own settings, so that each machine's job gets that
//! machine's things and no more.

use serde_json::Value;

/// A piece of a grant's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(String),
    /// What is between `${settings.` and `}`.
    Hole(String),
}

/// Cuts a text at its holes.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if start > 0 {
            found.push(Piece::Literal(rest[..start].to_owned()));
        }
        let inside = &rest[start + 2..];
        let end = inside
            .find('}')
            .ok_or_else(|| format!("{text:?} has a `${{` without `}}`"))?;
        let name = inside[..end].strip_prefix("settings.").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("{text:?}: only ${{settings.NAME}} can be filled in"))?;
        found.push(Piece::Hole(name.to_owned()));
        rest = &inside[end + 1..];
    }
    if !rest.is_empty() {
        found.push(Piece::Literal(rest.to_owned()));
    }
    Ok(found)
}

/// The texts that a setting stands for: itself, each of a list, or each value of a table. A missing one stands for
/// nothing, and what it is part of grants nothing.
pub(super) fn values(settings: &Value, name: &str) -> Vec<String> {
    let found = name.split('.').try_fold(settings, |value, part| value.get(part));
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match found {
        Some(Value::Array(list)) => list.iter().filter_map(text).collect(),
        Some(Value::Object(table)) => table.values().filter_map(text).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// All texts that come out of filling every hole in every way.
pub(crate) fn fill_in(text: &str, settings: &Value) -> Result<Vec<String>, String> {
    let mut found = vec![String::new()];
    for piece in pieces(text)? {
        let fillings = match piece {
            Piece::Literal(literal) => vec![literal],
            Piece::Hole(name) => values(settings, &name),
        };
        found = found
            .iter()
            .flat_map(|start| fillings.iter().map(move |end| format!("{start}{end}")))
            .collect();
    }
    Ok(found)
}
