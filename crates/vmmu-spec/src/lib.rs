//! x86 address translation as one pure function, written from the processor manuals.
//!
//! This crate is a judge. It says what a processor does with an address, given the control state and
//! the bytes of the paging structures, and it shares no code with the library that it judges. It
//! reads memory through a trait, writes nothing, keeps nothing, and every rule names its section of
//! the manual. Where the manuals leave a choice it says which results are permitted.
//!
//! | question | answered by |
//! |---|---|
//! | Where does this access go, or which fault does it raise? | [`translate`] |
//! | Which accesses does this translation permit? | [`Rights::permitted`] |
//! | Which accessed and dirty bits are set? | [`Translation::updates`], [`PageFault::permitted_updates`] |
//! | What may an access show on a processor with TLBs and paging-structure caches? | [`allowed`], [`is_allowed`] with a [`WriteLog`] |
//! | The same walk, an entry at a time | [`Walk`] |
//! | Nested tables, AMD's format, alone and under a guest's | [`translate_nested`], [`translate_two_dimensional`] |
//! | Nested tables, Intel's format | [`translate_ept`] |
//!
//! # Example
//!
//! ```
//! use vmmu_spec::{
//!     translate, Access, Controls, Cr0, Cr3, Cr4, Efer, Features, Kind, Linear, PhysBits,
//!     Physical, Privilege, Processor, Width,
//! };
//!
//! let processor = Processor::new(PhysBits::new(40).unwrap(), Features::GIGABYTE_PAGES);
//! let (cr0, cr4) = (Cr0::PE | Cr0::PG | Cr0::WP, Cr4::PAE | Cr4::SMEP);
//! let efer = Efer::LME | Efer::LMA | Efer::NXE;
//! let controls = Controls::new(processor, cr0, cr4, efer)?;
//!
//! // PML4E -> PDPTE, which maps a 1 GiB user page, read-only.
//! let memory = |at: Physical, _: Width| match at.get() {
//!     0x1000 => Some(0x2000 | 0b111),
//!     0x2000 => Some(0x4000_0000 | 1 << 7 | 0b101),
//!     _ => Some(0),
//! };
//! let walk = |kind, privilege| {
//!     let access = Access::new(kind, privilege);
//!     translate(&controls, Cr3::new(0x1000), Linear::new(0x123), access, &memory)
//! };
//!
//! let read = walk(Kind::Read, Privilege::User);
//! assert_eq!(read.translation().unwrap().mapping().physical, Physical::new(0x4000_0123));
//! let write = walk(Kind::Write, Privilege::User);
//! assert_eq!(write.page_fault().unwrap().code().bits(), 0b0111);
//! let fetch = walk(Kind::Fetch, Privilege::Supervisor);
//! assert_eq!(fetch.page_fault().unwrap().code().bits(), 0b10001, "SMEP");
//! # Ok::<(), vmmu_spec::ControlsError>(())
//! ```
//!
//! # Manuals
//!
//! SDM is Intel's Software Developer's Manual, volume 3 unless it says otherwise, by the section numbers of the
//! editions in which paging is chapter 4 (later ones moved it to chapter 5, and VMX by one chapter too).
//! APM is AMD's Architecture Programmer's Manual, volume 2.
//! Where the two differ a [`Features`] bit or an enum decides: reserved bit 8 of upper entries, and where
//! PDPTEs come from ([`Pdptes`]).
//!
//! # Invariants
//!
//! 1. Every function is pure: the same arguments give the same result. Memory is only read.
//! 2. No input makes a function panic. Table contents, CR3 and addresses are arbitrary.
//! 3. The crate depends on no other crate of this project.
//! 4. The modules form layers: `address`, `controls`, `access` < `format` < `rights` < `walk` < `outcome`
//!    < `translate` < `allowed`, `npt`. `ept` borrows types, no rules.
//!
//! # Known gaps
//!
//! - Not described: supervisor protection keys (CR4.PKS), shadow stacks, linear-address masking (LAM, UAI), HLAT,
//!   SGX, memory types, memory encryption bits, AMD's EFER.LMSLE and guest-mode execute trap.
//! - PAT is taken to exist, so bit 12 of a large page and bit 7 of a PTE are never reserved (SDM section 4.3).
//! - PAE paging: PDPTE registers with reserved bits, which MOV to CR3 refuses, are reported as a reserved-bit #PF.
//! - The error code's I/D flag follows Intel's text (SMEP suffices); AMD's text mentions NXE only.
//! - Out-of-range guest-physical addresses are an outcome of their own in both nested formats: the manuals are
//!   not of one mind about what is reported.
//! - Nested: hosts in long mode only; EPT without mode-based execution, paging-write, sub-page permissions and
//!   page-modification logs. Caches of nested translations have no criterion here yet.
//! - [`allowed`] takes the larger set where the manuals are silent: a write through a stale entry with D = 0
//!   counts as permitted. INVLPG is an event of one page for it, though it drops paging-structure caches of all.
//! - One access is one address: an access that crosses a page is two, and an instruction's restart is not described.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod address;
mod allowed;
mod controls;
mod ept;
mod format;
mod history;
mod memory;
mod npt;
mod outcome;
mod rights;
mod translate;
mod walk;

pub use access::{Access, AccessSet, Kind, Privilege};
pub use address::{GuestPhysical, Linear, PhysBits, Physical};
pub use allowed::{Window, allowed, is_allowed};
pub use controls::{
    Controls, ControlsError, Cr0, Cr3, Cr4, Efer, Features, Mode, Pdptes, Pkru, Processor,
    ProtectionKey,
};
pub use ept::{
    EptAccess, EptControls, EptFeatures, EptOutcome, EptQualification, EptRights, EptTranslation,
    Eptp, translate_ept,
};
pub use format::{Level, PageSize};
pub use history::{Candidate, History, Time, WriteLog};
pub use memory::{Memory, Width};
pub use npt::{
    Composed, NestedAccess, NestedControls, NestedErrorCode, NestedFault, NestedModeError,
    NestedOutcome, NestedTranslation, TwoDimensional, TwoDimensionalOutcome, translate_nested,
    translate_two_dimensional,
};
pub use outcome::{
    Cause, ErrorCode, Observation, Outcome, PageFault, Translation, Unbacked, Update,
};
pub use rights::{Denial, Rights, RightsFlags};
pub use translate::{error_code, translate};
pub use walk::{Mapping, Path, Progress, Scope, Slot, Start, Step, Stop, Walk};
