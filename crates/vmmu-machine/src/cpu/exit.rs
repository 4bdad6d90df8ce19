//! Why the processor left its guest.
//!
//! Key type: [`Exit`]. An exit leaves the state before the instruction that caused it, and what was being delivered in
//! [`crate::cpu::Processor::take_undelivered`].

use vmmu_cpu::{Gpa, NpfCode, PfCode, Va, Violation};
use vmmu_emu::Access;

/// Why the processor left its guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// #PF of the tables in force, under shadow paging.
    PageFault {
        /// The address.
        va: Va,
        /// The error code.
        code: PfCode,
        /// The access, where an instruction's data was accessed.
        access: Option<Access>,
    },
    /// A nested page fault.
    NestedFault {
        /// The guest-physical address.
        gpa: Gpa,
        /// The linear address behind it.
        va: Va,
        /// What EXITINFO1 says.
        code: NpfCode,
    },
    /// An instruction that the hypervisor executes.
    Intercept(Intercept),
    /// An instruction that the processor does not know.
    Unsupported,
    /// A fault during the delivery of a double fault.
    Shutdown,
    /// The time is over, somebody kicked, or the interrupt window opened.
    Pause(Pause),
    /// The tables led the processor where it must never be.
    Violation(Violation),
    /// The observer caught a translation that must not be used.
    Caught,
}

/// What instruction the hypervisor executes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the instructions' names")]
pub enum Intercept {
    Cpuid,
    In,
    Out,
    Rdmsr,
    Wrmsr,
    Control,
    Invlpg,
    Hlt,
    Vmmcall,
}

/// Why a run ended without the guest's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// As many instructions as it was given are done.
    Budget,
    /// Somebody asked for it.
    Kick,
    /// Interrupts are enabled, and somebody waits for that.
    Window,
}

impl Exit {
    /// The number of kinds.
    pub const KINDS: usize = 18;

    /// What the kinds are called.
    pub const NAMES: [&str; Self::KINDS] = [
        "page fault",
        "nested fault",
        "cpuid",
        "in",
        "out",
        "rdmsr",
        "wrmsr",
        "control register",
        "invlpg",
        "hlt",
        "vmmcall",
        "unsupported",
        "shutdown",
        "budget",
        "kick",
        "interrupt window",
        "violation",
        "caught",
    ];

    /// Returns the number of the exit's kind, in the order of [`Exit::NAMES`].
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::PageFault { .. } => 0,
            Self::NestedFault { .. } => 1,
            Self::Intercept(what) => 2 + what as usize,
            Self::Unsupported => 11,
            Self::Shutdown => 12,
            Self::Pause(pause) => 13 + pause as usize,
            Self::Violation(_) => 16,
            Self::Caught => 17,
        }
    }
}
