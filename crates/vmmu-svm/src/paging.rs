//! Between the guest's processor and the library: which registers are in force, what a fault comes to.
//!
//! | the guest's | under shadow paging | under nested paging |
//! |---|---|---|
//! | CR0 | PG and WP are always set | as it is |
//! | CR3 | the library's root | as it is; nCR3 is the library's root |
//! | CR4 | PAE is always set; without paging nothing that belongs to it | as it is |
//! | EFER | SVME; with paging also NXE, without no LME | SVME; without paging no LME |
//!
//! One [`Unit`] serves all processors; each has a [`Memory`] of its own, which speaks for its vCPU.
//!
//! Invariants:
//! 1. The control block's CR3, or nCR3, is what [`Memory::enter`] took from the library for this very entry.
//! 2. Without paging the shadow root is in PAE format, or the guest would run on raw physical memory.

mod tracked;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu::addr::{Gfn, Gpa, Gva, Hpa, Index, Level, Pfn};
use vmmu::host::{TableMemory, VcpuId};
use vmmu::paging::{Cr0, Cr3, Cr4, Efer, GuestFormat, PagingState};
use vmmu::walk::{Access, AccessKind, PageFaultCode, Privilege};
use vmmu::{
    AddressSpace, Config, EmulateReason, Engine, Error, FaultOutcome, ForeignWrites, Mmu,
    SlotConfig, SlotFlags, Strictness, TlbFlush, Vcpu,
};

use crate::arch::apic;
use crate::arch::guest_ram::GuestRam;
use crate::config::{Configuration, Paging};
use crate::cpuid::Shape;
use crate::cpus::Cpus;
use crate::event::Exception;
use crate::host::SvmHost;
use crate::tables::TableFrames;
use crate::vmcb::Vmcb;

/// Pages of device memory that pass through: I/O APIC, HPET. The local APIC's does too, for reading; for writing with one processor only.
const DEVICES: [Gpa; 2] = [Gpa::new(0xfec0_0000), Gpa::new(0xfed0_0000)];
/// TLB_CONTROL: flush everything as the guest is entered.
const FLUSH_ALL: u32 = 1;

/// What the guest gets after a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Answer {
    /// It goes on.
    Resume,
    /// It gets this exception.
    Raise(Exception),
    /// Its write to a guest table at these addresses is emulated, or [`Memory::unprotect`] makes way for it.
    WriteTable(Gva, Gpa),
    /// Its write, to the page at these addresses, is emulated, or runs alone with CR0.WP off.
    WriteAlone(Gva, Gpa),
    /// Its write to the local APIC at this address is carried out.
    WriteApic(Gpa),
    /// Its access to this address, where nothing is, is emulated.
    Absent(Gpa),
    /// It did what can't be served.
    Refused(String),
}

/// The memory-management unit of all processors.
#[derive(Debug)]
pub struct Unit {
    mmu: Mmu<SvmHost>,
    paging: Paging,
    /// How many instructions were emulated.
    emulated: AtomicU64,
}

/// One processor's part of it.
#[derive(Debug)]
pub struct Memory {
    unit: &'static Unit,
    vcpu: Vcpu<'static, SvmHost>,
    /// How often in a row a write to a guest table came back.
    again: u32,
}

impl Unit {
    /// Makes the unit, with guest RAM and devices in its slots. It is there for good.
    ///
    /// # Errors
    /// The library's.
    pub fn new(
        configuration: &Configuration,
        shape: &Shape,
        ram: &Arc<GuestRam>,
        tables: TableFrames,
        cpus: Arc<Cpus>,
    ) -> Result<&'static Self, Error> {
        let paging = configuration.paging;
        let engine = match paging {
            Paging::Shadow => Engine::Shadow,
            Paging::Nested => Engine::Npt,
        };
        let frames = ram.pieces().iter().map(|piece| piece.bytes / 4096).sum();
        let vcpus = u16::from(configuration.cpus.get());
        let mut config = Config::new(engine, vcpus, frames, shape.model());
        // A table that is let go is written at full speed until the next flush; the emulator takes what can't be.
        config.unsync_level = Level::L4;
        if vcpus == 1 {
            // What is written in the guest's name, or by the guest unseen, is reported before the one processor goes on.
            config.foreign_writes = ForeignWrites::ReportedFirst;
        }
        if let Some(limit) = configuration.max_pages {
            config.max_pages = limit;
        }
        // Reclaim has to begin before frames run out; the heap, as large as the frames, holds the bookkeeping.
        let affordable = tables.capacity() / 5 * 4;
        config.max_pages = config
            .max_pages
            .min(affordable.min(u64::from(u32::MAX)) as u32);
        let mmu = Mmu::new(SvmHost::new(Arc::clone(ram), tables, cpus), config)?;
        let slot = |base: Gpa, bytes: u64, token, flags| SlotConfig {
            space: AddressSpace::Normal,
            base: Gfn::containing(base),
            frames: bytes / 4096,
            token,
            flags,
        };
        let device = |at: Gpa, flags| {
            let token = SvmHost::device_token(Pfn::containing(Hpa::new(at.get())));
            slot(at, 4096, token, flags)
        };
        for piece in ram.pieces() {
            mmu.add_slot(&slot(
                piece.gpa,
                piece.bytes,
                SvmHost::ram_token(Pfn::containing(piece.hpa)),
                SlotFlags::empty(),
            ))?;
        }
        for at in DEVICES {
            mmu.add_slot(&device(at, SlotFlags::empty()))?;
        }
        let of_the_apic = if vcpus == 1 {
            SlotFlags::empty()
        } else {
            SlotFlags::READ_ONLY
        };
        mmu.add_slot(&device(apic::BASE, of_the_apic))?;
        Ok(Box::leak(Box::new(Self {
            mmu,
            paging,
            emulated: AtomicU64::new(0),
        })))
    }

    /// Lets the auditor check the library's whole structure.
    ///
    /// # Panics
    /// If a rule is broken: that is a bug of the library.
    #[cold]
    pub fn audit(&self) {
        if let Err(failure) = self.mmu.audit(Strictness::Exact) {
            panic!("the auditor found broken rules: {failure}");
        }
    }

    /// Returns the library's counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let emulated = self.emulated.load(Ordering::Relaxed);
        self.mmu
            .stats()
            .iter()
            .map(|(event, count)| (event.name(), count))
            .chain([("instructions_emulated", emulated)])
            .collect()
    }

    /// Returns what takes how many bytes.
    pub fn bytes(&self) -> Vec<(&'static str, u64)> {
        let stats = self.mmu.stats();
        let tables = self.mmu.host().tables.in_use() * 4096;
        Vec::from([
            ("tables", tables),
            ("pages", stats.page_bytes),
            ("frames", stats.frame_bytes),
            ("shadow_pages", stats.pages),
        ])
    }
}

impl Memory {
    /// Makes the part of the processor with this number.
    ///
    /// # Panics
    /// If the unit was made with fewer: that is a bug of the hypervisor.
    pub fn new(unit: &'static Unit, number: VcpuId) -> Self {
        let vcpu = unit.mmu.vcpu(number);
        Self {
            unit,
            vcpu: vcpu.expect("the unit is made with all processors"),
            again: 0,
        }
    }

    /// Returns the unit.
    pub const fn unit(&self) -> &'static Unit {
        self.unit
    }

    /// Puts the guest's paging registers into force.
    ///
    /// # Errors
    /// What can't be served.
    pub fn apply(&mut self, state: &PagingState, vmcb: &mut Vmcb) -> Result<(), String> {
        match self.unit.paging {
            Paging::Nested => self.apply_nested(state, vmcb),
            Paging::Shadow => self.apply_shadow(state, vmcb),
        }
    }

    fn apply_nested(&self, state: &PagingState, vmcb: &mut Vmcb) -> Result<(), String> {
        (vmcb.cr0, vmcb.cr3) = (state.cr0.bits(), state.cr3.get());
        (vmcb.cr4, vmcb.efer) = (state.cr4.bits(), nested_efer(state).bits());
        vmcb.nested = 1;
        // The library knows nothing of the guest's own tables here; but the write may be the guest's way to flush its TLB.
        let flushed = self.vcpu.invalidate(TlbFlush::All);
        flushed.map_err(|error| error.to_string())
    }

    fn apply_shadow(&self, state: &PagingState, vmcb: &mut Vmcb) -> Result<(), String> {
        vmcb.cr0 = (state.cr0 | Cr0::PG | Cr0::WP).bits();
        (vmcb.cr4, vmcb.efer) = (shadow_cr4(state).bits(), shadow_efer(state).bits());
        let set = self.vcpu.set_paging(state, AddressSpace::Normal);
        set.map_err(|error| match error {
            Error::UnsupportedFormat { format } => format!(
                "the guest wants {} paging, which shadow paging doesn't serve yet",
                name(format)
            ),
            error => error.to_string(),
        })
    }

    /// Serves MOV to CR3 under shadow paging.
    ///
    /// # Errors
    /// What the library can't serve.
    #[inline]
    pub fn load_cr3(&mut self, cr3: Cr3) -> Result<(), String> {
        self.vcpu.load_cr3(cr3).map_err(|error| error.to_string())
    }

    /// Serves INVLPG.
    ///
    /// # Errors
    /// What the library can't serve.
    #[inline]
    pub fn invalidate(&mut self, gva: Gva) -> Result<(), String> {
        self.vcpu
            .invalidate(TlbFlush::Address(gva))
            .map_err(|error| error.to_string())
    }

    /// Makes the control block ready for an entry.
    ///
    /// # Errors
    /// What the library can't serve.
    #[inline]
    pub fn enter(&mut self, vmcb: &mut Vmcb) -> Result<(), String> {
        let entry = self.vcpu.enter().map_err(|error| error.to_string())?;
        match self.unit.paging {
            Paging::Shadow => vmcb.cr3 = entry.root.get(),
            Paging::Nested => vmcb.nested_cr3 = entry.root.get(),
        }
        vmcb.tlb_control = if entry.flush { FLUSH_ALL } else { 0 };
        Ok(())
    }

    /// Notes that the guest has exited.
    #[inline]
    pub fn exited(&mut self) {
        self.vcpu.exited();
    }

    /// Answers a page fault under shadow paging.
    #[inline]
    pub fn page_fault(&mut self, gva: Gva, code: PageFaultCode, privilege: Privilege) -> Answer {
        let access = Access::from_page_fault(code, privilege);
        let outcome = self.vcpu.handle_fault(gva, access);
        if outcome == Ok(FaultOutcome::Resume) {
            self.again = 0;
            return Answer::Resume;
        }
        self.carry_out(outcome, gva)
    }

    /// Answers a nested page fault.
    pub fn nested_fault(&mut self, gpa: Gpa, code: PageFaultCode) -> Answer {
        let kind = if code.contains(PageFaultCode::FETCH) {
            AccessKind::Fetch
        } else if code.contains(PageFaultCode::WRITE) {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        let outcome = self.vcpu.handle_nested_fault(gpa, kind);
        self.carry_out(outcome, Gva::new(0))
    }

    fn carry_out(&mut self, outcome: Result<FaultOutcome, Error>, gva: Gva) -> Answer {
        match outcome {
            Ok(FaultOutcome::Resume | FaultOutcome::Retry) => Answer::Resume,
            Ok(FaultOutcome::InjectPageFault { gva, code }) => {
                Answer::Raise(Exception::Page(gva, code))
            }
            Ok(FaultOutcome::InjectGeneralProtection) => Answer::Raise(Exception::Protection),
            Ok(FaultOutcome::EmulateWrite {
                gpa,
                reason: EmulateReason::GuestTable,
            }) => Answer::WriteTable(gva, gpa),
            Ok(FaultOutcome::EmulateWrite {
                gpa,
                reason: EmulateReason::Smap,
            }) => Answer::WriteAlone(gva, gpa),
            Ok(FaultOutcome::EmulateMmio {
                gpa,
                reason: EmulateReason::ReadOnlyMemory,
            }) => Answer::WriteApic(gpa),
            Ok(FaultOutcome::EmulateMmio { gpa, .. }) => Answer::Absent(gpa),
            Ok(FaultOutcome::TableMissing { gpa }) => Answer::Refused(format!(
                "a guest page table lies at {gpa}, where nothing is"
            )),
            Ok(outcome) => Answer::Refused(format!("no instruction emulator for {outcome:?}")),
            Err(error) => Answer::Refused(error.to_string()),
        }
    }

    /// Maps a page for reading.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn map_readable(&mut self, gva: Gva, privilege: Privilege) -> Result<(), String> {
        match self
            .vcpu
            .handle_fault(gva, Access::new(AccessKind::Read, privilege))
        {
            Ok(FaultOutcome::Resume | FaultOutcome::Retry) => Ok(()),
            Ok(outcome) => Err(format!(
                "the page at {gva} can be written but not read: {outcome:?}"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reports that the guest may have written anywhere in a page, unseen.
    pub fn wrote(&mut self, page: Gpa) {
        self.unit
            .mmu
            .guest_wrote(Gfn::containing(page).address(), 4096);
    }

    /// Tells whether a device lies there, which passes through.
    pub fn is_device(&self, gpa: Gpa) -> bool {
        let page = Gfn::containing(gpa).address();
        page == apic::BASE || DEVICES.contains(&page)
    }

    /// Walks the tables that the processor walks: by the guest virtual address under shadow paging, by the guest physical one under
    /// nested paging. What a refused control block names may be no table.
    pub fn walk(&self, vmcb: &Vmcb, gva: Gva, gpa: Option<Gpa>) -> Vec<Step> {
        let long = vmcb.efer & Efer::LMA.bits() != 0;
        let (root, address, top) = match self.unit.paging {
            Paging::Shadow => (
                vmcb.cr3,
                gva.get(),
                if long { Level::L4 } else { Level::L3 },
            ),
            Paging::Nested => match gpa {
                Some(gpa) => (vmcb.nested_cr3, gpa.get(), Level::L4),
                None => return Vec::new(),
            },
        };
        let (mut table, mut level) = (Pfn::containing(Hpa::new(root)), Some(top));
        let mut steps = Vec::new();
        let host = self.unit.mmu.host();
        while let Some(at) = level.filter(|_| host.tables.frames.range().contains(&table)) {
            let slot: Index = at.index(address);
            let entry = host.load(table, slot);
            steps.push(Step {
                level: at,
                table,
                entry,
            });
            if entry & 1 == 0 || entry & 0x80 != 0 {
                break;
            }
            table = Pfn::containing(Hpa::new(entry & 0x000f_ffff_ffff_f000));
            level = at.below();
        }
        steps
    }
}

/// A step of the processor's walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The table's level.
    pub level: Level,
    /// The table.
    pub table: Pfn,
    /// The entry.
    pub entry: u64,
}

/// Returns EFER under nested paging: LME is hidden until paging is on.
///
/// The guest never notices, since its reads of EFER exit. LME without paging means nothing to the guest's execution, but QEMU's TCG
/// (7.2) fails to restore the host's CR0 at an exit from a guest that has EFER.LME set and CR4.PAE clear.
fn nested_efer(state: &PagingState) -> Efer {
    let hidden = if state.efer.contains(Efer::LMA) {
        Efer::empty()
    } else {
        Efer::LME
    };
    (state.efer | Efer::SVME) - hidden
}

/// Returns EFER under shadow paging.
fn shadow_efer(state: &PagingState) -> Efer {
    if state.efer.contains(Efer::LMA) {
        // The tables in force may forbid execution where the guest's can't.
        state.efer | Efer::SVME | Efer::NXE
    } else {
        (state.efer | Efer::SVME) - (Efer::LME | Efer::NXE)
    }
}

/// Returns CR4 under shadow paging.
fn shadow_cr4(state: &PagingState) -> Cr4 {
    let paged = state.cr0.contains(Cr0::PG);
    let foreign = if paged {
        Cr4::empty()
    } else {
        Cr4::SMEP | Cr4::SMAP | Cr4::PSE
    };
    (state.cr4 | Cr4::PAE) - (foreign | Cr4::PGE)
}

/// Returns what a format is called.
const fn name(format: GuestFormat) -> &'static str {
    match format {
        GuestFormat::Off => "no",
        GuestFormat::Bits32 => "32-bit",
        GuestFormat::Pae => "PAE",
        GuestFormat::Level4 => "4-level",
        GuestFormat::Level5 => "5-level",
    }
}

#[cfg(test)]
mod registers_in_force {
    use super::*;
    use vmmu::paging::{CpuFeatures, CpuModel, PhysBits};

    fn state(cr0: Cr0, cr4: Cr4, efer: Efer) -> PagingState {
        let cpu = CpuModel {
            phys_bits: PhysBits::MAX,
            features: CpuFeatures::empty(),
        };
        PagingState {
            cr0,
            cr4,
            efer,
            ..PagingState::reset(cpu)
        }
    }

    #[test]
    fn without_paging_the_shadow_is_a_pae_table_and_long_mode_is_hidden() {
        let state = state(Cr0::PE, Cr4::SMEP, Efer::LME | Efer::NXE);
        assert_eq!(shadow_cr4(&state), Cr4::PAE);
        assert_eq!(shadow_efer(&state), Efer::SVME);
        assert_eq!(nested_efer(&state), Efer::SVME | Efer::NXE);
    }

    #[test]
    fn with_paging_the_shadow_may_forbid_execution_and_global_pages_are_off() {
        let long = Efer::LME | Efer::LMA;
        let state = state(
            Cr0::PE | Cr0::PG,
            Cr4::PAE | Cr4::PGE | Cr4::SMAP,
            long | Efer::SCE,
        );
        assert_eq!(shadow_cr4(&state), Cr4::PAE | Cr4::SMAP);
        assert_eq!(
            shadow_efer(&state),
            long | Efer::SCE | Efer::NXE | Efer::SVME
        );
        assert_eq!(nested_efer(&state), long | Efer::SCE | Efer::SVME);
    }
}
