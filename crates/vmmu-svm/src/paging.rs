//! Between the guest's processor and the tables that the real one walks.
//!
//! Provisional: nested paging only, tables of 2 MiB pages made by hand at the start.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use vmmu::addr::{Gpa, Gva, Hpa, Index, Level, Pfn};
use vmmu::paging::{Efer, PagingState};
use vmmu::walk::PageFaultCode;

use crate::arch::physical::GuestRam;
use crate::config::Configuration;
use crate::tables::TableFrames;
use crate::vmcb::Vmcb;

/// Present, writable, user, accessed, dirty.
const RIGHTS: u64 = 0x67;
const LARGE: u64 = 0x80;
const DEVICES: [u64; 3] = [0xfec0_0000, 0xfed0_0000, 0xfee0_0000];

/// What the guest gets after a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Answer {
    /// It goes on.
    Resume,
    /// It gets this page fault.
    Fault(PageFaultCode),
    /// It touched what isn't there.
    Refused(String),
}

/// The memory-management unit.
#[derive(Debug)]
pub struct Memory {
    frames: TableFrames,
    root: Pfn,
}

impl Memory {
    /// Makes the unit.
    pub fn new(_: &Configuration, ram: &Arc<GuestRam>, frames: TableFrames) -> Self {
        let root = frames.allocate().expect("the first table");
        let memory = Self { frames, root };
        for piece in ram.pieces() {
            for offset in (0..piece.bytes).step_by(2 << 20) {
                memory.map(piece.gpa.wrapping_add(offset), piece.hpa.wrapping_add(offset), Level::L2);
            }
        }
        for device in DEVICES {
            memory.map(Gpa::new(device), Hpa::new(device), Level::L1);
        }
        memory
    }
    fn map(&self, gpa: Gpa, hpa: Hpa, leaf: Level) {
        let (mut table, mut level) = (self.root, Level::L4);
        loop {
            let slot: Index = level.index(gpa.get());
            let word = self.frames.frames.word(table, slot);
            let order = core::sync::atomic::Ordering::Relaxed;
            if level == leaf {
                word.store(hpa.get() | RIGHTS | if leaf == Level::L1 { 0 } else { LARGE }, order);
                return;
            }
            if word.load(order) == 0 {
                word.store(self.frames.allocate().expect("a table").address().get() | RIGHTS, order);
            }
            table = Pfn::containing(Hpa::new(word.load(order) & 0x000f_ffff_ffff_f000));
            level = level.below().expect("the leaf's level comes first");
        }
    }
    /// Puts the guest's paging registers into force.
    ///
    /// # Errors
    /// What can't be served.
    pub fn apply(&mut self, state: &PagingState, vmcb: &mut Vmcb) -> Result<(), String> {
        vmcb.cr0 = state.cr0.bits();
        vmcb.cr3 = state.cr3.get();
        vmcb.cr4 = state.cr4.bits();
        vmcb.efer = efer_in_force(state).bits();
        vmcb.nested = 1;
        vmcb.nested_cr3 = self.root.address().get();
        Ok(())
    }
    /// Answers a page fault.
    pub fn page_fault(&mut self, _: Gva, _: PageFaultCode) -> Answer {
        Answer::Refused(String::from("shadow paging"))
    }
    /// Answers a nested page fault.
    pub fn nested_fault(&mut self, gpa: Gpa, code: u64) -> Answer {
        Answer::Refused(format!("the guest touched {gpa}, where nothing is (code {code:#x})"))
    }
    /// Drops translations of a page.
    pub fn invalidate(&mut self, _: Gva) {}
    /// Returns the counters.
    pub fn counters(&self) -> alloc::vec::Vec<(&'static str, u64)> {
        alloc::vec::Vec::new()
    }
    /// Returns what takes how many bytes.
    pub fn bytes(&self) -> alloc::vec::Vec<(&'static str, u64)> {
        alloc::vec![("tables", self.frames.in_use() * 4096)]
    }
}

/// Returns EFER as the control block has it: SVME set, LME hidden until paging is on.
///
/// The guest never notices, since its reads of EFER exit. LME without paging means nothing to the guest's execution, but QEMU's TCG
/// (7.2) fails to restore the host's CR0 at an exit from a guest that has EFER.LME set and CR4.PAE clear.
fn efer_in_force(state: &PagingState) -> Efer {
    let hidden = if state.efer.contains(Efer::LMA) { Efer::empty() } else { Efer::LME };
    (state.efer | Efer::SVME) - hidden
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

impl Memory {
    /// Walks the tables that the processor walks: those of a guest virtual address under shadow paging, of a guest physical one
    /// under nested paging.
    pub fn walk(&self, _: Gva, gpa: Option<Gpa>) -> alloc::vec::Vec<Step> {
        let mut steps = alloc::vec::Vec::new();
        let Some(address) = gpa else { return steps };
        let (mut table, mut level) = (self.root, Some(Level::L4));
        while let Some(at) = level {
            let entry = self.frames.frames.word(table, at.index(address.get())).load(core::sync::atomic::Ordering::Relaxed);
            steps.push(Step { level: at, table, entry });
            if entry & 1 == 0 || entry & LARGE != 0 {
                break;
            }
            table = Pfn::containing(Hpa::new(entry & 0x000f_ffff_ffff_f000));
            level = at.below();
        }
        steps
    }
}
