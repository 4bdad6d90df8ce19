//! A guest for tests: a few pages of memory behind [`GpteMemory`], and states in each format.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use crate::addr::{Gfn, Gpa, Gva};
use crate::paging::{CpuFeatures, CpuModel, Cr0, Cr3, Cr4, Efer, PagingState, PhysBits};
use crate::walk::{
    Access, CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth, PageFaultCode, Walk, WalkFailure,
    Walker,
};

/// P, R/W, U/S, A and D.
pub(super) const ALL: u64 = 0x67;
/// The root table of every test.
pub(super) const ROOT: u64 = 0x1000;
/// What a test's memory has: this much from 0 on.
pub(super) const MEMORY: u64 = 1 << 20;

/// What happened to memory during a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Read(u64),
    Store(u64, u64),
}

/// Guest memory as bytes' worth of entries, with a log.
#[derive(Default, Debug)]
pub(super) struct Memory {
    words: RefCell<BTreeMap<u64, u32>>,
    log: RefCell<Vec<Event>>,
    /// Stores are refused as in a read-only slot.
    pub(super) read_only: Cell<bool>,
    /// The next compare-exchange finds this bit changed by somebody else.
    pub(super) interfere: Cell<u64>,
    /// Frames are being taken back.
    pub(super) busy: Cell<bool>,
}

impl Memory {
    pub(super) fn put4(&self, at: u64, bits: u32) {
        self.words.borrow_mut().insert(at, bits);
    }
    pub(super) fn put(&self, at: u64, bits: u64) {
        self.put4(at, bits as u32);
        self.put4(at + 4, (bits >> 32) as u32);
    }
    pub(super) fn get(&self, at: u64, width: GpteWidth) -> u64 {
        let word = |at| u64::from(self.words.borrow().get(&at).copied().unwrap_or(0));
        match width {
            GpteWidth::Bytes4 => word(at),
            GpteWidth::Bytes8 => word(at) | word(at + 4) << 32,
        }
    }
    pub(super) fn get8(&self, at: u64) -> u64 {
        self.get(at, GpteWidth::Bytes8)
    }
    /// Returns the stores since the last call.
    pub(super) fn stores(&self) -> Vec<(u64, u64)> {
        let log = self.log.take();
        log.into_iter()
            .filter_map(|event| {
                if let Event::Store(at, bits) = event {
                    Some((at, bits))
                } else {
                    None
                }
            })
            .collect()
    }
    /// Returns how often each address was read since the last call.
    pub(super) fn reads(&self) -> Vec<u64> {
        let log = self.log.take();
        log.into_iter()
            .filter_map(|event| {
                if let Event::Read(at) = event {
                    Some(at)
                } else {
                    None
                }
            })
            .collect()
    }
    fn check(&self, at: Gpa, width: GpteWidth) -> Result<(), GpteError> {
        assert_eq!(at.get() % width.bytes(), 0, "unaligned entry");
        if self.busy.get() {
            Err(GpteError::Busy)
        } else if at.get() < MEMORY {
            Ok(())
        } else {
            Err(GpteError::Missing)
        }
    }
}

impl GpteMemory for Memory {
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        self.check(at, width)?;
        self.log.borrow_mut().push(Event::Read(at.get()));
        Ok(Gpte::new(self.get(at.get(), width)))
    }
    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        self.check(at, width)?;
        let now = self.get(at.get(), width) ^ self.interfere.take();
        if self.read_only.get() {
            return Ok(CasOutcome::ReadOnly);
        }
        if now != current.raw() {
            return Ok(CasOutcome::Lost);
        }
        match width {
            GpteWidth::Bytes4 => self.put4(
                at.get(),
                u32::try_from(new.raw()).expect("a 4-byte entry has 32 bits"),
            ),
            GpteWidth::Bytes8 => self.put(at.get(), new.raw()),
        }
        self.log
            .borrow_mut()
            .push(Event::Store(at.get(), new.raw()));
        Ok(CasOutcome::Done)
    }
}

/// A processor with everything and 40-bit physical addresses.
pub(super) fn cpu() -> CpuModel {
    CpuModel {
        phys_bits: PhysBits::new(40).expect("40 is a width"),
        features: CpuFeatures::all(),
    }
}

/// A state with paging on in 32-bit mode, PSE and WP set.
pub(super) fn bits32() -> PagingState {
    PagingState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr3: Cr3::new(ROOT),
        cr4: Cr4::PSE,
        ..PagingState::reset(cpu())
    }
}

/// A state in PAE mode with NX on.
pub(super) fn pae() -> PagingState {
    PagingState {
        cr4: Cr4::PAE,
        efer: Efer::NXE,
        ..bits32()
    }
}

/// A state in long mode with 4 levels and NX on.
pub(super) fn level4() -> PagingState {
    PagingState {
        efer: Efer::NXE | Efer::LME | Efer::LMA,
        ..pae()
    }
}

/// A state in long mode with 5 levels and NX on.
pub(super) fn level5() -> PagingState {
    PagingState {
        cr4: Cr4::PAE | Cr4::LA57,
        ..level4()
    }
}

/// Walks once with the tables of `state`.
pub(super) fn walk(
    state: PagingState,
    memory: &Memory,
    gva: u64,
    access: Access,
) -> Result<Walk, WalkFailure> {
    Walker::new(state).walk(memory, Gva::new(gva), access)
}

/// Walks and returns the frame, or panics with the failure.
pub(super) fn frame(state: PagingState, memory: &Memory, gva: u64) -> Gfn {
    walk(state, memory, gva, Access::READ)
        .expect("the address translates")
        .gfn()
}

/// Walks and returns the error code and level of the fault.
pub(super) fn fault(
    state: PagingState,
    memory: &Memory,
    gva: u64,
    access: Access,
) -> (PageFaultCode, u8) {
    match walk(state, memory, gva, access) {
        Err(WalkFailure::Fault(fault)) => (fault.code, fault.level.get()),
        other => panic!("expected a fault, got {other:?}"),
    }
}
