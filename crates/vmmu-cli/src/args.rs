//! The command line, as clap reads it.
//!
//! Key types: [`Cli`], [`RunArgs`], [`BenchArgs`]. What clap can't judge alone is judged in [`crate::run`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::STATUS_HELP;
use crate::number::{ByteSize, Limit};

/// Runs unmodified guests on vmmu's shadow or nested paging. Without a subcommand: a small guest of the project's own under both, with what it cost.
#[derive(Debug, Parser)]
#[command(name = "vmmu", version, after_help = STATUS_HELP, after_long_help = STATUS_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts a guest: Debian's cloud kernel (`linux`) or any kernel file
    ///
    /// On a terminal the keys go to the guest, Ctrl-C included; Ctrl-A X ends the run, Ctrl-A Ctrl-A sends one Ctrl-A.
    #[command(after_help = STATUS_HELP)]
    Run(RunArgs),
    /// Measures paging operations natively, under shadow and under nested paging, and prints the table
    #[command(after_help = STATUS_HELP)]
    Bench(BenchArgs),
    /// May a guest write read the count of shadow pages without a lock? Explores, tries and measures every answer
    #[command(after_help = STATUS_HELP)]
    Litmus(LitmusArgs),
}

/// Options of `vmmu run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// `linux`, or a kernel file: a bzImage, an ELF with a PVH note or a multiboot-1 ELF32
    #[arg(value_name = "linux|FILE")]
    pub kernel: PathBuf,
    /// The guest's command line (for `linux` use --append)
    #[arg(last = true, value_name = "GUEST COMMAND LINE")]
    pub command_line: Vec<String>,
    /// How the guest's pages are translated
    #[arg(long, value_enum, default_value_t = Paging::Shadow)]
    pub paging: Paging,
    /// The format of nested tables on the software machine, with --paging nested (default: npt)
    #[arg(long, value_enum)]
    pub tables: Option<Tables>,
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Engine::Software)]
    pub engine: Engine,
    /// How the software machine behaves where the architecture lets it choose (default: plain)
    #[arg(long, value_enum)]
    pub nature: Option<Nature>,
    /// What a hostile or deterministic machine draws its choices from (default: 1)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Compares every translation that the software machine uses with the architecture's rules, and has the auditor check the library's
    /// structure every 1024 exits
    #[arg(long)]
    pub check: bool,
    /// The guest's processors
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub cpus: u8,
    /// The guest's memory, a multiple of 2 MiB
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    pub memory: ByteSize,
    /// Runs the shell commands in the guest, prints their output alone (standard output and error together),
    /// powers off and ends with their status; `linux` only
    #[arg(long, value_name = "COMMANDS")]
    pub exec: Option<String>,
    /// Words added to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub append: Option<String>,
    /// The initramfs, or for other kernels a module; with `linux` it replaces the busybox one (--exec lays
    /// its own /init over it)
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Which of the guest's outputs are shown; `linux` has only the console
    #[arg(long, value_enum, default_value_t = Shown::Both)]
    pub show: Shown,
    /// Ends the run after this time (90s, 5m)
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Limit>,
    /// Writes counters, exits by reason and time to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// The guest's physical address width
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(32..=52))]
    pub phys_bits: Option<u8>,
    /// Features hidden from the guest
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FEATURE")]
    pub hide: Vec<Feature>,
    /// The most shadow pages that may exist at once, at least 8 for each processor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..))]
    pub max_pages: Option<u32>,
    /// Runs the auditor every N exits; on the software machine --check implies it, every 1024
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub audit: Option<u32>,
    /// A word added to QEMU's command line; may be repeated (svm)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub qemu_arg: Vec<String>,
    /// Lets QEMU count instructions: the guest's time then is their number, and runs repeat exactly (svm)
    #[arg(long)]
    pub icount: bool,
}

impl RunArgs {
    /// Returns the options of `run linux --engine svm --exec COMMANDS`, all others as they are by default.
    #[must_use]
    pub fn exec(paging: Paging, commands: &str) -> Self {
        Self {
            kernel: "linux".into(),
            command_line: Vec::new(),
            paging,
            tables: None,
            engine: Engine::Svm,
            nature: None,
            seed: None,
            check: false,
            cpus: 1,
            memory: ByteSize::from_mib(512),
            exec: Some(commands.to_owned()),
            append: None,
            initrd: None,
            show: Shown::Both,
            timeout: None,
            stats: None,
            phys_bits: None,
            hide: Vec::new(),
            max_pages: None,
            audit: None,
            qemu_arg: Vec::new(),
            icount: false,
        }
    }
}

/// Options of `vmmu bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What to measure instead
    #[command(subcommand)]
    pub instead: Option<Benchmark>,
    /// Also writes all figures to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Prints every operation of the guest, not only those with a goal
    #[arg(long)]
    pub all: bool,
    /// Also boots Linux three ways and compares the instructions (a few minutes)
    #[arg(long)]
    pub linux: bool,
    /// Runs only these (may be repeated); left out, all three
    #[arg(long, value_enum, value_delimiter = ',')]
    pub paging: Vec<Paging>,
    /// The time limit of each run
    #[arg(long, default_value = "5m", value_name = "TIME")]
    pub timeout: Limit,
    /// A word added to QEMU's command line; may be repeated
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub qemu_arg: Vec<String>,
}

/// What `vmmu bench` measures besides operations.
#[derive(Debug, Subcommand)]
pub enum Benchmark {
    /// Measures faults of two processors at once, beside one lock round the whole MMU
    #[command(after_help = STATUS_HELP)]
    Parallel(ParallelArgs),
}

/// Options of `vmmu bench parallel`.
#[derive(Debug, Args)]
pub struct ParallelArgs {
    /// Also writes all figures to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measures for a few seconds only, neither counts nor simulates: a trial, not a result
    #[arg(long)]
    pub quick: bool,
}

/// Options of `vmmu litmus`.
#[derive(Debug, Args)]
pub struct LitmusArgs {
    /// How often the two sides meet on the real machine, for each row
    #[arg(long, default_value_t = 300_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Also writes the programs to DIR as litmus files (x86, C11, Linux kernel) for the common tools
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
}

/// How the guest's memory is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Paging {
    /// By shadow page tables
    Shadow,
    /// By nested page tables
    Nested,
    /// Plain QEMU without the hypervisor, to compare with
    Native,
}

impl Paging {
    /// Returns the word used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Nested => "nested",
            Self::Native => "native",
        }
    }
}

/// The format of nested tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tables {
    /// AMD's nested page tables
    Npt,
    /// Intel's extended page tables
    Ept,
}

impl Tables {
    /// Returns the word used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Npt => "npt",
            Self::Ept => "ept",
        }
    }
}

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// A machine in this process, interpreted: needs nothing but Rust
    Software,
    /// The bare-metal AMD-SVM hypervisor inside QEMU
    Svm,
}

impl Engine {
    /// Returns the word used on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Svm => "svm",
        }
    }
}

/// How the software machine behaves where the architecture lets it choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Nature {
    /// Fast
    Plain,
    /// TLBs keep what they may, forget and walk ahead at random; frames are taken back while the guest runs
    Hostile,
    /// As hostile, but one seed gives one run, to the instruction
    Deterministic,
}

/// The outputs of a kernel file that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// The first serial port
    Console,
    /// Port 0xE9, line by line
    Debug,
    /// Both; lines of a guest that writes to both come twice
    Both,
}

/// A processor feature that can be hidden from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Feature {
    /// Protection keys
    Pku,
    /// Supervisor-mode execution prevention
    Smep,
    /// Supervisor-mode access prevention
    Smap,
    /// No-execute pages
    Nx,
    /// 57-bit linear addresses
    La57,
    /// 1 GiB pages
    Pdpe1gb,
}

impl Feature {
    /// Returns the name as the image knows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pku => "pku",
            Self::Smep => "smep",
            Self::Smap => "smap",
            Self::Nx => "nx",
            Self::La57 => "la57",
            Self::Pdpe1gb => "pdpe1gb",
        }
    }

    /// Returns the flag in QEMU's `-cpu` list.
    #[must_use]
    pub const fn qemu_name(self) -> &'static str {
        self.name()
    }
}

/// Makes one line of clap's several: what is wrong, what is possible, where to read more.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<_> = said
        .filter(|line| !line.is_empty() && !line.starts_with("For more"))
        .collect();
    format!(
        "{}; see vmmu --help",
        said.join(" ").trim_start_matches("error: ")
    )
}

#[cfg(test)]
mod command_line {
    use super::{Cli, Command, Feature, Paging};
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn features_come_repeated_or_by_commas() {
        let cli = Cli::parse_from([
            "vmmu", "run", "linux", "--hide", "pku,smap", "--hide", "la57",
        ]);
        let Some(Command::Run(run)) = cli.command else {
            panic!("run was asked for")
        };
        assert_eq!(run.hide, [Feature::Pku, Feature::Smap, Feature::La57]);
        assert_eq!(run.paging, Paging::Shadow);
        assert_eq!(run.memory.to_string(), "512M");
    }

    #[test]
    fn what_follows_two_dashes_is_the_guests_command_line() {
        let cli = Cli::parse_from([
            "vmmu", "run", "k.elf", "--paging", "nested", "--", "a", "--b=c",
        ]);
        let Some(Command::Run(run)) = cli.command else {
            panic!("run was asked for")
        };
        assert_eq!(run.command_line, ["a", "--b=c"]);
        assert_eq!(run.paging, Paging::Nested);
    }

    #[test]
    fn may_be_empty() {
        assert!(Cli::parse_from(["vmmu"]).command.is_none());
    }
}
