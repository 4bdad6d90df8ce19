//! Flush debts (rule R7): a flush that is owed, the pages that it sets free, and the dirty frames that it may still reveal.
//!
//! Key type: [`Debt`]. Neighbours: `edge` and `zap` owe, every public call pays, `vcpu` flushes.
//!
//! Invariants:
//! 1. `flush_pending` is raised before the first SPTE is removed or narrowed, and lowered after every CPU has flushed.
//! 2. A debt is paid with no lock held, before the call returns or promises anything; dropping one that is not paid pays it, and panics
//!    in debug builds.
//! 3. A dead page leaves a debt only by being retired, after the flush; its place in the gate's count goes then too.

use crate::addr::Gfn;
use crate::host::Host;
use crate::mmu::Call;
use crate::page::PageId;
use crate::stats::{Event, Observer};
use crate::sync::Ordering;

/// A flush that is owed.
#[must_use = "a flush that is owed must be paid"]
#[derive(Debug)]
pub(crate) struct Debt<'c, 'm, H: Host, O: Observer> {
    call: &'c Call<'m, H, O>,
    owed: bool,
    /// Dead pages to retire, chained through `Page::chain`, as number + 1.
    dead: u32,
    /// Frames that a TLB may still be writing to: from, to (inclusive).
    dirty: Option<(Gfn, Gfn)>,
}

impl<'c, 'm, H: Host, O: Observer> Debt<'c, 'm, H, O> {
    pub(crate) fn new(call: &'c Call<'m, H, O>) -> Self {
        Self {
            call,
            owed: false,
            dead: 0,
            dirty: None,
        }
    }

    /// Owes a flush; called before an SPTE is removed or narrowed.
    #[inline]
    pub(crate) fn owe(&mut self) {
        if !self.owed {
            self.owed = true;
            // AcqRel, and before the exchange of the SPTE, which is a release too: who sees the SPTE gone sees the count raised.
            self.call.mmu.flush_pending.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Remembers a frame whose dirty bit disappeared: a TLB entry may still carry it.
    pub(crate) fn remember_dirty(&mut self, gfn: Gfn) {
        let (from, to) = self.dirty.unwrap_or((gfn, gfn));
        self.dirty = Some((from.min(gfn), to.max(gfn)));
    }

    /// Forgets the frames: whoever took them from the log reports them after the flush.
    pub(crate) fn forget_dirty(&mut self) {
        self.dirty = None;
    }

    /// Takes over a dead page, to be retired after the flush.
    pub(crate) fn bury(&mut self, id: PageId) {
        self.owe();
        if mutant!(GateClosesEarly) && !self.call.page(id).role().is_direct() {
            self.call.mmu.gate.destroy();
        }
        self.call.page(id).chain.store(self.dead, Ordering::Relaxed);
        self.dead = id.0 + 1;
    }

    /// Flushes if this or anybody's flush is owed: what precedes a promise that something is mapped nowhere.
    pub(crate) fn promise(&mut self) {
        if self.owed {
            self.pay();
        } else if self.call.flush_is_pending() && !mutant!(PromiseForOwnDebt) {
            self.call.flush_all();
        }
    }

    /// Pays: flushes every CPU, then lowers the count, records late dirt, and retires the dead.
    #[inline]
    pub(crate) fn pay(&mut self) {
        if self.owed {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let call = self.call;
        if mutant!(LowerBeforeFlush) {
            call.mmu.flush_pending.fetch_sub(1, Ordering::AcqRel);
        }
        if !mutant!(DropFlush) {
            call.flush_all();
        }
        self.owed = false;
        if let Some((from, to)) = self.dirty.take() {
            call.redirty(from, to);
        }
        // Release: the flush comes before; pairs with the Acquire in `flush_is_pending`.
        if !mutant!(LowerBeforeFlush) {
            call.mmu.flush_pending.fetch_sub(1, Ordering::AcqRel);
        }
        while let Some(id) = self.dead.checked_sub(1).map(PageId) {
            let page = call.page(id);
            self.dead = page.chain.load(Ordering::Relaxed);
            if !page.role().is_direct() && !mutant!(GateNeverCloses) && !mutant!(GateClosesEarly) {
                call.mmu.gate.destroy();
            }
            if mutant!(FreeWithoutGrace) {
                call.give_back(id);
                continue;
            }
            call.mmu.grace.retire(&call.locks, &call.mmu.pool, id);
            call.count(Event::Zap);
        }
    }
}

impl<H: Host, O: Observer> Drop for Debt<'_, '_, H, O> {
    #[inline]
    fn drop(&mut self) {
        if self.owed {
            self.pay();
            debug_assert!(false, "a flush was owed and not paid");
        }
    }
}
