//! The host ages guest frames, and takes some back while the guest runs: their content moves to another host frame, and the old one is poisoned.
//!
//! Key type: [`Reclaim`]; key function: [`take_back`]. What a host does when it compacts memory, swaps, or shares pages; here at random, so that a mapping that was forgotten
//! leads to poison and is noticed.
//!
//! Invariants:
//! 1. Between `invalidate_begin` and the end nobody maps the frames; the content moves in between, with nobody accessing it by guest-physical
//!    address.
//! 2. The old host frame is marked as taken before it is poisoned, and rests in the queue of free frames before it is used again.

use vmmu::addr::Gfn;
use vmmu::host::TablePlace;

use crate::check::Observer;
use crate::memory::FrameState;
use crate::vmm::Vm;
use crate::vmm::guest::BLOCK;

/// The most frames taken at once.
const MOST: u64 = 16;

/// Takes frames back at random.
#[derive(Debug)]
pub struct Reclaim {
    rng: fastrand::Rng,
    /// How many frames were moved.
    pub moved: u64,
    /// How many frames were found in use, when they were aged.
    pub used: u64,
}

impl Reclaim {
    /// Makes one that draws by a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            moved: 0,
            used: 0,
        }
    }

    /// Takes a few neighbouring frames back and gives the guest others with the same content. No vCPU's call runs on this thread.
    pub fn take_some<O: Observer>(&mut self, vm: &Vm<O>) {
        let first = self.rng.u64(0..vm.guest.len());
        let frames = self.rng.u64(1..=MOST).min(vm.guest.len() - first);
        let Some(base) = vm.guest.gfn(first) else {
            return;
        };
        // Frames of two pieces of memory are no neighbours.
        let frames = (0..frames)
            .take_while(|i| vm.guest.gfn(first + i) == Some(base.wrapping_add(*i)))
            .count() as u64;
        self.moved += take_back(vm, base, frames);
    }

    /// Asks which frames of a block are in use: most often all those of a 2 MiB block, sometimes a few, that share a large leaf with others.
    pub fn age_some<O: Observer>(&mut self, vm: &Vm<O>) {
        let Some(gfn) = vm.guest.gfn(self.rng.u64(0..vm.guest.len())) else {
            return;
        };
        let (base, frames) = match self.rng.u8(0..8) {
            0 => (gfn, self.rng.u64(1..=MOST)),
            _ => (Gfn::new(gfn.get() & !(BLOCK - 1)), BLOCK),
        };
        vm.mmu.age(base, frames, |gfn| {
            debug_assert!((base..base.wrapping_add(frames)).contains(&gfn));
            self.used += 1;
        });
    }
}

/// Takes frames back and gives the guest others with the same content; tells how many. No vCPU's call runs on this thread.
pub fn take_back<O: Observer>(vm: &Vm<O>, base: Gfn, frames: u64) -> u64 {
    let invalidation = vm.mmu.invalidate_begin(base, frames);
    let numbers = (0..frames).filter_map(|i| vm.guest.number(base.wrapping_add(i)));
    let moved = numbers.filter(|number| move_away(vm, *number)).count();
    drop(invalidation);
    vm.observer.remapped(base, frames);
    moved as u64
}

/// Moves a frame that is mapped nowhere, if there is another to be had; tells whether it did.
fn move_away<O: Observer>(vm: &Vm<O>, number: u64) -> bool {
    let spare = &vm.mmu.host().spare;
    let Some(new) = spare.take(TablePlace::Anywhere) else {
        return false;
    };
    vm.guest.alone(|| {
        let Some(old) = vm.guest.lift(number) else {
            spare.give(new);
            return false;
        };
        vm.memory.copy(old, new);
        vm.memory.hand_out(new, FrameState::Guest);
        vm.guest.put(number, new);
        vm.memory.take_back(old, FrameState::Taken);
        spare.give(old);
        true
    })
}
