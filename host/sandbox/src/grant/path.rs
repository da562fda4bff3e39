//! Path patterns of grants, and where a granted path is to be resolved.
//!
//! A pattern is an absolute path, or one that begins with a setting; `/**` at its end covers the folder and all below
//! it. The part that the operator named (up to `/**`, or the setting's value) is opened as it is written, links and
//! all; everything after it is resolved below that folder without following any link, since others may write there.

use std::path::PathBuf;

use serde_json::Value;

use super::settings::{Piece, pieces, values};

/// A path's parts, if a plugin may name it at all: absolute, no `.`, `..`, empty part or zero byte.
pub(crate) fn components(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix('/')?;
    if path.len() > 4096 || path.contains('\0') {
        return None;
    }
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let parts: Vec<&str> = rest.split('/').collect();
    parts
        .iter()
        .all(|part| !matches!(*part, "" | "." | ".."))
        .then_some(parts)
}

/// Where a granted path lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The folder that the operator named; opened with links followed.
    pub root: PathBuf,
    /// The way from there, without links. Empty: the folder itself.
    pub below: Vec<String>,
    /// The operator named exactly this path below /dev, where names are links and only root makes them.
    pub device_link: bool,
}

impl Place {
    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.below.iter().fold(self.root.clone(), |path, part| path.join(part))
    }
}

/// A pattern with its settings filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathPattern {
    root: Vec<String>,
    below: Vec<String>,
    deep: bool,
}

impl PathPattern {
    /// The path that it stands for, or the folder that it covers.
    pub fn stem(&self) -> PathBuf {
        let parts = self.root.iter().chain(&self.below);
        parts.fold(PathBuf::from("/"), |path, part| path.join(part))
    }

    /// All patterns that a text stands for. A setting that is missing gives none.
    pub fn fill_in(text: &str, settings: &Value) -> Result<Vec<Self>, String> {
        let (stem, deep) = match text.strip_suffix("/**") {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        let pieces = pieces(stem)?;
        let literal_star = |piece: &Piece| matches!(piece, Piece::Literal(literal) if literal.contains('*'));
        if pieces.iter().any(literal_star) {
            return Err(format!("{text:?}: `*` is only known as `/**` at the end"));
        }
        let (heads, tail): (Vec<String>, &[Piece]) = match pieces.split_first() {
            Some((Piece::Hole(name), tail)) => (values(settings, name), tail),
            Some((Piece::Literal(literal), tail)) if literal.starts_with('/') => (vec![literal.clone()], tail),
            None if deep => (vec!["/".to_owned()], &[]),
            _ => {
                return Err(format!(
                    "{text:?} must be an absolute path or begin with ${{settings.NAME}}"
                ));
            }
        };
        let starts_with_hole = matches!(pieces.first(), Some(Piece::Hole(_)));
        let mut found = Vec::new();
        for head in heads {
            for tail in tails(tail, settings) {
                let pattern = if starts_with_hole {
                    Self::below_setting(&head, &tail, deep)
                } else {
                    Self::literal(&head, &tail, deep)
                };
                found.push(pattern.ok_or_else(|| {
                    format!(
                        "{:?} (from {text:?}) is not an absolute path without `.`, `..` and empty parts",
                        format!("{head}{tail}")
                    )
                })?);
            }
        }
        Ok(found)
    }

    /// The setting's value is the operator's own; what the grant adds to it is resolved below.
    fn below_setting(head: &str, tail: &str, deep: bool) -> Option<Self> {
        let mut root = owned(components(head)?);
        if tail.is_empty() && !deep {
            let below = root.pop().into_iter().collect();
            return Some(Self { root, below, deep });
        }
        let below = match tail {
            "" => Vec::new(),
            tail if tail.starts_with('/') => owned(components(tail)?),
            // `${settings.socket}.lock`: the setting's last part goes on.
            tail => {
                let last = format!("{}{tail}", root.pop()?);
                owned(components(&format!("/{last}"))?)
            }
        };
        Some(Self { root, below, deep })
    }

    /// Everything up to the last folder before a setting, or before `/**`, is the operator's own.
    fn literal(head: &str, tail: &str, deep: bool) -> Option<Self> {
        let all = owned(components(&format!("{head}{tail}"))?);
        let own = if deep && tail.is_empty() {
            all.len()
        } else {
            head.matches('/').count().saturating_sub(1).min(all.len())
        };
        let (root, below) = all.split_at(own);
        Some(Self {
            root: root.to_vec(),
            below: below.to_vec(),
            deep,
        })
    }

    /// Where `path` is to be resolved, if the pattern covers it.
    pub fn place(&self, path: &[&str]) -> Option<Place> {
        let fixed = self.root.len() + self.below.len();
        let long_enough = if self.deep {
            path.len() >= fixed
        } else {
            path.len() == fixed
        };
        let covered = long_enough
            && self
                .root
                .iter()
                .chain(&self.below)
                .zip(path)
                .all(|(ours, theirs)| ours == theirs);
        covered.then(|| Place {
            root: PathBuf::from(format!("/{}", self.root.join("/"))),
            below: path[self.root.len()..].iter().map(|part| (*part).to_owned()).collect(),
            device_link: !self.deep && is_device_name(path),
        })
    }
}

/// Below /dev, but not in the parts of it where anybody may make a link.
fn is_device_name(path: &[&str]) -> bool {
    matches!(path, ["dev", first, ..] if !matches!(*first, "shm" | "mqueue" | "fd" | "pts"))
}

fn owned(parts: Vec<&str>) -> Vec<String> {
    parts.into_iter().map(str::to_owned).collect()
}

/// The ends that later holes give. A setting within a path is one part or a piece of one: no `/`.
fn tails(pieces: &[Piece], settings: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    for piece in pieces {
        let fillings = match piece {
            Piece::Literal(literal) => vec![literal.clone()],
            Piece::Hole(name) => values(settings, name)
                .into_iter()
                .filter(|value| !value.contains('/'))
                .collect(),
        };
        found = found
            .iter()
            .flat_map(|start| fillings.iter().map(move |end| format!("{start}{end}")))
            .collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn covers(pattern: &str, settings: &Value, path: &str) -> bool {
        let parts = components(path).expect("a path");
        PathPattern::fill_in(pattern, settings)
            .expect("a pattern")
            .iter()
            .any(|pattern| pattern.place(&parts).is_some())
    }

    #[test]
    fn a_folder_pattern_covers_the_folder_and_what_is_below_and_no_neighbour() {
        for (path, covered) in [
            ("/var/lib/vm", true),
            ("/var/lib/vm/a.img", true),
            ("/var/lib/vm/a/b", true),
            ("/var/lib/vm2/a.img", false),
            ("/var/lib", false),
        ] {
            assert_eq!(covers("/var/lib/vm/**", &Value::Null, path), covered, "{path}");
        }
        assert!(covers("/var/lib/vm/a.img", &Value::Null, "/var/lib/vm/a.img"));
        assert!(!covers("/var/lib/vm/a.img", &Value::Null, "/var/lib/vm/a.img/b"));
    }

    #[test]
    fn a_setting_stands_for_a_text_a_list_or_a_tables_values() {
        let settings =
            json!({ "images": "/vm/web", "files": ["/a", "/b"], "disks": { "root": "/dev/vg/root" }, "name": "web" });
        assert!(covers("${settings.images}/**", &settings, "/vm/web/a.img"));
        assert!(!covers("${settings.images}/**", &settings, "/vm/db/a.img"));
        assert!(covers("${settings.files}", &settings, "/b"));
        assert!(covers("${settings.disks}", &settings, "/dev/vg/root"));
        assert!(!covers("${settings.missing}/**", &settings, "/vm/web/a.img"));
        assert!(covers("/run/${settings.name}.sock", &settings, "/run/web.sock"));
    }

    #[test]
    fn the_operators_part_is_the_root_and_the_rest_lies_below() {
        let settings = json!({ "images": "/vm/web", "name": "web" });
        let place = |pattern: &str, path: &str| {
            let parts = components(path).expect("a path");
            PathPattern::fill_in(pattern, &settings).expect("a pattern")[0]
                .place(&parts)
                .expect("covered")
        };
        let found = place("${settings.images}/.coffre/**", "/vm/web/.coffre/x");
        assert_eq!(
            (found.root, found.below),
            (PathBuf::from("/vm/web"), vec![".coffre".to_owned(), "x".to_owned()])
        );
        let found = place("/vm/web/**", "/vm/web");
        assert_eq!((found.root, found.below), (PathBuf::from("/vm/web"), vec![]));
        let found = place("/vm/web/a.img", "/vm/web/a.img");
        assert_eq!(
            (found.root, found.below),
            (PathBuf::from("/vm/web"), vec!["a.img".to_owned()])
        );
        let found = place("/run/${settings.name}/sock", "/run/web/sock");
        assert_eq!(
            (found.root, found.below),
            (PathBuf::from("/run"), vec!["web".to_owned(), "sock".to_owned()])
        );
        assert!(place("/dev/vg/root", "/dev/vg/root").device_link);
        assert!(
            !place("/dev/shm/root", "/dev/shm/root").device_link,
            "anybody may make links there"
        );
        assert!(!place("/dev/**", "/dev/vg/root").device_link);
    }

    #[test]
    fn settings_cannot_smuggle_a_way_out() {
        for settings in [
            json!({ "images": "../etc" }),
            json!({ "images": "/vm/../etc" }),
            json!({ "images": "relative" }),
        ] {
            assert!(
                PathPattern::fill_in("${settings.images}/**", &settings).is_err(),
                "{settings}"
            );
        }
        let found = PathPattern::fill_in("/run/${settings.name}.sock", &json!({ "name": "../x" })).expect("no pattern");
        assert_eq!(found, []);
        assert!(components("/a/../b").is_none() && components("a").is_none() && components("/a//b").is_none());
    }
}
