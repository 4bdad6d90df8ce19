//! What the host does while its guest runs: it moves memory, changes and removes a slot, zaps, ages and harvests.
//!
//! Key type: [`Pressure`].

use core::ops::Range;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use vmmu::addr::Gfn;
use vmmu::{Mmu, SlotFlags, SlotId};

use crate::guest::TABLES;
use crate::host::Host;
use crate::judge;
use crate::program::{CHANGING, LOGGED, Slots, USED, add, age, harvest};

/// The host's thread.
pub(crate) struct Pressure {
    pub(crate) mmu: Arc<Mmu<Host>>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) logged: SlotId,
    pub(crate) changing: SlotId,
    pub(crate) random: fastrand::Rng,
}

impl Pressure {
    /// Does something.
    pub(crate) fn step(&mut self) {
        match self.random.u8(..13) {
            0..3 => {
                let first = [LOGGED.start, CHANGING.start, 3][self.random.usize(..3)];
                let gfn = first + self.random.u64(..USED);
                self.move_frames(gfn..gfn + 1);
            }
            3..5 => {
                let block = [LOGGED, CHANGING][self.random.usize(..2)].clone();
                self.move_frames(block);
            }
            5 => {
                self.mmu.zap_all();
            }
            6 => {
                let table = TABLES[self.random.usize(..TABLES.len())];
                self.mmu.zap_frame(Gfn::new(table));
            }
            7..9 => {
                let dirty = harvest(&self.mmu, self.logged);
                let host = self.mmu.host();
                judge::copy(&mut host.state(), &dirty, &host.counts);
            }
            9 => self.remove_and_add(),
            10 => self.change_flags(),
            _ => {
                let block = [LOGGED, CHANGING][self.random.usize(..2)].clone();
                age(&self.mmu, block);
            }
        }
    }

    /// Takes frames back, uses them for something else, and gives the guest others.
    fn move_frames(&mut self, frames: Range<u64>) {
        let count = frames.end - frames.start;
        let invalidation = self.mmu.invalidate_begin(Gfn::new(frames.start), count);
        self.mmu.host().state().taken = frames.clone();
        self.mmu.host().bus();
        {
            let mut state = self.mmu.host().state();
            state.move_frames(frames);
            state.taken = 0..0;
        }
        drop(invalidation);
    }

    fn remove_and_add(&mut self) {
        self.mmu.remove_slot(self.changing).expect("it is there");
        self.slots.is_gone.store(true, Ordering::SeqCst);
        self.mmu.host().bus();
        self.slots.is_gone.store(false, Ordering::SeqCst);
        self.slots.is_read_only.store(false, Ordering::SeqCst);
        self.changing = add(&self.mmu, CHANGING, SlotFlags::empty());
    }

    fn change_flags(&mut self) {
        let flags = [
            SlotFlags::empty(),
            SlotFlags::READ_ONLY,
            SlotFlags::LOG_DIRTY,
        ][self.random.usize(..3)];
        self.slots.is_read_only.store(false, Ordering::SeqCst);
        let set = self.mmu.set_slot_flags(self.changing, flags);
        set.expect("it is there");
        let is_read_only = flags.contains(SlotFlags::READ_ONLY);
        self.slots
            .is_read_only
            .store(is_read_only, Ordering::SeqCst);
    }
}
