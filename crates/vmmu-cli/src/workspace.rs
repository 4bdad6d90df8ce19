//! Where the project's sources and the cache are.
//!
//! Key type: [`Workspace`]. [`crate::image`] builds in it, [`crate::debian`] keeps packages in its cache.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The project's folder, or what stands in for it.
#[derive(Debug)]
pub struct Workspace {
    root: Option<PathBuf>,
}

impl Workspace {
    /// Looks upwards from the current folder, then at the place where this program was built.
    #[must_use]
    pub fn find() -> Self {
        let here = std::env::current_dir().ok();
        let built = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here
            .as_deref()
            .into_iter()
            .chain([built])
            .flat_map(Path::ancestors)
            .find(|p| is_root(p));
        Self {
            root: root.map(Path::to_owned),
        }
    }

    /// Returns the folder with the sources.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] outside the project.
    pub fn root(&self) -> Result<&Path> {
        self.root.as_deref().ok_or_else(|| {
            Error::Usage("the project's sources are not here: run this in a clone of vmmu, which builds the hypervisor".to_owned())
        })
    }

    /// Returns the cache folder: what `VMMU_CACHE` names, `.cache` in the project, otherwise the user's.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it can't be made.
    pub fn cache(&self) -> Result<PathBuf> {
        let folder = match (std::env::var_os("VMMU_CACHE"), &self.root) {
            (Some(folder), _) => folder.into(),
            (None, Some(root)) => root.join(".cache"),
            (None, None) => user_cache().join("vmmu"),
        };
        std::fs::create_dir_all(&folder).map_err(Error::file("make the folder", &folder))?;
        Ok(folder)
    }
}

fn is_root(folder: &Path) -> bool {
    folder.join("Cargo.toml").is_file() && folder.join("crates/vmmu-svm/Cargo.toml").is_file()
}

fn user_cache() -> PathBuf {
    let xdg = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    xdg.or_else(home).unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod finding {
    use super::Workspace;

    #[test]
    fn the_sources_are_found_from_a_folder_inside() {
        let root = Workspace::find()
            .root()
            .expect("tests run inside the project")
            .to_owned();
        assert!(root.join("crates/vmmu-cli/src/workspace.rs").is_file());
    }
}
