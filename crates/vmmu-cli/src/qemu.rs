//! The QEMU machine: its command line, its process, its three lines to us.
//!
//! Key types: [`Machine`] (what to start), [`Qemu`] (the running process). [`crate::session`]
//! drives one from start to end.
//!
//! Invariants:
//! 1. Dropping [`Qemu`] ends the process, by its own id, and removes the folder with sockets and files.
//! 2. Only the TCG accelerator is used.
//! 3. QEMU connects to sockets that listen before it starts; none is made by name twice.

use core::time::Duration;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

use tempfile::TempDir;

use crate::channel::Message;
use crate::engine::{Engine, Event, Running, Started};
use crate::error::{Error, Result};
use crate::number::ByteSize;
use crate::{signals, tools};

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";
/// The package that has it.
pub const QEMU_PACKAGE: &str = "qemu-system-x86";

/// How QEMU's clock runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// With the host's time.
    Host,
    /// By counting instructions, one a nanosecond.
    Instructions,
}

/// A machine to start.
#[derive(Debug)]
pub struct Machine {
    /// What QEMU loads as `-kernel`.
    pub kernel: PathBuf,
    /// What it loads as `-initrd`, as it lies in memory here.
    pub initrd: Option<Vec<u8>>,
    /// What it passes as `-append`.
    pub append: Option<String>,
    /// All of the machine's memory.
    pub memory: ByteSize,
    /// The processor model.
    pub cpu: String,
    /// How many processors.
    pub cpus: u8,
    /// The clock.
    pub clock: Clock,
    /// Words added at the end, so that they win.
    pub extra: Vec<String>,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    errors: Option<JoinHandle<String>>,
    // Removed after the process is gone: fields drop in this order, after `drop` itself.
    _folder: TempDir,
}

/// The machine without what differs from run to run.
#[rustfmt::skip]
const BASE: [&str; 9] = [
    "-accel", "tcg", "-M", "pc", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
];
const LINE_NAMES: [&str; 3] = ["com1", "com2", "debug"];
/// How long QEMU may take to open its lines.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

impl Engine for Machine {
    type Running = Qemu;

    /// Starts QEMU and waits for its lines.
    ///
    /// # Errors
    ///
    /// [`Error::ToolMissing`], [`Error::Qemu`] with QEMU's own words, [`Error::System`].
    fn start(self, events: &Sender<Event>) -> Result<Started<Qemu>> {
        let folder = socket_folder()?;
        let listeners = LINE_NAMES.map(|name| listen(&folder.path().join(name)));
        let mut command = launcher();
        command.args(self.words(folder.path())?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let start = |e| Error::Qemu {
            reason: format!("can't be started ({e})"),
        };
        let mut child = command.spawn().map_err(start)?;
        let errors = child.stderr.take().map(collect);
        let mut running = Qemu {
            child,
            errors,
            _folder: folder,
        };
        let [com1, com2, debug] = listeners;
        let console = running.accept(&com1?)?;
        let channel = running.accept(&com2?)?;
        let debug = running.accept(&debug?)?;
        let events = events.clone();
        let teller = std::thread::spawn(move || tell(channel, &events));
        Ok(Started {
            running,
            console,
            debug,
            teller,
        })
    }
}

impl Machine {
    /// Returns QEMU's command line; what goes by file is written to `folder`.
    fn words(&self, folder: &Path) -> Result<Vec<String>> {
        let mut words = BASE.map(str::to_owned).to_vec();
        let mut add = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
        add("-cpu", &self.cpu);
        if self.cpus > 1 {
            // The image leaves the first to wait.
            add("-smp", &(self.cpus + 1).to_string());
        }
        add("-m", &format!("{}k", self.memory.bytes() >> 10));
        for name in LINE_NAMES {
            add(
                "-chardev",
                &format!("socket,id={name},path={}", escaped(&folder.join(name))),
            );
        }
        add("-serial", "chardev:com1");
        add("-serial", "chardev:com2");
        add("-device", "isa-debugcon,iobase=0xe9,chardev=debug");
        add("-device", "isa-debug-exit,iobase=0xf4,iosize=4");
        if self.clock == Clock::Instructions {
            // A fixed date and seed, so that runs repeat to the instruction.
            add("-icount", "shift=0,sleep=off");
            add("-rtc", "clock=vm,base=2024-01-01");
            add("-seed", "1");
        }
        add("-kernel", &self.kernel.to_string_lossy());
        if let Some(bytes) = &self.initrd {
            let path = folder.join("initrd");
            std::fs::write(&path, bytes).map_err(Error::file("write", &path))?;
            add("-initrd", &path.to_string_lossy());
        }
        if let Some(text) = &self.append {
            add("-append", text);
        }
        words.extend(self.extra.iter().cloned());
        Ok(words)
    }
}

impl Running for Qemu {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(Error::system("wait for QEMU"))
    }

    fn stop(&mut self) {
        // Fails only if it ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns QEMU's last words but for warnings; only once, and after its end.
    fn last_words(&mut self) -> Option<String> {
        let text = self
            .errors
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let lines = text
            .lines()
            .rev()
            .map(|line| line.trim().trim_start_matches("qemu-system-x86_64: "));
        lines
            .filter(|line| !line.is_empty())
            .find(|line| !line.starts_with("warning: "))
            .map(str::to_owned)
    }
}

impl Qemu {
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        let start = Instant::now();
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream
                        .set_nonblocking(false)
                        .map_err(Error::system("open a socket"))?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(Error::system("open a socket")(e)),
            }
            signals::check()?;
            if let Some(status) = self.ended()? {
                return Err(Error::Qemu {
                    reason: format!("did not start ({status}): {}", said(self.last_words())),
                });
            }
            if start.elapsed() > START_LIMIT {
                return Err(Error::Qemu {
                    reason: "did not open its lines within a minute".to_owned(),
                });
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Passes on what the hypervisor image says, until its line ends.
fn tell(from: UnixStream, events: &Sender<Event>) {
    let lines = BufReader::new(from).split(b'\n');
    for line in lines.map_while(core::result::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        // The receiver is gone only when the run is over anyway.
        let _ = events.send(Event::Message(Message::parse(line.trim_end())));
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path).map_err(Error::system("open a socket"))?;
    listener
        .set_nonblocking(true)
        .map_err(Error::system("open a socket"))?;
    Ok(listener)
}

/// Reads QEMU's standard error to its end.
fn collect(mut pipe: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before a failure still tells something.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Returns QEMU's command; where setpriv is there, QEMU also dies when this process is killed outright.
fn launcher() -> Command {
    if tools::find("setpriv").is_none() {
        return Command::new(QEMU);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", QEMU]);
    command
}

/// Makes the folder for sockets, whose paths may have at most 107 bytes.
fn socket_folder() -> Result<TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("vmmu-");
        builder
    };
    let usual = builder().tempdir();
    match usual {
        Ok(folder) if folder.path().as_os_str().len() < 90 => Ok(folder),
        _ => builder()
            .tempdir_in("/tmp")
            .map_err(Error::system("make a temporary folder")),
    }
}

/// Names the reason for a failure.
#[must_use]
pub fn said(last_words: Option<String>) -> String {
    last_words.unwrap_or_else(|| "it gave no reason".to_owned())
}

/// Writes a path as QEMU's option lists want it: commas doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod command_lines {
    use super::{Clock, Machine, escaped};
    use crate::number::ByteSize;
    use std::path::Path;

    fn machine() -> Machine {
        Machine {
            kernel: "/k".into(),
            initrd: Some(vec![1]),
            append: Some("a b".to_owned()),
            memory: ByteSize::from_mib(64),
            cpu: "EPYC".to_owned(),
            cpus: 1,
            clock: Clock::Host,
            extra: vec!["-smp".to_owned(), "1".to_owned()],
        }
    }

    #[test]
    fn only_the_tcg_accelerator_is_named_and_extra_words_come_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let words = machine().words(folder.path()).expect("written");
        assert_eq!(words[..2], ["-accel", "tcg"]);
        assert_eq!(words[words.len() - 2..], ["-smp", "1"]);
        assert_eq!(
            std::fs::read(folder.path().join("initrd")).expect("written"),
            [1]
        );
    }

    #[test]
    fn there_is_one_processor_more_than_several_of_the_guest() {
        let folder = tempfile::tempdir().expect("a folder");
        let processors = |cpus| {
            let machine = Machine { cpus, ..machine() };
            let words = machine.words(folder.path()).expect("written");
            let at = words.iter().position(|word| word == "-smp");
            at.map(|at| words[at + 1].clone())
        };
        assert_eq!(processors(2).as_deref(), Some("3"));
        assert_eq!(processors(16).as_deref(), Some("17"));
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }
}
