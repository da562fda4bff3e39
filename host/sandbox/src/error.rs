//! Why a plugin cannot be used, told apart by what the operator does about it.

use std::io;
use std::path::PathBuf;

use crate::manifest::World;

/// A plugin was not found, not accepted, or not started. Once it runs, its failures are
/// [`ProviderError`](coffre_engine::ProviderError)s.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("there is no plugin `{name}`")]
    Missing {
        name: String,
        /// Where it was looked for.
        looked_in: Vec<PathBuf>,
        /// A plugin that is there and is called almost so.
        near: Option<String>,
    },
    #[error("read {}", .file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is {size_bytes} bytes large; a plugin may have {limit_bytes}", .file.display())]
    TooLarge {
        file: PathBuf,
        size_bytes: u64,
        limit_bytes: u64,
    },
    #[error("the plugin `{name}` is not the one that was pinned: {} has sha256 {found}, the pin says {pinned}", .file.display())]
    WrongPin {
        name: String,
        file: PathBuf,
        pinned: String,
        found: String,
    },
    #[error("the plugin `{name}` is neither pinned nor one that ships with Coffre: {} has sha256 {found}", .file.display())]
    NotPinned { name: String, file: PathBuf, found: String },
    #[error("{} is not WebAssembly: {cause}", .file.display())]
    Garbage { file: PathBuf, cause: String },
    #[error("{} is a core WebAssembly module, not a component", .file.display())]
    NotAComponent { file: PathBuf },
    #[error("{} is a component of the wrong world: wanted {wanted}, found {found}", .file.display())]
    WrongWorld {
        file: PathBuf,
        wanted: World,
        found: String,
    },
    #[error("{} speaks {found}; this Coffre speaks {known}", .file.display())]
    WrongContract {
        file: PathBuf,
        found: String,
        known: String,
    },
    #[error("{} imports {import}, which Coffre does not offer", .file.display())]
    UnknownImport { file: PathBuf, import: String },
    #[error("the manifest of {} cannot be used: {cause}", .file.display())]
    BadManifest { file: PathBuf, cause: String },
    #[error("the grant `{grant}` of the plugin `{name}` cannot be used: {cause}")]
    BadGrant { name: String, grant: String, cause: String },
    #[error("the settings do not fit the plugin `{name}`: {cause}")]
    BadSettings { name: String, cause: String },
    #[error("{} cannot be compiled: {cause}", .file.display())]
    Compile { file: PathBuf, cause: String },
    #[error("the plugin `{name}` does not start: {cause}")]
    Start { name: String, cause: String },
    #[error("the WebAssembly engine does not start: {cause}")]
    Engine { cause: String },
}

impl PluginError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing { near: Some(near), .. } => format!("did you mean `{near}`? `coffre plugin list` shows all"),
            Self::Missing { looked_in, name, .. } => {
                let folders: Vec<_> = looked_in.iter().map(|folder| folder.display().to_string()).collect();
                format!(
                    "{name}.wasm was looked for in {}; in a checkout, `cargo xtask plugins` builds the plugins that ship",
                    if folders.is_empty() { "no folder".to_owned() } else { folders.join(", ") }
                )
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "the file that the configuration names is not there: install the plugin again, or mend `file`".to_owned()
            }
            Self::Read { .. } => return None,
            Self::TooLarge { .. } => "build it without debug information: `cargo build --release` with `strip = true`".to_owned(),
            Self::WrongPin { found, .. } => format!(
                "somebody changed the file, or it was upgraded: look at it with `coffre plugin inspect`, and if it is \
                 what you want set sha256 = \"{found}\""
            ),
            Self::NotPinned { name, file, found } => format!(
                "look at it with `coffre plugin inspect {}`; to use it write [plugin.{name}] with file and sha256 = \
                 \"{found}\" and the grants it needs",
                file.display()
            ),
            Self::Garbage { .. } => "the file is damaged, cut short or something else: build or download it again".to_owned(),
            Self::NotAComponent { .. } => {
                "turn it into a component with wit-component (`cargo xtask plugins` does it for crates in plugins/)".to_owned()
            }
            Self::WrongWorld { wanted: World::SnapshotProvider, .. } => {
                "a machine's `provider` must be a plugin of the world snapshot-provider; `coffre plugin list` shows which are".to_owned()
            }
            Self::WrongWorld { .. } => "`coffre plugin list` shows the world of each plugin".to_owned(),
            Self::WrongContract { .. } => "build the plugin against the wit/ folder of this version, or upgrade Coffre".to_owned(),
            Self::UnknownImport { .. } => {
                "build it for wasm32-unknown-unknown, or without WASI (`--stub-wasi` for componentize-py)".to_owned()
            }
            Self::BadManifest { .. } => {
                "plugins/image/manifest.toml is one to start from; `cargo xtask plugins` puts it into the component".to_owned()
            }
            Self::BadGrant { name, .. } => format!("mend [plugin.{name}.grant] in the configuration"),
            Self::BadSettings { .. } => "mend the machine's `settings` in the configuration; paths there are absolute".to_owned(),
            Self::Compile { .. } | Self::Start { .. } | Self::Engine { .. } => return None,
        };
        Some(hint)
    }

    /// Whether the same may succeed later without anybody changing anything.
    pub fn may_retry(&self) -> bool {
        false
    }
}
