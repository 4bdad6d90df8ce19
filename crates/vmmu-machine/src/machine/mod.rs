//! A machine: what it is made of, its run, and what there is to tell afterwards.
//!
//! Key types: [`Machine`] (a description, made by methods), [`Ready`] (it is loaded), [`Handle`] (for other threads while it runs), [`Record`].
//!
//! ```no_run
//! use vmmu_machine::machine::{Machine, Paging};
//!
//! let kernel = std::fs::read("bzImage")?;
//! let record = Machine::new(kernel)
//!     .memory(256 << 20)
//!     .paging(Paging::Shadow)
//!     .command_line("console=ttyS0 panic=-1")
//!     .serial(std::io::stdout())
//!     .run()?;
//! println!("{:?} after {} instructions", record.end, record.instructions);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod assemble;
mod mark;
#[cfg(test)]
mod panics;
mod placement;
pub(crate) mod run;
mod start;

use core::num::{NonZeroU8, NonZeroU64};
use core::time::Duration;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use vmmu::Stats;
use vmmu::paging::PhysBits;
use vmmu_cpu::Counters;

use crate::check::Judged;
use crate::cpu::Work;
use crate::gate::GateChoice;
use crate::load::LoadError;
use crate::memory::NoMemory;
use crate::vmm::runner::Exits;

pub use self::mark::{Edge, Mark};
pub use self::placement::Placement;
pub use crate::vmm::cpuid::Hidden;
pub use crate::vmm::end::End;

/// The smallest memory of a guest in bytes.
pub const SMALLEST_MEMORY: u64 = 4 << 20;

/// Exits between two audits of a run that is checked.
pub const AUDIT_EVERY: NonZeroU64 = NonZeroU64::new(1024).expect("not zero");

/// Whose tables the processors walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Paging {
    /// The library's shadow tables.
    #[default]
    Shadow,
    /// The guest's own, on top of the library's nested ones.
    Nested,
}

/// What format nested tables have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NestedTables {
    /// AMD's: that of 4-level long-mode tables (APM vol. 2, section 15.25).
    #[default]
    Npt,
    /// Intel's extended page tables, with accessed and dirty flags (SDM vol. 3, chapter 29). All else of the processor stays as it is.
    Ept,
}

/// How the machine behaves where the architecture lets it choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Nature {
    /// Fast.
    #[default]
    Plain,
    /// TLBs keep what they may, forget and walk ahead at random; guest frames lie scattered.
    Hostile,
    /// As hostile, but one thread runs one processor after the other, and time is counted instructions: one seed gives one run.
    Deterministic,
}

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host has no memory.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
    /// The kernel can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The library refused.
    #[error("the memory-management unit: {0}")]
    Library(#[from] vmmu::Error),
    /// The description makes no sense.
    #[error("{0}")]
    Description(&'static str),
}

/// A description of a machine.
pub struct Machine {
    pub(crate) kernel: Vec<u8>,
    pub(crate) modules: Vec<Vec<u8>>,
    pub(crate) command_line: String,
    pub(crate) memory: u64,
    pub(crate) paging: Paging,
    pub(crate) tables: NestedTables,
    pub(crate) nature: Nature,
    pub(crate) seed: u64,
    pub(crate) cpus: NonZeroU8,
    pub(crate) serial: Box<dyn Write + Send>,
    pub(crate) debug: Box<dyn Write + Send>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) hidden: Hidden,
    pub(crate) phys_bits: Option<PhysBits>,
    pub(crate) max_pages: Option<u32>,
    pub(crate) audit: Option<NonZeroU64>,
    pub(crate) check: bool,
    pub(crate) reclaim: bool,
    pub(crate) gate: GateChoice,
    pub(crate) placement: Placement,
}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine")
            .field("memory", &self.memory)
            .field("paging", &self.paging)
            .field("nature", &self.nature)
            .field("seed", &self.seed)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Describes a machine with 256 MiB, one processor, shadow paging and a kernel: bzImage, ELF with a PVH note, or multiboot-1 ELF32.
    #[must_use]
    pub fn new(kernel: Vec<u8>) -> Self {
        Self {
            kernel,
            modules: Vec::new(),
            command_line: String::new(),
            memory: 256 << 20,
            paging: Paging::default(),
            tables: NestedTables::default(),
            nature: Nature::default(),
            seed: 1,
            cpus: NonZeroU8::MIN,
            serial: Box::new(std::io::sink()),
            debug: Box::new(std::io::sink()),
            timeout: None,
            hidden: Hidden::empty(),
            phys_bits: None,
            max_pages: None,
            audit: None,
            check: false,
            reclaim: false,
            gate: GateChoice::default(),
            placement: Placement::default(),
        }
    }

    /// Adds a module; the first is Linux's initrd.
    #[must_use]
    pub fn module(mut self, module: Vec<u8>) -> Self {
        self.modules.push(module);
        self
    }
    /// Sets the command line.
    #[must_use]
    pub fn command_line(mut self, line: impl Into<String>) -> Self {
        self.command_line = line.into();
        self
    }
    /// Sets the guest's memory in bytes; it is rounded down to whole MiB.
    #[must_use]
    pub const fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes & !0xf_ffff;
        self
    }
    /// Sets whose tables the processors walk.
    #[must_use]
    pub const fn paging(mut self, paging: Paging) -> Self {
        self.paging = paging;
        self
    }
    /// Sets what format the tables have under nested paging.
    #[must_use]
    pub const fn nested_tables(mut self, tables: NestedTables) -> Self {
        self.tables = tables;
        self
    }
    /// Sets how the machine behaves.
    #[must_use]
    pub const fn nature(mut self, nature: Nature) -> Self {
        self.nature = nature;
        self
    }
    /// Sets the seed of everything that is drawn.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
    /// Sets how many processors there are.
    #[must_use]
    pub const fn cpus(mut self, cpus: NonZeroU8) -> Self {
        self.cpus = cpus;
        self
    }
    /// Sets where the first serial port sends.
    #[must_use]
    pub fn serial(mut self, output: impl Write + Send + 'static) -> Self {
        self.serial = Box::new(output);
        self
    }
    /// Sets where port E9h sends.
    #[must_use]
    pub fn debug(mut self, output: impl Write + Send + 'static) -> Self {
        self.debug = Box::new(output);
        self
    }
    /// Sets how long the run may take.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
    /// Sets what the guest isn't shown.
    #[must_use]
    pub const fn hide(mut self, hidden: Hidden) -> Self {
        self.hidden = hidden;
        self
    }
    /// Sets the width of physical addresses that the guest is shown.
    #[must_use]
    pub const fn phys_bits(mut self, bits: PhysBits) -> Self {
        self.phys_bits = Some(bits);
        self
    }
    /// Sets the limit on the library's pages.
    #[must_use]
    pub const fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }
    /// Has the auditor check the library's structure every so many exits of all processors together, which wait meanwhile; at the end it does anyway.
    #[must_use]
    pub const fn audit(mut self, every: NonZeroU64) -> Self {
        self.audit = Some(every);
        self
    }
    /// Has every translation judged by the specification ([`crate::check`]): the first that is wrong ends the run, with a report. The auditor looks every
    /// [`AUDIT_EVERY`] exits, unless [`Machine::audit`] says something else.
    #[must_use]
    pub const fn check(mut self) -> Self {
        self.check = true;
        self
    }
    /// Has guest frames taken back, and aged, at random while the guest runs.
    #[must_use]
    pub const fn reclaim(mut self) -> Self {
        self.reclaim = true;
        self
    }
    /// Sets how guest writes that the hypervisor performs are ordered with new shadow pages.
    #[must_use]
    pub const fn gate(mut self, gate: GateChoice) -> Self {
        self.gate = gate;
        self
    }
    /// Sets on which processors of the host the threads of the machine's run. A deterministic machine has one thread.
    #[must_use]
    pub const fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Error`], if it can't even begin.
    pub fn run(self) -> Result<Record, Error> {
        Ok(self.ready()?.run())
    }
}

/// A machine that is about to run.
#[derive(Debug)]
pub struct Ready(pub(crate) Box<dyn run::Run>);

impl Ready {
    /// Returns a handle for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.handle()
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(self) -> Record {
        self.0.run()
    }
}

/// What other threads can do to a machine.
#[derive(Clone, Debug)]
pub struct Handle(pub(crate) Arc<dyn run::Control>);

impl Handle {
    /// Ends the run.
    pub fn stop(&self) {
        self.0.stop();
    }
    /// Sends bytes to the guest's serial port.
    pub fn serial_input(&self, bytes: &[u8]) {
        self.0.serial_input(bytes);
    }
}

/// What there is to tell after a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Record {
    /// How it ended.
    pub end: End,
    /// How long it took.
    pub elapsed: Duration,
    /// Instructions of all processors.
    pub instructions: u64,
    /// By processor: what it did.
    pub work: Vec<Work>,
    /// By processor: what its MMU did.
    pub mmu: Vec<Counters>,
    /// Exits of all processors.
    pub exits: Exits,
    /// How often each port was read.
    pub port_reads: BTreeMap<u16, u64>,
    /// The library's counters.
    pub stats: Stats,
    /// How much was judged, if it was asked for.
    pub judged: Option<Judged>,
    /// How often the auditor looked, once at the end.
    pub audits: u64,
    /// How many guest frames were taken back and replaced.
    pub frames_moved: u64,
    /// How many guest frames the processors had walked to when they were aged.
    pub frames_used: u64,
    /// The same at the marks of the guest.
    pub marks: Vec<Mark>,
}
