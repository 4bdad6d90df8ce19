//! The x86 memory-management unit of a hypervisor: shadow paging and nested paging behind one interface.
//!
//! A hypervisor makes one [`Mmu`] per virtual machine, gives it an implementation of the traits in [`host`], adds memory slots, and then
//! asks a [`Vcpu`] at each exit: [`Vcpu::handle_fault`] for a #PF under shadow paging, [`Vcpu::handle_nested_fault`] for a nested page fault,
//! [`Vcpu::load_cr3`], [`Vcpu::set_paging`] and [`Vcpu::invalidate`] for what the guest does to its own translation, [`Vcpu::enter`] and
//! [`Vcpu::exited`] around each run. The answer is a value ([`FaultOutcome`]); the library never calls back into a vCPU's state.
//!
//! Faults of different vCPUs proceed in parallel: the locks are one per table and one per stripe of guest memory, none covers the VM. The
//! protocol is one file, `edge.rs`; docs/concurrency.md has its table.
//!
//! # An embedder
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
//! use vmmu::addr::{Gfn, Gpa, Gva, Index, Level, Pfn};
//! use vmmu::gate::Fenced;
//! use vmmu::host::*;
//! use vmmu::paging::{Cr0, Cr3, Cr4, CpuFeatures, CpuModel, Efer, PagingState, PhysBits};
//! use vmmu::walk::Access;
//! use vmmu::{AddressSpace, Config, Engine, FaultOutcome, Mmu, SlotConfig, SlotFlags};
//!
//! /// Host memory: 64 frames; guest RAM is frames 0 to 31, tables come from frame 32 on.
//! struct Machine {
//!     words: Vec<AtomicU64>,
//!     next_table: AtomicU64,
//! }
//!
//! impl Machine {
//!     fn word(&self, frame: u64, index: usize) -> &AtomicU64 {
//!         &self.words[frame as usize * 512 + index]
//!     }
//! }
//! impl TableMemory for Machine {
//!     fn load(&self, table: Pfn, slot: Index) -> u64 {
//!         self.word(table.get(), slot.get()).load(SeqCst)
//!     }
//!     fn store(&self, table: Pfn, slot: Index, entry: u64) {
//!         self.word(table.get(), slot.get()).store(entry, SeqCst)
//!     }
//!     fn exchange(&self, table: Pfn, slot: Index, entry: u64) -> u64 {
//!         self.word(table.get(), slot.get()).swap(entry, SeqCst)
//!     }
//!     fn compare_exchange(&self, table: Pfn, slot: Index, current: u64, new: u64) -> Result<u64, u64> {
//!         self.word(table.get(), slot.get()).compare_exchange(current, new, SeqCst, SeqCst)
//!     }
//! }
//! impl TableAllocator for Machine {
//!     fn allocate_table(&self, _: TablePlace) -> Result<Pfn, OutOfTables> {
//!         let next = self.next_table.fetch_add(1, SeqCst);
//!         if next < 64 { Ok(Pfn::new(next)) } else { Err(OutOfTables) }
//!     }
//!     fn free_table(&self, _: Pfn) {}
//! }
//! impl GuestMemory for Machine {
//!     fn load_gpte(&self, f: BackedFrame, offset: u16, _: GpteWidth) -> Result<u64, GuestMemoryError> {
//!         Ok(self.word(f.token.0 + f.frame, usize::from(offset) / 8).load(SeqCst))
//!     }
//!     fn compare_exchange_gpte(
//!         &self, f: BackedFrame, offset: u16, _: GpteWidth, current: u64, new: u64,
//!     ) -> Result<Result<u64, u64>, GuestMemoryError> {
//!         Ok(self.word(f.token.0 + f.frame, usize::from(offset) / 8).compare_exchange(current, new, SeqCst, SeqCst))
//!     }
//! }
//! impl FrameLookup for Machine {
//!     fn look_up(&self, f: BackedFrame, _: Need) -> Result<HostFrame, LookupError> {
//!         Ok(HostFrame { pfn: Pfn::new(f.token.0 + f.frame), largest: Level::L1, writable: true })
//!     }
//! }
//! impl Processors for Machine {
//!     type Gate = Fenced;
//!     fn kick(&self, _: VcpuId) {}
//! }
//!
//! let words = (0..64 * 512).map(|_| AtomicU64::new(0)).collect();
//! let cpu = CpuModel { phys_bits: PhysBits::new(40).unwrap(), features: CpuFeatures::empty() };
//! let mmu = Mmu::new(Machine { words, next_table: AtomicU64::new(32) }, Config::new(Engine::Shadow, 1, 32, cpu))?;
//! mmu.add_slot(&SlotConfig {
//!     space: AddressSpace::Normal,
//!     base: Gfn::new(0),
//!     frames: 32,
//!     token: MemoryToken(0), // guest frame 0 is host frame 0 here
//!     flags: SlotFlags::empty(),
//! })?;
//!
//! // The guest's tables: frames 1 to 4 map virtual page 0x5000 to guest frame 9.
//! for (frame, index, entry) in [(1, 0, 0x2003), (2, 0, 0x3003), (3, 0, 0x4003), (4, 5, 0x9003)] {
//!     mmu.host().word(frame, index).store(entry, SeqCst);
//! }
//! let vcpu = mmu.vcpu(VcpuId(0))?;
//! let mut state = PagingState::reset(cpu);
//! state.cr0 |= Cr0::PG | Cr0::PE | Cr0::WP;
//! state.cr4 |= Cr4::PAE;
//! state.efer |= Efer::LME | Efer::LMA;
//! state.cr3 = Cr3::new(0x1000);
//! vcpu.set_paging(&state, AddressSpace::Normal)?;
//!
//! let entry = vcpu.enter()?; // load entry.root into CR3, run the guest; it faults:
//! vcpu.exited();
//! assert_eq!(vcpu.handle_fault(Gva::new(0x5008), Access::WRITE)?, FaultOutcome::Resume);
//! assert!(matches!(vcpu.handle_fault(Gva::new(0x6000), Access::READ)?, FaultOutcome::InjectPageFault { .. }));
//!
//! // What the processor walks now: four levels down from the root, to the frame behind guest frame 9.
//! let mut table = entry.root.get() >> 12;
//! for index in [0, 0, 0, 5] {
//!     table = (mmu.host().word(table, index).load(SeqCst) & 0x000f_ffff_ffff_f000) >> 12;
//! }
//! assert_eq!(table, 9);
//! # Ok::<(), vmmu::Error>(())
//! ```
//!
//! # Features
//!
//! None is on by default. `count` counts the locks, atomic updates and barriers of each thread, for measurements (`vmmu-parallel`); it needs the standard
//! library, and makes faults several times slower.
//!
//! # Known gaps
//!
//! - The shadow engine serves guests in long mode with 4 or 5 levels, and guests without paging; 32-bit and PAE paging are refused.
//! - Memory types (PAT, PCD, PWT of the guest's entries) are not carried over to shadow entries.
//! - Global pages are not kept apart: every flush flushes everything.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(all(test, loom))]
extern crate std;

#[macro_use]
mod mutant;

pub mod addr;
mod age;
mod audit;
mod clean;
mod config;
#[cfg(feature = "count")]
pub mod count;
mod debt;
mod derive;
mod direct;
mod dirty;
mod edge;
mod error;
mod fill;
mod frames;
pub mod gate;
pub mod host;
mod invalidate;
#[cfg(all(test, loom))]
mod loom_tests;
mod marking;
mod memory;
mod mmu;
mod outcome;
mod page;
pub mod paging;
mod pool;
mod prefetch;
mod presence;
mod protect;
mod prune;
mod region;
mod report;
mod retire;
mod rmap;
mod role;
mod root;
mod sections;
mod shadow;
mod slots;
mod slotset;
mod spte;
mod stats;
mod sync;
#[cfg(test)]
#[cfg_attr(loom, expect(dead_code, reason = "its users are not built under loom"))]
mod testhost;
mod tree;
mod vcpu;
pub mod walk;
mod writing;
mod zap;

pub use audit::{AuditFailure, AuditFinding, AuditReport, Place, Strictness};
pub use config::{Config, Engine, ForeignWrites};
pub use error::Error;
pub use invalidate::Invalidation;
pub use mmu::Mmu;
pub use outcome::{EmulateReason, Entry, FaultOutcome, Unprotected};
pub use slots::{AddressSpace, MAX_SLOTS, SlotConfig, SlotFlags, SlotId};
pub use spte::EntryFormat;
pub use stats::{EVENTS, Event, Observer, Stats};
pub use vcpu::{TlbFlush, Vcpu};
pub use writing::Writing;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
