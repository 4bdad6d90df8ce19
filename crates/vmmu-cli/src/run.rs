//! `vmmu run`: from options to a machine, from a record to a status.
//!
//! Key function: [`run`].
//!
//! Invariants:
//! 1. Everything that can be judged before QEMU starts is judged before anything is fetched or built.

use std::path::Path;

use crate::args::{self, Paging, RunArgs, Shown};
use crate::bundle::{Bundle, Config, Engine};
use crate::channel::Message;
use crate::debian::Packages;
use crate::error::{Error, Result};
use crate::image::BareMetal;
use crate::initramfs::{self, Job, STATUS_LINE};
use crate::input::Keys;
use crate::kernel::Kernel;
use crate::number::ByteSize;
use crate::qemu::{Clock, Machine, QEMU, QEMU_PACKAGE, said};
use crate::session::{End, Output, Record, Session};
use crate::workspace::Workspace;
use crate::{screen, software, stats, terminal, tools};

/// Less than this and Debian's kernel runs out of memory while it boots.
const LEAST_LINUX: ByteSize = ByteSize::from_mib(96);
/// The word that stands for Debian's kernel.
const LINUX: &str = "linux";
/// The processor under the hypervisor: everything that TCG has.
const CPU: &str = "max,+svm";
/// Without the hypervisor, less what the hypervisor never shows.
const CPU_NATIVE: &str = "max,-la57,-svm";

/// A guest, ready to be put into a machine.
#[derive(Debug)]
pub struct Guest {
    /// Its kernel.
    pub kernel: Kernel,
    /// Linux's initrd or another kernel's module.
    pub module: Option<Vec<u8>>,
    /// Its command line.
    pub command_line: String,
}

/// Runs `vmmu run` and returns the process's status.
///
/// # Errors
///
/// Every class of [`Error`].
pub fn run(args: &RunArgs) -> Result<u8> {
    check(args)?;
    let is_linux = args.kernel == Path::new(LINUX);
    let workspace = Workspace::find();
    let guest = if is_linux {
        linux(args, &workspace)?
    } else {
        other(args)?
    };
    enough_memory(
        &guest,
        args.memory,
        if is_linux {
            LEAST_LINUX
        } else {
            ByteSize::from_mib(2)
        },
    )?;
    let session = session(args, is_linux, Output::Show);
    let mut record = conduct(args, &session, guest, &workspace)?;
    let status = match record.cut.take() {
        Some(error) => Err(error),
        None => status(args, is_linux, &record, &session),
    };
    if let Some(line) = stats::of_check(&record) {
        screen::note(&line);
    }
    if let Some(path) = &args.stats {
        stats::write(path, args, &record, &status)?;
    }
    status
}

/// Runs the commands of `--exec` in Linux and returns the record, with their output in it.
///
/// # Errors
///
/// As [`run`]; [`Error::NoStatus`] if the commands failed.
pub fn exec(args: &RunArgs) -> Result<Record> {
    check(args)?;
    let workspace = Workspace::find();
    let guest = linux(args, &workspace)?;
    let session = session(args, true, Output::Keep);
    let record = conduct(args, &session, guest, &workspace)?.whole()?;
    match status(args, true, &record, &session)? {
        0 => Ok(record),
        status => Err(Error::NoStatus {
            reason: format!("its commands ended with {status}"),
            tail: record.debug.quoted(),
        }),
    }
}

/// Runs a guest on the engine that was asked for.
fn conduct(
    args: &RunArgs,
    session: &Session,
    guest: Guest,
    workspace: &Workspace,
) -> Result<Record> {
    match args.engine {
        args::Engine::Software => session.run(software::Machine::describe(args, guest)),
        args::Engine::Svm => {
            tools::require(QEMU, QEMU_PACKAGE)?;
            session.run(qemu_machine(args, guest, workspace)?)
        }
    }
}

fn check(args: &RunArgs) -> Result<()> {
    let usage = |text: String| Err(Error::Usage(text));
    for_the_engine(args)?;
    let is_linux = args.kernel == Path::new(LINUX);
    if !args.memory.bytes().is_multiple_of(2 << 20) || args.memory.bytes() == 0 {
        return usage(format!(
            "--memory {} is no multiple of 2M; round it",
            args.memory
        ));
    }
    if let Some(most) = host_memory().filter(|most| args.memory > *most) {
        return usage(format!(
            "--memory {} is more than the {most} that this host has; give less",
            args.memory
        ));
    }
    if args.tables.is_some() && args.paging != Paging::Nested {
        return usage(
            "--tables says what nested tables look like: give --paging nested too".to_owned(),
        );
    }
    if args.exec.is_some() && !is_linux {
        return usage(
            "--exec works with `run linux` only; a kernel file takes its command line after --"
                .to_owned(),
        );
    }
    if is_linux && !args.command_line.is_empty() {
        return usage("for linux, give words of the command line with --append".to_owned());
    }
    let for_the_hypervisor =
        args.phys_bits.is_some() || args.max_pages.is_some() || args.audit.is_some();
    if args.paging == Paging::Native && for_the_hypervisor {
        return usage("--phys-bits, --max-pages and --audit need the hypervisor, which --paging native leaves out".to_owned());
    }
    Ok(())
}

/// Returns how much memory the host has, swap included, if it tells.
fn host_memory() -> Option<ByteSize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().split(' ').next()?.parse().ok()
    };
    let kib = kib("MemTotal:")?.saturating_add(kib("SwapTotal:").unwrap_or(0));
    Some(ByteSize::from_mib(kib >> 10))
}

/// Refuses options of the other engine.
fn for_the_engine(args: &RunArgs) -> Result<()> {
    let (other, options): (_, &[(&str, bool)]) = match args.engine {
        args::Engine::Software => (
            args::Engine::Svm,
            &[
                ("--paging native", args.paging == Paging::Native),
                ("--icount", args.icount),
                ("--qemu-arg", !args.qemu_arg.is_empty()),
            ],
        ),
        args::Engine::Svm => (
            args::Engine::Software,
            &[
                ("--nature", args.nature.is_some()),
                ("--seed", args.seed.is_some()),
                ("--check", args.check),
                ("--tables", args.tables.is_some()),
            ],
        ),
    };
    match options.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => Err(Error::Usage(format!(
            "{option} needs --engine {}; see vmmu run --help",
            other.name()
        ))),
    }
}

fn linux(args: &RunArgs, workspace: &Workspace) -> Result<Guest> {
    if args.memory < LEAST_LINUX {
        return Err(too_little("Linux", args.memory, LEAST_LINUX));
    }
    let initrd = args
        .initrd
        .as_deref()
        .map(|path| std::fs::read(path).map_err(Error::file("read", path)));
    let mut module = initrd.transpose()?;
    let packages = Packages::new(&workspace.cache()?);
    if module.is_none() || args.exec.is_some() {
        let path = packages.busybox()?;
        let busybox = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let job = match &args.exec {
            Some(commands) => Job::Exec(commands),
            None => Job::Shell {
                window: terminal::is_interactive().then(terminal::window).flatten(),
            },
        };
        // Linux unpacks archives one after another; the later one's files win.
        let archive = module.get_or_insert_default();
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(initramfs::build(&busybox, job));
    }
    let mut command_line = "console=ttyS0 panic=-1".to_owned();
    if args.exec.is_some() {
        command_line += " quiet loglevel=1";
    }
    if let Some(words) = &args.append {
        command_line += " ";
        command_line += words;
    }
    Ok(Guest {
        kernel: Kernel::read(&packages.kernel()?)?,
        module,
        command_line,
    })
}

fn other(args: &RunArgs) -> Result<Guest> {
    let kernel = Kernel::read(&args.kernel)?;
    let module = args
        .initrd
        .as_deref()
        .map(|path| std::fs::read(path).map_err(Error::file("read", path)));
    let mut words = args.command_line.clone();
    words.extend(args.append.clone());
    Ok(Guest {
        kernel,
        module: module.transpose()?,
        command_line: words.join(" "),
    })
}

fn enough_memory(guest: &Guest, given: ByteSize, least: ByteSize) -> Result<()> {
    let modules = guest.module.as_ref().map_or(0, Vec::len) as u64;
    let need = guest.kernel.least_memory(modules).max(least);
    if given < need {
        return Err(too_little(
            &guest.kernel.path.display().to_string(),
            given,
            need,
        ));
    }
    Ok(())
}

fn too_little(what: &str, given: ByteSize, need: ByteSize) -> Error {
    Error::TooLittleMemory {
        what: what.to_owned(),
        given,
        need,
    }
}

fn qemu_machine(args: &RunArgs, guest: Guest, workspace: &Workspace) -> Result<Machine> {
    let clock = if args.icount {
        Clock::Instructions
    } else {
        Clock::Host
    };
    let engine = match args.paging {
        Paging::Native => {
            let hidden: String = args
                .hide
                .iter()
                .map(|f| format!(",-{}", f.qemu_name()))
                .collect();
            return Ok(Machine {
                cpus: args.cpus,
                ..native(
                    guest,
                    args.memory,
                    format!("{CPU_NATIVE}{hidden}"),
                    clock,
                    args.qemu_arg.clone(),
                )
            });
        }
        Paging::Shadow => Engine::Shadow,
        Paging::Nested => Engine::Nested,
    };
    let config = Config {
        engine,
        memory: args.memory,
        cpus: args.cpus,
        phys_bits: args.phys_bits,
        hide: args.hide.clone(),
        max_pages: args.max_pages,
        audit: args.audit,
    };
    let image = BareMetal::Hypervisor.build(workspace)?;
    Ok(hypervisor(
        image,
        guest,
        &config,
        CPU.to_owned(),
        clock,
        args.qemu_arg.clone(),
    ))
}

/// Describes a machine with one processor that starts the guest without the hypervisor.
#[must_use]
pub fn native(
    guest: Guest,
    memory: ByteSize,
    cpu: String,
    clock: Clock,
    extra: Vec<String>,
) -> Machine {
    let append = (!guest.command_line.is_empty()).then_some(guest.command_line);
    Machine {
        kernel: guest.kernel.path,
        initrd: guest.module,
        append,
        memory,
        cpu,
        cpus: 1,
        clock,
        extra,
    }
}

/// Describes a machine in which the hypervisor starts the guest.
#[must_use]
pub fn hypervisor(
    image: std::path::PathBuf,
    guest: Guest,
    config: &Config,
    cpu: String,
    clock: Clock,
    extra: Vec<String>,
) -> Machine {
    let mut bundle = Bundle::new(config, guest.kernel.bytes);
    if let Some(module) = guest.module {
        bundle.module(module);
    }
    bundle.command_line(&guest.command_line);
    let bundle = bundle.to_bytes();
    let memory = config
        .memory
        .plus(host_share(config.memory, bundle.len() as u64));
    Machine {
        kernel: image,
        initrd: Some(bundle),
        append: None,
        memory,
        cpu,
        cpus: config.cpus,
        clock,
        extra,
    }
}

/// What the hypervisor needs beside the guest's memory: itself, the bundle, tables and their bookkeeping.
fn host_share(guest: ByteSize, bundle: u64) -> ByteSize {
    let tables = ByteSize::from_bytes(guest.bytes() / 8);
    ByteSize::from_mib(96)
        .plus(tables)
        .plus(ByteSize::from_bytes(bundle))
        .round_up(ByteSize::from_mib(2))
}

fn session(args: &RunArgs, is_linux: bool, exec_output: Output) -> Session {
    let shown = |other: Shown, output| {
        if args.show == other {
            Output::Keep
        } else {
            output
        }
    };
    // A person sees what is typed at once; in a file, lines shall stay whole.
    let console = if terminal::is_interactive() || args.show == Shown::Console {
        Output::Show
    } else {
        Output::ShowLines
    };
    let (console, debug, keys) = match (&args.exec, is_linux) {
        (Some(_), _) => (Output::Keep, exec_output, Keys::None),
        (None, true) => (Output::Show, Output::Keep, Keys::Shell),
        (None, false) => (
            shown(Shown::Debug, console),
            shown(Shown::Console, Output::ShowLines),
            Keys::Any,
        ),
    };
    Session {
        console,
        debug,
        keys,
        limit: args.timeout,
    }
}

/// Judges how a run ended.
fn status(args: &RunArgs, is_linux: bool, record: &Record, session: &Session) -> Result<u8> {
    let no_status = |reason: &str| {
        Err(Error::NoStatus {
            reason: reason.to_owned(),
            tail: session.hidden_tail(&record.console),
        })
    };
    match &record.end {
        End::Said(Message::Exit { value }) if is_linux => Ok((value & 0xff) as u8),
        End::Said(Message::Exit { value }) => Ok(debug_exit(*value)),
        End::Said(Message::PowerOff) if args.exec.is_none() => Ok(0),
        End::Said(Message::PowerOff) => no_status("it powered off"),
        End::Said(Message::Shutdown { reason }) => no_status(reason),
        End::Said(Message::Crash { text }) => Err(Error::Crash {
            text: text.trim_end().to_owned(),
        }),
        End::Said(Message::Refused { text }) => Err(Error::Refused {
            text: text.trim_end().to_owned(),
        }),
        End::Said(Message::Panic { text }) => Err(Error::Panic {
            text: text.trim_end().to_owned(),
        }),
        End::Said(other) => Err(Error::Qemu {
            reason: format!("ended after {other:?}"),
        }),
        End::Qemu(status) => match status.code() {
            Some(0) if args.exec.is_none() => Ok(0),
            Some(0) => no_status("it powered off or reset"),
            Some(code)
                if code & 1 == 1
                    && args.paging == Paging::Native
                    && record.last_words.is_none() =>
            {
                Ok(native_status(is_linux, code, record))
            }
            _ => Err(Error::Qemu {
                reason: format!(
                    "ended unforeseen ({status}): {}",
                    said(record.last_words.clone())
                ),
            }),
        },
    }
}

/// QEMU's isa-debug-exit drops the value's top bit, so Linux's status is read from the console.
fn native_status(is_linux: bool, code: i32, record: &Record) -> u8 {
    let said = record
        .console
        .after(STATUS_LINE)
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    match said {
        Some(status) if is_linux => status,
        _ if is_linux => (code >> 1) as u8,
        _ => code as u8,
    }
}

/// Returns the status that QEMU's isa-debug-exit makes of a value.
#[must_use]
pub const fn debug_exit(value: u32) -> u8 {
    (value << 1 | 1) as u8
}

#[cfg(test)]
mod statuses {
    use super::{debug_exit, host_share};
    use crate::number::ByteSize;

    #[test]
    fn a_value_becomes_what_isa_debug_exit_makes_of_it() {
        for (value, status) in [
            (0, 1),
            (1, 3),
            (5, 11),
            (127, 255),
            (128, 1),
            (u32::MAX, 255),
        ] {
            assert_eq!(debug_exit(value), status);
        }
    }

    #[test]
    fn the_hosts_share_grows_with_guest_and_bundle() {
        let share = |guest, bundle| host_share(ByteSize::from_mib(guest), bundle).bytes();
        assert_eq!(share(512, 0), 160 << 20);
        assert_eq!(share(512, 5), 162 << 20);
        assert_eq!(share(1024, 0), 224 << 20);
    }
}
