//! A folder with stand-ins for the programs that the command starts, and runs of the command in it.

use core::time::Duration;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal};
use rustix::{fs as rfs, pty, termios};
use tempfile::TempDir;

/// The folder and the environment of a test.
pub(crate) struct Stage {
    folder: TempDir,
    environment: BTreeMap<String, Option<String>>,
}

/// How a run of the command ended.
pub(crate) struct Outcome {
    status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

const LIMIT: Duration = Duration::from_secs(60);

impl Stage {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["bin", "tmp", "cache"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let mut stage = Self {
            folder,
            environment: BTreeMap::new(),
        };
        let path = |name: &str| stage.folder.path().join(name).display().to_string();
        let words = [
            ("PATH", format!("{}:/usr/bin:/bin", path("bin"))),
            ("TMPDIR", path("tmp")),
        ];
        let cargo = path("bin/cargo");
        let more = [
            ("VMMU_CACHE", path("cache")),
            ("SCRIPT_PID", path("pid")),
            ("CARGO", cargo),
        ];
        for (name, value) in words.into_iter().chain(more) {
            stage.set(name, &value);
        }
        stage.link("qemu-system-x86_64", &scripted_qemu());
        stage.cargo_builds("vmmu-image", "/dev/null");
        stage
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment
            .insert(name.to_owned(), Some(value.to_owned()));
    }

    /// Takes a variable away, and cargo from the search path with it.
    pub(crate) fn unset(&mut self, name: &str) {
        self.environment.insert(name.to_owned(), None);
        fs::remove_file(self.folder.path().join("bin/cargo")).expect("it was there");
        self.set(
            "PATH",
            &self.folder.path().join("bin").display().to_string(),
        );
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).expect("written");
        path.display().to_string()
    }

    /// Writes what passes for a bzImage that needs 34 MiB.
    pub(crate) fn kernel(&self) -> String {
        self.file("kernel", &bzimage())
    }

    /// Makes a program on the search path.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let path = self.folder.path().join("bin").join(name);
        // It may be a link so far.
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Lets cargo report that it built `binary`.
    pub(crate) fn cargo_builds(&self, binary: &str, path: &str) {
        self.program(
            "cargo",
            &format!("echo '{{\"target\":{{\"name\":\"{binary}\"}},\"executable\":\"{path}\"}}'"),
        );
    }

    /// Puts the Debian packages into the cache.
    pub(crate) fn debian(&self) {
        self.program("apt-cache", "echo '  Depends: linux-image-1-cloud-amd64'");
        let packages = self.folder.path().join("cache/packages");
        let boot = packages.join("linux-image-1-cloud-amd64/boot");
        let bin = packages.join("busybox-static/bin");
        for (folder, name, content) in [(boot, "vmlinuz-1", bzimage()), (bin, "busybox", vec![1])] {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join(name), content).expect("written");
        }
    }

    fn link(&self, name: &str, target: &Path) {
        std::os::unix::fs::symlink(target, self.folder.path().join("bin").join(name))
            .expect("a link");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmmu"));
        // These tests are about QEMU, which stands in for itself here.
        let (start, rest) = match words {
            ["run", rest @ ..] => (&["run", "--engine", "svm"][..], rest),
            words => (&[][..], words),
        };
        command
            .args(start)
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Outcome {
        let outcome = self.command(words).output().expect("the command starts");
        self.assert_no_file_is_left();
        Outcome {
            status: outcome.status.code(),
            stdout: String::from_utf8_lossy(&outcome.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&outcome.stderr).into_owned(),
        }
    }

    pub(crate) fn run_and_signal(&self, words: &[&str], signal: Signal) -> Outcome {
        // The process id of an earlier run.
        let _ = fs::remove_file(self.folder.path().join("pid"));
        let child = self.command(words).spawn().expect("the command starts");
        self.wait_for_qemu();
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("an id")).expect("an id");
        rustix::process::kill_process(pid, signal).expect("it runs");
        let outcome = child.wait_with_output().expect("it ends");
        self.assert_no_file_is_left();
        Outcome {
            status: outcome.status.code(),
            stdout: String::new(),
            stderr: String::from_utf8_lossy(&outcome.stderr).into_owned(),
        }
    }

    /// Runs on a pseudo-terminal; waits for `prompt`, types `keys`, and checks that the settings are restored.
    pub(crate) fn run_on_terminal(&self, words: &[&str], prompt: &str, keys: &[u8]) -> Outcome {
        let controller =
            pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).expect("a terminal");
        pty::grantpt(&controller).expect("a terminal");
        pty::unlockpt(&controller).expect("a terminal");
        let name = pty::ptsname(&controller, Vec::new()).expect("its name");
        let terminal: OwnedFd = rfs::open(
            name,
            rfs::OFlags::RDWR | rfs::OFlags::NOCTTY,
            rfs::Mode::empty(),
        )
        .expect("a terminal");
        let before = termios::tcgetattr(&terminal).expect("settings");
        let copy = || Stdio::from(terminal.try_clone().expect("a copy"));
        let mut child = self
            .command(words)
            .stdin(copy())
            .stdout(copy())
            .spawn()
            .expect("the command starts");
        let mut screen = File::from(controller);
        let mut seen = String::new();
        let mut buffer = [0; 256];
        while !seen.contains(prompt) {
            let length = screen.read(&mut buffer).expect("the terminal is open");
            seen += &String::from_utf8_lossy(&buffer[..length]);
        }
        let during = termios::tcgetattr(&terminal).expect("settings");
        assert_ne!(during.local_modes, before.local_modes, "raw mode");
        screen.write_all(keys).expect("the terminal is open");
        let status = child.wait().expect("it ends");
        let after = termios::tcgetattr(&terminal).expect("settings");
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(after.input_modes, before.input_modes);
        assert_eq!(after.output_modes, before.output_modes);
        self.assert_no_file_is_left();
        Outcome {
            status: status.code(),
            stdout: seen,
            stderr: String::new(),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("pid")
    }

    fn wait_for_qemu(&self) {
        let start = Instant::now();
        while !fs::read_to_string(self.pid_file()).is_ok_and(|text| !text.is_empty()) {
            assert!(start.elapsed() < LIMIT, "QEMU was not started");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Let the command take the lines.
        std::thread::sleep(Duration::from_millis(100));
    }

    pub(crate) fn assert_qemu_is_gone(&self) {
        let pid = fs::read_to_string(self.pid_file()).expect("it was started");
        assert!(
            !Path::new("/proc").join(pid.trim()).exists(),
            "QEMU is still there"
        );
    }

    fn assert_no_file_is_left(&self) {
        let left = fs::read_dir(self.folder.path().join("tmp"))
            .expect("the folder")
            .count();
        assert_eq!(left, 0, "files are left in the temporary folder");
    }
}

impl Outcome {
    /// Checks status and message.
    pub(crate) fn ends_with(&self, status: i32, message: &str) {
        assert_eq!(
            self.status,
            Some(status),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        assert!(self.stderr.contains(message), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 0x300];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x120_0000u32.to_le_bytes());
    bytes
}

/// The example is built beside the tests.
fn scripted_qemu() -> PathBuf {
    let command = Path::new(env!("CARGO_BIN_EXE_vmmu"));
    let path = command.with_file_name("examples").join("scripted-qemu");
    assert!(
        path.is_file(),
        "build it: cargo build -p vmmu-cli --example scripted-qemu"
    );
    path
}
