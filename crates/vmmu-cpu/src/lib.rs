//! A software processor's MMU, for tests: it walks real table bytes in (simulated) host-physical
//! memory through a translation lookaside buffer and paging-structure caches that keep every
//! entry as long as the architecture allows, or drop and fill them at random.
//!
//! A hypervisor that forgets a flush, frees a table that can still be walked, or loses a dirty
//! bit behaves well on most hardware most of the time. Here it does not: see [`Policy`].
//!
//! - [`PhysMemory`]: atomic words, frames, poison on free, and memory of what was freed when. A processor takes any
//!   [`Physical`] memory instead.
//! - [`Cpu`]: one logical processor; [`Cpu::enter`] loads a [`World`] (registers, ASID, nested
//!   tables), [`Cpu::translate`], [`Cpu::read`], [`Cpu::write`], [`Cpu::fetch`] access memory,
//!   [`Cpu::flush`], [`Cpu::invlpg`] and the register writes invalidate.
//! - [`Policy`] and [`Schedule`]: what it does where the architecture lets it choose, and when; [`Hostility`] makes a schedule for
//!   whole guests, and [`Policy::NONE`] a plain processor without caches, for a user that has one in front ([`Cpu::permits`]).
//! - [`Fault`]: what an access causes instead, with the processor's own error codes.
//! - [`Cpu::reach`], [`Cpu::conflicts`], [`Cpu::violations`]: what tests ask.
//!
//! All formats: 32-bit, PAE, 4-level and 5-level tables at CR3, alone or on top of NPT or EPT
//! tables. The crate shares no code with the library under test, nor with its specification.
//!
//! ```
//! use std::sync::Arc;
//! use vmmu_cpu::{Access, Asid, Cpu, Flush, Hpa, Model, PhysMemory, Policy, Registers, Va, World};
//!
//! let mem = Arc::new(PhysMemory::new(64));
//! // A 4-level table that maps 0x1000 to frame 9: tables in frames 1 to 4.
//! for table in 1..4 {
//!     mem.store(Hpa::new(table << 12), (table + 1) << 12 | 0x7);
//! }
//! mem.store(Hpa::new(0x4008), 0x9007);
//! mem.store(Hpa::new(0x9010), 42);
//!
//! let mut cpu = Cpu::new(mem.clone(), Model::STRICT, Policy::KEEP, 1);
//! let world = World { regs: Registers::long4(Hpa::new(0x1000)), asid: Asid::new(1), nested: None };
//! cpu.enter(&world, Flush::All)?;
//! assert_eq!(cpu.read(Va::new(0x1010), Access::USER_READ)?, 42);
//!
//! // The entry is gone from memory, but nobody told the processor.
//! mem.store(Hpa::new(0x4008), 0);
//! assert_eq!(cpu.read(Va::new(0x1010), Access::USER_READ)?, 42);
//! cpu.invlpg(Va::new(0x1000));
//! assert!(cpu.read(Va::new(0x1010), Access::USER_READ).is_err());
//! # Ok::<(), vmmu_cpu::Fault>(())
//! ```
//!
//! # Known gaps
//! No memory types, no page-modification logging, no shadow stacks, no MBEC or GMET; EPT
//! violations carry no advanced information.

#![forbid(unsafe_code)]

mod access;
mod addr;
mod cpu;
mod data;
mod event;
mod fault;
mod format;
mod invalidate;
mod mem;
mod nested;
mod physical;
mod policy;
mod query;
mod recent;
mod regs;
mod schedule;
mod structures;
mod tlb;
mod walk;
mod whims;

pub use access::{Access, Kind, Permits, Privilege, Rights};
pub use addr::{Asid, Frame, Gpa, Hpa, Level, PageSize, Pcid, Va};
pub use cpu::{Cpu, Source, Translation};
pub use event::{Counters, Event};
pub use fault::{EptQualification, Fault, Misuse, NpfCode, PfCode, Via, Violation};
pub use format::Format;
pub use invalidate::{Flush, World};
pub use mem::PhysMemory;
pub use mem::pool::{FreeError, Moment, POISON, Reuse, Unusable, Zone};
pub use physical::Physical;
pub use policy::{Odds, Policy};
pub use query::{Conflict, Reach};
pub use regs::{
    Cr0, Cr3, Cr4, Efer, Features, Model, Nested, NestedFlags, PagingMode, Pkru, Registers,
};
pub use schedule::{Hostility, Phase, Schedule};
pub use structures::StructureEntry;
pub use tlb::{Stage, Tag, TlbEntry};
