//! Writes to guest tables that stay protected: what the emulator needs of the library, and the way out where it can't help.
//!
//! Invariants:
//! 1. A store in the guest's name is announced before it is made, and reported before the guest goes on.
//! 2. An instruction that writes the table of its own translation ends after a bounded number of rounds (scenario L3).

use alloc::format;
use alloc::string::ToString;
use core::sync::atomic::Ordering;

use vmmu::addr::{Gpa, Gva, Level};
use vmmu::paging::GuestFormat;
use vmmu::walk::{AccessKind, GpteRecord, Privilege};
use vmmu::{Unprotected, Writing};

use super::{Answer, Memory};
use crate::host::SvmHost;

/// How often in a row one instruction may come back because its own translation needs the table that it writes.
const PATIENCE: u32 = 16;

impl Memory {
    /// Answers a write to a protected guest table that can't be emulated: the protection goes. An instruction that writes the table of its own
    /// translation is told by coming back (scenario L3).
    pub fn unprotect(&mut self, gpa: Gpa, rip: u64, gva: Gva) -> Answer {
        if !self.unit.mmu.may_be_protected() {
            return Answer::Resume;
        }
        match self.vcpu.unprotect(gpa, rip, gva) {
            Ok(Unprotected::Retry | Unprotected::NotProtected) => self.again = 0,
            Ok(Unprotected::Again) => self.again += 1,
            Err(error) => return Answer::Refused(error.to_string()),
        }
        if self.again > PATIENCE {
            return Answer::Refused(format!(
                "an instruction writes the table at {gpa} of its own translation"
            ));
        }
        Answer::Resume
    }

    /// Tells whether taking the protection away did not help the last time.
    pub const fn comes_back(&self) -> bool {
        self.again > 0
    }

    /// Translates an access of the guest, if the processor could do it without setting accessed and dirty bits in the guest's tables.
    pub fn translate_used(&self, gva: Gva, kind: AccessKind, privilege: Privilege) -> Option<Gpa> {
        const ACCESSED: u64 = 1 << 5;
        let walk = self.vcpu.translate(gva, kind, privilege).ok()?.ok()?;
        // Page-directory pointers of PAE paging have no accessed bit.
        let used = |entry: GpteRecord| {
            entry.gpte.raw() & ACCESSED != 0
                || walk.format() == GuestFormat::Pae && entry.level == Level::L3
        };
        let marked = walk.records().all(used) && (kind != AccessKind::Write || walk.is_dirty());
        marked.then(|| walk.gpa())
    }

    /// Announces a store in the guest's name, to be made before the announcement is dropped, which reports it.
    pub fn announce(&self, gpa: Gpa, len: u64) -> Writing<'static, SvmHost> {
        self.unit.mmu.begin_write(gpa, len)
    }

    /// Notes that an instruction was emulated.
    pub fn emulated(&mut self) {
        self.again = 0;
        self.unit.emulated.fetch_add(1, Ordering::Relaxed);
    }
}
