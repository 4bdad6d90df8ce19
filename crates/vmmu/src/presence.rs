//! Whether a vCPU is in its guest: the protocol of entering, leaving and being asked to flush.
//!
//! Key type: [`Presence`]. Neighbours: `vcpu` enters and leaves, `debt` flushes through [`Call::flush_all`].
//!
//! | mode | meaning | who changes it |
//! |---|---|---|
//! | OUTSIDE | no guest runs; the TLB is flushed before one does, if requested | the vCPU |
//! | IN_GUEST | the guest may run, its TLB in use | the vCPU, by `enter`; back by `exited` |
//!
//! Entry: store IN_GUEST, full barrier, read the requests and whether the root is dead; if there is anything, store OUTSIDE and serve it there.
//! Requester: store the request, full barrier, read the exit count, then the mode; a CPU outside counts as flushed, one inside is kicked until
//! its exit count changes: waited for is a change, never a state.
//!
//! Invariants:
//! 1. No wait depends on a lock; serving happens outside.
//! 2. `exits` is raised after the mode is stored.

use crate::host::{Host, VcpuId};
use crate::mmu::Call;
use crate::stats::{Event, Observer};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = 1;

/// Where a vCPU is, and what others want of it.
#[derive(Debug)]
pub(crate) struct Presence {
    mode: AtomicU32,
    exits: AtomicU64,
    /// Flushes requested since the last entry.
    requests: AtomicU32,
}

impl Presence {
    pub(crate) fn new() -> Self {
        Self {
            mode: AtomicU32::new(OUTSIDE),
            exits: AtomicU64::new(0),
            requests: AtomicU32::new(0),
        }
    }

    /// Counts as inside from now on; what is looked at next is not older.
    #[inline]
    pub(crate) fn arrive(&self) {
        self.mode.store(IN_GUEST, Ordering::Relaxed);
        // Full barrier: pairs with the one in `flush_all`. Without it a request could be missed here while its requester still
        // sees OUTSIDE.
        if !mutant!(EntryUnfenced) {
            fence(Ordering::SeqCst);
        }
    }

    /// Tells whether a flush is requested; after [`Presence::arrive`].
    #[inline]
    pub(crate) fn is_requested(&self) -> bool {
        self.requests.load(Ordering::Acquire) != 0
    }

    /// Takes the requests, outside; tells whether there were any.
    pub(crate) fn take_requests(&self) -> bool {
        self.requests.swap(0, Ordering::AcqRel) != 0 && !mutant!(RequestUnserved)
    }

    /// Counts as outside from now on.
    #[inline]
    pub(crate) fn leave(&self) {
        let exits = self.exits.load(Ordering::Relaxed).wrapping_add(1);
        if mutant!(ExitsBeforeMode) {
            self.exits.store(exits, Ordering::Release);
            self.mode.store(OUTSIDE, Ordering::Release);
            return;
        }
        // Release: what the guest did through its TLB comes before.
        self.mode.store(OUTSIDE, Ordering::Release);
        // After the mode: a requester that read the new count must not find the old mode and wait for the next exit.
        let order = if mutant!(ExitsRelaxed) {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.exits.store(exits, order);
    }

    fn request(&self) {
        if !mutant!(NoRequest) {
            self.requests.store(1, Ordering::Release);
        }
    }

    /// Tells whether the vCPU has left since its exit count was `exits`.
    fn has_left_since(&self, exits: u64) -> bool {
        if mutant!(WaitForMode) {
            self.mode.load(Ordering::Acquire) == OUTSIDE
        } else {
            self.exits.load(Ordering::Acquire) != exits
        }
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Flushes the TLBs of all CPUs; returns when none holds an older translation. No lock is held.
    pub(crate) fn flush_all(&self) {
        self.locks.assert_none();
        self.count(Event::Flush);
        for vcpu in &self.mmu.vcpus {
            vcpu.presence.request();
        }
        // Full barrier: pairs with the one in `arrive`.
        if !mutant!(RequestUnfenced) {
            fence(Ordering::SeqCst);
        }
        for (i, vcpu) in self.mmu.vcpus.iter().enumerate() {
            let presence = &vcpu.presence;
            // The count before the mode: if the CPU leaves in between, the mode says so.
            let mut exits = presence.exits.load(Ordering::Acquire);
            if presence.mode.load(Ordering::Acquire) != OUTSIDE {
                if mutant!(ModeBeforeExits) {
                    exits = presence.exits.load(Ordering::Acquire);
                }
                self.kick_until_left(VcpuId(i as u16), presence, exits);
            }
        }
    }

    #[cold]
    fn kick_until_left(&self, vcpu: VcpuId, presence: &Presence, exits: u64) {
        self.count(Event::Kick);
        let mut round = 0_u32;
        while !presence.has_left_since(exits) {
            if round.is_multiple_of(1024) {
                self.mmu.host.kick(vcpu);
            }
            if mutant!(KickWithoutWait) {
                break;
            }
            self.mmu.host.relax(round);
            round = round.wrapping_add(1);
            #[cfg(loom)]
            loom::thread::yield_now();
        }
    }
}
