//! Translations that were judged since the vCPU's epoch changed last, and that the present tables gave: they stay right until it changes again.
//!
//! Key type: [`Memo`]. It spares a processor whose TLB serves each access, without an array in front, the same judgement again and again.
//!
//! Invariants:
//! 1. What is in it was right with all accessed bits set, so that a cache may keep it until the next flush.

use vmmu_cpu::{Access, TlbEntry, Va};

use super::observer::Epoch;

/// How many translations have a place.
const PLACES: usize = 2048;

/// What was judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Judgement {
    epoch: Epoch,
    /// The page's number, and the access.
    page: u64,
    access: u8,
    /// What the entry says.
    frame: u64,
    grants: u32,
}

/// The translations.
#[derive(Debug)]
pub(super) struct Memo(Vec<Judgement>);

impl Judgement {
    fn new(epoch: Epoch, va: Va, access: Access, entry: &TlbEntry) -> Self {
        let grants = u32::from(entry.rights.bits())
            | u32::from(entry.nested.bits()) << 8
            | u32::from(entry.key) << 16
            | u32::from(entry.dirty) << 24
            | u32::from(entry.tag.is_global()) << 25;
        Self {
            epoch,
            page: va.get() >> 12,
            access: access.kind as u8 | (access.privilege as u8) << 2,
            frame: entry.translate(va.get()).frame().get(),
            grants,
        }
    }

    const fn place(&self) -> usize {
        ((self.page ^ self.page >> 11) as usize ^ (self.access as usize) << 7) % PLACES
    }
}

impl Memo {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Says whether a use was judged right in this epoch.
    pub(super) fn has(&self, epoch: Epoch, va: Va, access: Access, entry: &TlbEntry) -> bool {
        let judgement = Judgement::new(epoch, va, access, entry);
        self.0.get(judgement.place()) == Some(&judgement)
    }

    /// Notes that a use was judged right.
    pub(super) fn put(&mut self, epoch: Epoch, va: Va, access: Access, entry: &TlbEntry) {
        let judgement = Judgement::new(epoch, va, access, entry);
        if self.0.is_empty() {
            // No place holds page 0 in an epoch before it was put there: the frame would be 0, which backs no guest.
            self.0 = vec![Judgement::default(); PLACES];
        }
        self.0[judgement.place()] = judgement;
    }
}

#[cfg(test)]
mod what_was_judged {
    use super::Memo;
    use crate::check::observer::Epoch;
    use vmmu_cpu::{
        Access, Asid, Cpu, Flush, Hpa, Model, PhysMemory, Policy, Registers, Va, World,
    };

    #[test]
    fn is_known_for_that_access_and_entry_in_that_epoch_alone() {
        let mem = std::sync::Arc::new(PhysMemory::new(16));
        for table in 1..4 {
            mem.store(Hpa::new(table << 12), (table + 1) << 12 | 0x67);
        }
        mem.store(Hpa::new(0x4000), 0x9067);
        let mut cpu = Cpu::new(mem, Model::STRICT, Policy::NONE, 1);
        let world = World {
            regs: Registers::long4(Hpa::new(0x1000)),
            asid: Asid::new(1),
            nested: None,
        };
        cpu.enter(&world, Flush::All).expect("a root");
        let (va, access) = (Va::new(0x10), Access::USER_READ);
        let entry = cpu.translate(va, access).expect("mapped").entry;
        let mut memo = Memo::new();
        assert!(!memo.has(Epoch(0), va, access, &entry));
        memo.put(Epoch(0), va, access, &entry);
        assert!(memo.has(Epoch(0), va.plus(8), access, &entry));
        assert!(!memo.has(Epoch(1), va, access, &entry));
        assert!(!memo.has(Epoch(0), va, Access::USER_WRITE, &entry));
        assert!(!memo.has(Epoch(0), va.plus(0x1000), access, &entry));
        let mut other = entry;
        other.rights.toggle(vmmu_cpu::Rights::WRITE);
        assert!(!memo.has(Epoch(0), va, access, &other));
        other = entry;
        other.hpa = Hpa::new(0xa000);
        assert!(!memo.has(Epoch(0), va, access, &other));
    }
}
