//! Fetches Debian packages into the cache, without installing them.
//!
//! Key type: [`Packages`]. `apt-cache` names the current kernel, `apt-get download` fetches and verifies,
//! `dpkg-deb` unpacks.
//!
//! Invariants:
//! 1. The system's package lists are used if they know the package; otherwise fresh lists go into the
//!    cache, never into the system, so this works without being root.
//! 2. A package's folder appears by one rename when it is complete: a run that is cut short leaves none.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tools::{self, Output};

/// The metapackage whose dependency is the current cloud kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";
/// The file that says that the cache's own lists are complete.
const UPDATED: &str = "updated";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// The packages in the cache, and the means to get more.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
}

impl Packages {
    /// Opens the packages in `cache`.
    #[must_use]
    pub fn new(cache: &Path) -> Self {
        Self {
            folder: cache.join("packages"),
        }
    }

    /// Returns the path of Debian's current cloud kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Fetch`] or [`Error::ToolMissing`] when it is not in the cache and can't be fetched.
    pub fn kernel(&self) -> Result<PathBuf> {
        let package = match self.current_kernel() {
            Ok(package) => package,
            Err(error) => self.any_kernel().ok_or(error)?,
        };
        let boot = self.unpacked(&package)?.join("boot");
        file_in(&boot, "vmlinuz-").ok_or_else(|| not_inside(&package, "boot/vmlinuz-*"))
    }

    /// Returns the path of the static busybox.
    ///
    /// # Errors
    ///
    /// As [`Packages::kernel`].
    pub fn busybox(&self) -> Result<PathBuf> {
        let folder = self.unpacked(BUSYBOX_PACKAGE)?;
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| folder.join(place));
        places
            .into_iter()
            .find(|p| p.is_file())
            .ok_or_else(|| not_inside(BUSYBOX_PACKAGE, "bin/busybox"))
    }

    fn current_kernel(&self) -> Result<String> {
        let depends = self.apt("apt-cache", &["depends", KERNEL_METAPACKAGE], None)?;
        dependency(&depends.stdout).ok_or_else(|| Error::Fetch {
            package: KERNEL_METAPACKAGE.to_owned(),
            reason: "the package sources don't have it".to_owned(),
        })
    }

    fn any_kernel(&self) -> Option<String> {
        let folder = file_in(&self.folder, "linux-image-")?;
        Some(folder.file_name()?.to_string_lossy().into_owned())
    }

    /// Returns the folder with the package's files, fetching it first if need be.
    fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join(package);
        if folder.is_dir() {
            return Ok(folder);
        }
        let progress = Progress::begin(&format!("fetching the package {package}"));
        std::fs::create_dir_all(&self.folder)
            .map_err(Error::file("make the folder", &self.folder))?;
        let work = tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(&self.folder);
        let work = work.map_err(Error::file("make a folder in", &self.folder))?;
        self.apt("apt-get", &["download", package], Some(work.path()))?;
        let archive = file_in(work.path(), package).ok_or_else(|| not_inside(package, "a .deb"))?;
        let content = work.path().join("content");
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(archive).arg(&content);
        checked(tools::run(unpack, &progress)?, package)?;
        // Another run may have been faster; its folder is as good.
        if let Err(source) = std::fs::rename(&content, &folder)
            && !folder.is_dir()
        {
            return Err(Error::File {
                action: "make the folder",
                path: folder,
                source,
            });
        }
        Ok(folder)
    }

    /// Runs an apt tool with the system's lists, and if that fails with fresh lists in the cache.
    fn apt(&self, tool: &'static str, words: &[&str], folder: Option<&Path>) -> Result<Output> {
        let package = words.last().copied().unwrap_or_default();
        let attempt = |private: bool| {
            let progress = Progress::quiet(&format!("{tool} {}", words.join(" ")));
            let mut command = Command::new(tool);
            if private {
                command.args(self.private_lists());
            }
            command.args(words);
            if let Some(folder) = folder {
                command.current_dir(folder);
            }
            tools::run(command, &progress)
        };
        // apt-cache answers an unknown package with status 0 or 100, by version; apt-get with 100.
        let usable =
            |output: &Output| output.success && (tool != "apt-cache" || !output.stdout.is_empty());
        let first = attempt(false)?;
        if usable(&first) {
            return Ok(first);
        }
        // An earlier update into the cache may do.
        if self.apt_folder().join(UPDATED).is_file() {
            let second = attempt(true)?;
            if usable(&second) {
                return Ok(second);
            }
        }
        self.update_private_lists(package)?;
        checked(attempt(true)?, package)
    }

    fn update_private_lists(&self, package: &str) -> Result<()> {
        let progress = Progress::begin("fetching Debian's package lists into the cache");
        for folder in ["lists/partial", "archives/partial"] {
            let folder = self.apt_folder().join(folder);
            std::fs::create_dir_all(&folder).map_err(Error::file("make the folder", folder))?;
        }
        let mut update = Command::new("apt-get");
        update.args(self.private_lists()).arg("update");
        checked(tools::run(update, &progress)?, package)?;
        let done = self.apt_folder().join(UPDATED);
        std::fs::write(&done, "").map_err(Error::file("write", done))
    }

    fn apt_folder(&self) -> PathBuf {
        // Absolute: apt runs in another folder.
        let folder = self.folder.join("apt");
        std::path::absolute(&folder).unwrap_or(folder)
    }

    fn private_lists(&self) -> Vec<String> {
        let folder = self.apt_folder();
        let folder = folder.display();
        vec![
            "-o".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            "-o".to_owned(),
            format!("Dir::Cache={folder}"),
        ]
    }
}

fn checked(output: Output, package: &str) -> Result<Output> {
    if output.success {
        return Ok(output);
    }
    Err(Error::Fetch {
        package: package.to_owned(),
        reason: output.reason(),
    })
}

fn not_inside(package: &str, what: &str) -> Error {
    Error::Fetch {
        package: package.to_owned(),
        reason: format!("{what} is not in it"),
    }
}

/// Reads the first dependency on a kernel image from the answer of `apt-cache depends`.
fn dependency(answer: &str) -> Option<String> {
    let names = answer
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .map(str::trim)
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn file_in(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    found.into_iter().rfind(|p| {
        p.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    })
}

#[cfg(test)]
mod apt_answers {
    use super::dependency;

    #[test]
    fn the_kernel_is_the_dependency_of_the_metapackage() {
        let answer =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: x\n";
        assert_eq!(
            dependency(answer).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
