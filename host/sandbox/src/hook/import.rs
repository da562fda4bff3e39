//! Imports, from the scripts folder alone.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use coffre_engine::HookFailureKind;
use parking_lot::Mutex;
use rhai::{Engine, EvalAltResult, Module, ModuleResolver, Position, Scope};

use super::call::Stop;
use super::limits::MODULES;
use super::trust;

/// Resolves `import "lib/postgres" as pg;` to `lib/postgres.rhai` below the scripts folder, read with the same care as
/// the script itself. Each file is read once; one that imports itself, by whatever way, is refused.
pub(super) struct ScriptsFolder {
    folder: PathBuf,
    /// None: being loaded.
    modules: Mutex<BTreeMap<PathBuf, Option<Arc<Module>>>>,
}

impl ScriptsFolder {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            modules: Mutex::default(),
        }
    }

    fn file(&self, name: &str) -> Result<(PathBuf, String), Stop> {
        let path = Path::new(name);
        let below = !name.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
        let outside = || {
            Stop::new(
                HookFailureKind::Denied,
                format!("import {name:?} is not below the scripts folder"),
            )
            .with_hint(format!(
                "scripts import by relative path from {}",
                self.folder.display()
            ))
        };
        if !below {
            return Err(outside());
        }
        let mut file = self.folder.join(path).into_os_string();
        file.push(".rhai");
        let (real, content) = trust::read(Path::new(&file), trust::Readers::Any).map_err(|error| Stop {
            hint: error.hint(),
            ..Stop::new(HookFailureKind::Invalid, format!("import {name:?}: {error}"))
        })?;
        // A link may lead out of it.
        if !self.folder.canonicalize().is_ok_and(|folder| real.starts_with(folder)) {
            return Err(outside());
        }
        Ok((real, content))
    }
}

impl ModuleResolver for ScriptsFolder {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        name: &str,
        position: Position,
    ) -> Result<Arc<Module>, Box<EvalAltResult>> {
        let (real, content) = self.file(name).map_err(|stop| stop.placed(source, position))?;
        {
            let mut modules = self.modules.lock();
            match modules.get(&real) {
                Some(Some(module)) => return Ok(module.clone()),
                Some(None) => {
                    let stop = Stop::new(HookFailureKind::Invalid, format!("import {name:?} imports itself"));
                    return Err(stop.placed(source, position));
                }
                None if modules.len() >= MODULES => {
                    return Err(EvalAltResult::ErrorTooManyModules(position).into());
                }
                None => modules.insert(real.clone(), None),
            };
        }
        let within = |error| EvalAltResult::ErrorInModule(real.display().to_string(), error, position);
        let mut tree = engine
            .compile(&content)
            .map_err(|error| within(Box::new(error.into())))?;
        tree.set_source(real.display().to_string());
        let module: Arc<Module> = Module::eval_ast_as_new(Scope::new(), &tree, engine)
            .map_err(within)?
            .into();
        self.modules.lock().insert(real, Some(module.clone()));
        Ok(module)
    }
}
