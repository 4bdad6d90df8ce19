//! Builds tables by hand, word by word, for the tests of this crate.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use vmmu_cpu::{
    Asid, Cpu, Flush, Format, Hpa, Level, Model, PageSize, PhysMemory, Policy, Registers, Va, World,
};

/// Present, writable, user.
pub(crate) const RWU: u64 = 7;
/// Accessed.
pub(crate) const A: u64 = 1 << 5;
/// Dirty.
pub(crate) const D: u64 = 1 << 6;
/// Large page.
pub(crate) const PS: u64 = 1 << 7;
/// Global.
pub(crate) const G: u64 = 1 << 8;
/// No execution.
pub(crate) const NX: u64 = 1 << 63;

/// Tables under construction. Addresses are of the space that the tables themselves live in;
/// `offset` leads from there to host-physical memory.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) mem: Arc<PhysMemory>,
    pub(crate) format: Format,
    pub(crate) root: u64,
    pub(crate) offset: u64,
    next: u64,
}

impl Tables {
    /// Begins tables whose root is at `root`, with further ones in the frames after it.
    pub(crate) fn new(mem: &Arc<PhysMemory>, format: Format, root: u64, offset: u64) -> Self {
        Self {
            mem: mem.clone(),
            format,
            root,
            offset,
            next: root + 0x1000,
        }
    }

    fn link(&self, level: Level) -> u64 {
        if self.format == Format::Pae && level == Level::L3 {
            1
        } else {
            7
        }
    }

    fn load(&self, at: Hpa) -> u64 {
        if self.format.entry_bytes() == 4 {
            u64::from(self.mem.load32(at))
        } else {
            self.mem.load(at)
        }
    }

    /// Stores a raw entry.
    pub(crate) fn store(&self, at: Hpa, entry: u64) {
        if self.format.entry_bytes() == 4 {
            self.mem.store32(at, entry as u32);
        } else {
            self.mem.store(at, entry);
        }
    }

    /// Returns where the entry of `level` for `address` is, creating the tables above.
    pub(crate) fn slot(&mut self, address: u64, level: Level) -> Hpa {
        let mut table = self.root;
        let mut at = self.format.top();
        loop {
            let slot = Hpa::new(table + self.offset + self.format.entry_offset(at, address));
            if at == level {
                return slot;
            }
            if self.load(slot) == 0 {
                self.store(slot, self.next | self.link(at));
                self.next += 0x1000;
            }
            table = self.load(slot) & 0x000f_ffff_ffff_f000;
            at = at.below().expect("level is not below 1");
        }
    }

    /// Returns the entry of `level` for `address`.
    pub(crate) fn entry(&mut self, address: u64, level: Level) -> u64 {
        let slot = self.slot(address, level);
        self.load(slot)
    }

    /// Maps a page, `flags` being all of the leaf but address and page-size bit.
    pub(crate) fn map(&mut self, address: u64, target: u64, size: PageSize, flags: u64) {
        let level = level_of(size);
        let large = if level == Level::L1 { 0 } else { PS };
        let slot = self.slot(address, level);
        self.store(slot, target | flags | large);
    }
}

/// Returns the level of the leaves of `size`.
pub(crate) fn level_of(size: PageSize) -> Level {
    match size {
        PageSize::Size4K => Level::L1,
        PageSize::Size2M | PageSize::Size4M => Level::L2,
        PageSize::Size1G => Level::L3,
    }
}

/// Returns the registers for a format at `root`.
pub(crate) fn registers(format: Format, root: u64) -> Registers {
    let root = Hpa::new(root);
    match format {
        Format::Bits32 => Registers::bits32(root),
        Format::Pae => Registers::pae(root),
        Format::Long5 => Registers::long5(root),
        _ => Registers::long4(root),
    }
}

/// A processor running on tables without a second dimension.
pub(crate) fn flat(mem: &Arc<PhysMemory>, regs: Registers, policy: Policy) -> Cpu {
    let mut cpu = Cpu::new(mem.clone(), Model::STRICT, policy, 7);
    let world = World {
        regs,
        asid: Asid::new(1),
        nested: None,
    };
    cpu.enter(&world, Flush::All).expect("no bad pdpte");
    cpu
}

/// Memory, 4-level tables with one user page at `VA`, and a processor that keeps everything.
pub(crate) fn simple() -> (Arc<PhysMemory>, Tables, Cpu) {
    let mem = Arc::new(PhysMemory::new(1 << 16));
    let mut tables = Tables::new(&mem, Format::Long4, 0x10_0000, 0);
    tables.map(VA.get(), PAGE, PageSize::Size4K, RWU);
    let cpu = flat(&mem, registers(Format::Long4, 0x10_0000), Policy::KEEP);
    (mem, tables, cpu)
}

/// The page that [`simple`] maps.
pub(crate) const VA: Va = Va::new(0x4040_3000);
/// Where [`simple`] maps it.
pub(crate) const PAGE: u64 = 0x20_0000;
