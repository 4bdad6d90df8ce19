//! What was wrong, in a form that a person can read.
//!
//! Key types: [`Mismatch`], [`Wrong`], [`GuestStep`], [`HostStep`].

use core::fmt;

use vmmu::host::VcpuId;
use vmmu::paging::PagingState;
use vmmu_cpu::{Access, Fault, Kind, Privilege, TlbEntry, Va};
use vmmu_spec::{Candidate, Outcome, Slot, Time};

use super::ring::Noted;

/// What is wrong.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Wrong {
    /// The access reaches host memory that backs no guest frame: a table, a free frame, one that was taken back.
    Foreign {
        /// The host address.
        hpa: u64,
    },
    /// The access reaches a guest frame that no walk since the last flush leads to.
    Frame {
        /// The guest-physical address that it reaches.
        gpa: u64,
    },
    /// The access goes through where every walk since the last flush refuses it.
    Right {
        /// The guest-physical address that it reaches.
        gpa: u64,
    },
    /// The entry in the TLB grants an access that no walk since the last flush does; this one, it did not make yet.
    Grants(Access),
    /// The entry in the TLB lets writes through, and no walk since the last flush found the dirty bit set.
    GrantsClean,
    /// A write to memory that is read-only.
    ReadOnly {
        /// The guest-physical address.
        gpa: u64,
    },
    /// The guest's accessed or dirty bits are not set.
    Bits {
        /// The entry's guest-physical address.
        entry: u64,
        /// The bits.
        missing: u64,
    },
    /// The guest sees a page fault with this code, and no walk since the last flush gives it.
    PageFault {
        /// The error code.
        code: u32,
    },
    /// The guest sees #GP for an address that is canonical.
    NotCanonical,
    /// A device is asked for what is memory.
    NotADevice {
        /// The guest-physical address.
        gpa: u64,
    },
    /// A TLB still maps a frame that was taken back.
    Kept {
        /// The host frame.
        frame: u64,
    },
    /// The processor was led where it must never be.
    Violation(Fault),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { hpa } => {
                write!(
                    f,
                    "reaches host address {hpa:#x}, which backs no guest frame"
                )
            }
            Self::Frame { gpa } => {
                write!(
                    f,
                    "reaches guest address {gpa:#x}, which the guest's tables do not name"
                )
            }
            Self::Right { gpa } => {
                write!(
                    f,
                    "reaches guest address {gpa:#x}, but the guest's tables refuse it"
                )
            }
            Self::Grants(access) => write!(
                f,
                "goes through an entry that grants a {} as well, which the guest's tables refuse",
                Words(*access)
            ),
            Self::GrantsClean => write!(
                f,
                "goes through an entry that lets writes through, but the guest's dirty bit is clear"
            ),
            Self::ReadOnly { gpa } => write!(f, "writes read-only memory at {gpa:#x}"),
            Self::Bits { entry, missing } => write!(
                f,
                "is done, but the guest's entry at {entry:#x} lacks its bits {missing:#x}"
            ),
            Self::PageFault { code } => write!(
                f,
                "raises #PF with code {code:#x}, which the guest's tables do not give"
            ),
            Self::NotCanonical => write!(f, "raises #GP, but the address is canonical"),
            Self::NotADevice { gpa } => {
                write!(f, "is left to a device, but memory is at {gpa:#x}")
            }
            Self::Kept { frame } => write!(
                f,
                "comes while the TLB still maps host frame {frame:#x}, which was taken back"
            ),
            Self::Violation(fault) => write!(f, "led the processor astray: {fault}"),
        }
    }
}

/// An entry of the guest's walk, with what it has been.
#[derive(Clone, PartialEq, Debug)]
pub struct GuestStep {
    /// Where it lies.
    pub slot: Slot,
    /// Its present value; `None` where no memory is.
    pub value: Option<u64>,
    /// Its values since the last flush, the present one first, if the table is watched.
    pub since: Vec<Candidate>,
}

/// An entry of the processor's walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostStep {
    /// The level of its table.
    pub level: u8,
    /// Where it lies.
    pub at: u64,
    /// Its value.
    pub value: u64,
}

/// What the judge found wrong.
#[derive(Clone, PartialEq, Debug)]
pub struct Mismatch {
    /// What.
    pub wrong: Wrong,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// The instruction's address.
    pub rip: u64,
    /// The address, and what was done there.
    pub access: Option<(Va, Access)>,
    /// The guest's registers.
    pub state: Option<PagingState>,
    /// What the guest's tables give now, and what else they gave since the last flush.
    pub allowed: Vec<Outcome>,
    /// When the address was flushed last, and when it was used.
    pub window: (Time, Time),
    /// The guest's walk, as it is now.
    pub guest: Vec<GuestStep>,
    /// The processor's walk of the library's tables, as it is now.
    pub host: Vec<HostStep>,
    /// The entry of the TLB that was used, or filled.
    pub entry: Option<TlbEntry>,
    /// The last events, oldest first.
    pub events: Vec<Noted>,
}

/// An access in words.
struct Words(Access);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.privilege {
            Privilege::User => "user ",
            Privilege::Supervisor => "kernel ",
            Privilege::SupervisorAc => "kernel (AC) ",
            Privilege::Implicit => "system ",
        })?;
        f.write_str(match self.0.kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Execute => "fetch",
        })
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.access {
            Some((va, access)) => {
                writeln!(
                    f,
                    "vcpu {}: {} at {va} {}",
                    self.vcpu.0,
                    Words(*access),
                    self.wrong
                )?;
            }
            None => writeln!(f, "{}", self.wrong)?,
        }
        self.write_registers(f)?;
        self.write_guest(f)?;
        self.write_host(f)?;
        if !self.events.is_empty() {
            writeln!(f, "  the last events, oldest first:")?;
        }
        for event in &self.events {
            writeln!(f, "    {event}")?;
        }
        Ok(())
    }
}

impl Mismatch {
    fn write_registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(state) = &self.state else {
            return Ok(());
        };
        writeln!(
            f,
            "  rip {:#x}  cr0 {:#x}  cr3 {:#x}  cr4 {:#x}  efer {:#x}",
            self.rip,
            state.cr0.bits(),
            state.cr3.get(),
            state.cr4.bits(),
            state.efer.bits()
        )?;
        let (flushed, used) = self.window;
        writeln!(
            f,
            "  flushed at time {}, used at time {} (time counts changes of guest tables)",
            flushed.get(),
            used.get()
        )
    }

    fn write_guest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.guest.is_empty() {
            writeln!(f, "  the guest's walk now:")?;
        }
        for step in &self.guest {
            let (level, at) = (step.slot.level.number(), step.slot.at.get());
            match step.value {
                Some(value) => writeln!(f, "    level {level}  gpa {at:#012x}  {}", Bits(value))?,
                None => writeln!(f, "    level {level}  gpa {at:#012x}  no memory")?,
            }
            for old in step.since.iter().skip(1) {
                let (value, last) = (Bits(old.value), old.last.get());
                writeln!(f, "      until time {last}: {value}")?;
            }
        }
        for (i, outcome) in self.allowed.iter().take(8).enumerate() {
            let name = if i == 0 { "now" } else { "or " };
            writeln!(f, "  allowed {name}: {}", InShort(outcome))?;
        }
        Ok(())
    }

    fn write_host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.host.is_empty() {
            writeln!(f, "  the processor's walk now:")?;
        }
        for step in &self.host {
            let HostStep { level, at, value } = *step;
            writeln!(f, "    level {level}  hpa {at:#012x}  {}", Bits(value))?;
        }
        if let Some(entry) = &self.entry {
            writeln!(
                f,
                "  the TLB entry: {:#x} -> hpa {}, {:?}, {:?}{}",
                entry.page,
                entry.hpa,
                entry.size,
                entry.rights,
                if entry.dirty { ", dirty" } else { "" }
            )?;
        }
        Ok(())
    }
}

/// A table entry with its bits in letters.
struct Bits(u64);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} ", self.0)?;
        let letters = [
            (0, 'P'),
            (1, 'W'),
            (2, 'U'),
            (5, 'A'),
            (6, 'D'),
            (7, 'S'),
            (8, 'G'),
            (63, 'X'),
        ];
        for (bit, letter) in letters {
            let set = self.0 >> bit & 1 != 0;
            write!(f, "{}", if set { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// An outcome in a line.
struct InShort<'o>(&'o Outcome);

impl fmt::Display for InShort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Outcome::Translation(t) => {
                let mapping = t.mapping();
                write!(
                    f,
                    "gpa {:#x}, {:?}",
                    mapping.physical.get(),
                    mapping.rights.flags()
                )
            }
            Outcome::PageFault(fault) => {
                write!(
                    f,
                    "#PF, code {:#x}, {:?}",
                    fault.code().bits(),
                    fault.cause()
                )
            }
            Outcome::NonCanonical => write!(f, "#GP, not canonical"),
            Outcome::Unbacked(unbacked) => {
                write!(
                    f,
                    "a table at {:#x}, where no memory is",
                    unbacked.slot().at.get()
                )
            }
        }
    }
}
