//! The guest: a kernel that builds page tables and uses them, after a public micro-benchmark's pattern.
//!
//! Key type: [`Guest`]. Memory: bootstrap tables in frames 1 to 3, tables from 2 MiB on, data from 16 MiB on; the first 64 MiB are mapped one to
//! one by 2 MiB pages below slot 0 of every root, and the guest edits its tables through them.

use vmmu::addr::{Gpa, Gva, Level};
use vmmu::walk::AccessKind;

use crate::host::FlatHost;
use crate::machine::{Accessed, Machine, Trouble};

/// P, R/W, U/S.
pub const FRESH: u64 = 7;
/// P, R/W, U/S, A and D.
pub const USED: u64 = 0x67;
/// P, U/S, A and D: not writable.
pub const READ_ONLY: u64 = 0x65;
/// The bootstrap root.
pub const BOOT_ROOT: u64 = 0x1000;
/// The first address of the window that is tested.
pub const BASE: u64 = 0x80_0000_0000;
/// Where data begins.
pub const DATA: u64 = 0x100_0000;
const FIRST_TABLE: u64 = 0x20_0000;
const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x11_0000;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What the guest's page-fault handler does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repair {
    /// The entry that it writes.
    pub at: u64,
    /// The entry's new value.
    pub value: u64,
    /// Whether it executes INVLPG too.
    pub invalidates: bool,
}

/// A guest in the middle of its work.
#[derive(Debug)]
pub struct Guest<'m> {
    /// The processor it runs on.
    pub machine: Machine<'m>,
    /// Where the next table comes from.
    pub pool: u64,
    /// What the page-fault handler does; without it a fault ends the benchmark.
    pub repair: Option<Repair>,
}

/// Writes the bootstrap tables.
pub fn bootstrap(host: &FlatHost) {
    let store = |at: u64, value: u64| {
        host.word(Gpa::new(at))
            .store(value, core::sync::atomic::Ordering::Relaxed);
    };
    store(BOOT_ROOT, 0x2007);
    store(0x2000, 0x3007);
    for i in 0..32 {
        store(0x3000 + i * 8, (i << 21) | 0xe3);
    }
}

impl<'m> Guest<'m> {
    /// Starts the guest.
    pub fn new(machine: Machine<'m>) -> Self {
        Self {
            machine,
            pool: FIRST_TABLE,
            repair: None,
        }
    }

    /// Writes 8 bytes.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn write(&mut self, at: u64, value: u64) -> Result<(), Trouble> {
        let gva = Gva::new(at);
        loop {
            match self.machine.access(gva, AccessKind::Write)? {
                Accessed::Done(gpa) => {
                    self.machine.poke(gpa, value);
                    return Ok(());
                }
                Accessed::Emulate(gpa) => return self.machine.emulate(gpa, value),
                Accessed::Faulted => self.handle_fault(gva)?,
            }
        }
    }

    /// Writes a page's address into it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn touch(&mut self, at: u64) -> Result<(), Trouble> {
        self.write(at, at)
    }

    /// Reads from a page, or fetches.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn read(&mut self, at: u64, kind: AccessKind) -> Result<(), Trouble> {
        let gva = Gva::new(at);
        while self.machine.access(gva, kind)? == Accessed::Faulted {
            self.handle_fault(gva)?;
        }
        Ok(())
    }

    fn handle_fault(&mut self, gva: Gva) -> Result<(), Trouble> {
        let repair = self.repair.ok_or(Trouble::Stuck(gva))?;
        self.write(repair.at, repair.value)?;
        if repair.invalidates {
            self.invlpg(gva.get())?;
        }
        Ok(())
    }

    /// Executes INVLPG.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn invlpg(&mut self, at: u64) -> Result<(), Trouble> {
        self.machine.invlpg(Gva::new(at))?;
        self.run_on()
    }

    /// Loads CR3.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn load_cr3(&mut self, root: u64) -> Result<(), Trouble> {
        self.machine.load_cr3(Gpa::new(root))?;
        self.run_on()
    }

    /// Uses code and stack, as whatever comes next does.
    fn run_on(&mut self) -> Result<(), Trouble> {
        self.read(CODE, AccessKind::Fetch)?;
        self.touch(STACK)
    }

    /// Takes a page for a table and zeroes it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn new_table(&mut self) -> Result<u64, Trouble> {
        let table = self.pool;
        self.pool += 4096;
        for slot in 0..512 {
            self.write(table + slot * 8, 0)?;
        }
        Ok(table)
    }

    /// Makes an address space with the kernel's part in it.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn new_root(&mut self) -> Result<u64, Trouble> {
        let root = self.new_table()?;
        let kernel = self.machine.peek(Gpa::new(BOOT_ROOT)) | 0x20;
        self.write(root, kernel)?;
        Ok(root)
    }

    /// Returns where the entry of `level` for an address is, making tables on the way.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn entry_of(&mut self, root: u64, at: u64, level: Level) -> Result<u64, Trouble> {
        let mut table = root;
        let mut above = Level::L4;
        loop {
            let entry = table + above.index(at).get() as u64 * 8;
            if above == level {
                return Ok(entry);
            }
            if self.machine.peek(Gpa::new(entry)) & 1 == 0 {
                let new = self.new_table()?;
                self.write(entry, new | USED)?;
            }
            table = self.machine.peek(Gpa::new(entry)) & FRAME;
            above = above.below().unwrap_or(level);
        }
    }

    /// Maps a page.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn map(&mut self, root: u64, at: u64, to: u64, flags: u64) -> Result<(), Trouble> {
        let entry = self.entry_of(root, at, Level::L1)?;
        self.write(entry, to | flags)
    }

    /// Maps consecutive pages.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn map_run(
        &mut self,
        root: u64,
        at: u64,
        to: u64,
        pages: u64,
        flags: u64,
    ) -> Result<(), Trouble> {
        (0..pages).try_for_each(|i| self.map(root, at + i * 4096, to + i * 4096, flags))
    }

    /// Touches consecutive pages, `stride` apart.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn touch_run(&mut self, at: u64, pages: u64, stride: u64) -> Result<(), Trouble> {
        (0..pages).try_for_each(|i| self.touch(at + i * stride * 4096))
    }
}
