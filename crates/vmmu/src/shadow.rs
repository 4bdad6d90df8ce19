//! The shadow engine's fault: walk the guest, find or create the pages on the way, install the leaf, prefetch.
//!
//! Key types: [`Again`] (why an attempt is repeated), [`Way`] (what one attempt works on), [`Found`] (what is at the address).
//! Neighbours: `walk` reads the guest, `tree` finds, creates and links pages, `edge` installs, `prefetch` guesses.
//!
//! Invariants:
//! 1. The walk, the look-up of pages and of the host frame hold no lock; what they found is checked again under the locks of the install.
//! 2. The snapshot of invalidation is taken before the host frame is looked up, always in that order.
//! 3. An attempt that fails leaves nothing half done; its debt is paid before the next one.

mod leaf;
mod way;

use crate::addr::{Gfn, Gva, Index, Level};
use crate::debt::Debt;
use crate::edge::{Installed, Leaf, Purpose, Refused};
use crate::error::Error;
use crate::frames::Missing;
use crate::host::Host;
use crate::memory::SlottedMemory;
use crate::mmu::Call;
use crate::outcome::{EmulateReason, FaultOutcome};
use crate::page::{Flags, Page, PageId};
use crate::prefetch::Window;
use crate::stats::{Event, Observer};
use crate::vcpu::VcpuLocal;
use crate::walk::{Access, Gpte, GpteWidth, Walk, WalkFailure};

pub(crate) use way::{Near, Way, demand, note_use};

use leaf::Found;

/// How often a fault is tried before the guest is asked to try again itself.
const ATTEMPTS: u32 = if cfg!(loom) { 2 } else { 16 };

/// Why an attempt did not come to an end.
#[derive(Debug)]
pub(crate) enum Again {
    /// Something changed meanwhile.
    Raced,
    /// Something has to be flushed first.
    Flush,
    /// Memory has to be allocated first.
    Missing(Missing),
    /// The page limit is reached: pages were zapped, and the guard has to be left for their grace period.
    NeedPages,
    /// It cannot be done.
    Error(Error),
}

impl From<Error> for Again {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refused> for Again {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Missing(missing) => Self::Missing(missing),
            Refused::FlushFirst => Self::Flush,
            _ => Self::Raced,
        }
    }
}

impl<'m, H: Host, O: Observer> Call<'m, H, O> {
    /// Serves a fault of a shadow-paged guest.
    pub(crate) fn shadow_fault(
        &self,
        local: &mut VcpuLocal,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, Again> {
        for _ in 0..ATTEMPTS {
            let mut debt = Debt::new(self);
            let tried = self.try_fault(local, gva, access, &mut debt);
            debt.pay();
            match tried {
                Ok(outcome) => return Ok(outcome),
                Err(Again::Raced) => {}
                Err(Again::Flush) => self.flush_all(),
                Err(Again::Missing(missing)) => self.provide(missing)?,
                Err(other) => return Err(other),
            }
        }
        self.count(Event::FaultRetried);
        Ok(FaultOutcome::Retry)
    }

    /// Tries once. Apart from the loop around it, or the compiler works out beforehand what later attempts might use.
    #[inline(never)]
    fn try_fault(
        &self,
        local: &mut VcpuLocal,
        gva: Gva,
        access: Access,
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<FaultOutcome, Again> {
        let root = self.live_root(local, debt)?;
        let mut walk = Walk::new();
        let memory = SlottedMemory::new(self, local.space);
        match local.walker.walk_into(&memory, gva, access, &mut walk) {
            Ok(()) => {}
            Err(WalkFailure::Retry) => {
                memory.page_in()?;
                return Err(Again::Raced);
            }
            Err(failure) => {
                self.forget(root, gva, debt);
                return Ok(self.refuse(gva, failure));
            }
        }
        let mut way = Way {
            gva,
            access,
            walk: &walk,
            root,
            pinned: [root; 5],
            depth: 1,
        };
        let (leaf, largest) = match self.leaf_of(local, &way, debt)? {
            Found::Leaf(leaf, largest) => (leaf, largest),
            Found::Answer(outcome) => return Ok(outcome),
        };
        let start = self.shortcut(local, &way, largest);
        self.map(
            local,
            &mut way,
            leaf,
            (start.unwrap_or(root), largest),
            debt,
        )
    }

    /// Drops what an unsync page still maps at `gva`: a page fault leaves no cached translation of its address (Intel SDM vol. 3, 4.10.4.1).
    fn forget(&self, root: PageId, gva: Gva, debt: &mut Debt<'_, 'm, H, O>) {
        if !mutant!(FaultMeetsNobody) {
            self.meet_writes(debt);
        }
        let mut id = root;
        for _ in 0..5 {
            let page = self.page(id);
            // Clean pages say what the guest's tables say, now that writes in flight are met.
            if !page.role().is_direct() && !page.flags().contains(Flags::CLEAN) {
                let _ = self.derive_way(id, gva, debt);
                return;
            }
            match self.linked(id, page.role().level().index(gva.get())) {
                Some(child) => id = child,
                None => return,
            }
        }
    }

    /// Answers a walk that came to no end.
    #[inline(never)]
    fn refuse(&self, gva: Gva, failure: WalkFailure) -> FaultOutcome {
        self.count(Event::FaultInjected);
        match failure {
            WalkFailure::Fault(fault) => FaultOutcome::InjectPageFault {
                gva,
                code: fault.code,
            },
            WalkFailure::MemoryMissing { gpa, .. } => FaultOutcome::TableMissing { gpa },
            _ => FaultOutcome::InjectGeneralProtection,
        }
    }

    /// Goes down from the root, making the pages on the way, and installs the leaf.
    fn map(
        &self,
        local: &mut VcpuLocal,
        way: &mut Way<'_>,
        mut leaf: Leaf,
        (start, largest): (PageId, Level),
        debt: &mut Debt<'_, 'm, H, O>,
    ) -> Result<FaultOutcome, Again> {
        let exact = (leaf.gfn, leaf.pfn);
        let (mut id, mut target) = (start, largest);
        let mut parent = None;
        if target == Level::L1 && start == way.root {
            (id, parent) = self.follow(way);
        }
        loop {
            let role = self.page(id).role();
            let level = role.level();
            let index = level.index(way.gva.get());
            // A region that is mapped small already stays small: its link is followed.
            if level == target && level > Level::L1 && self.linked(id, index).is_some() {
                target = Level::L1;
            }
            if level > target {
                let (gfn, role) = demand(way.walk, role, level).ok_or(Again::Raced)?;
                parent = Some(id);
                id = self.step(way, id, index, gfn, role, debt)?;
                continue;
            }
            leaf.gfn = exact.0.align_down(level);
            leaf.pfn = exact.1.align_down(level);
            match self.place(way, id, level, index, &leaf) {
                Ok((installed, window)) => {
                    if installed == Installed::Present {
                        local.near = None;
                    } else if let Some(parent) = parent.filter(|_| level == Level::L1) {
                        local.near = Some(Near {
                            prefix: way.gva.get() >> 21,
                            root: way.root,
                            parent,
                        });
                    }
                    self.count_fixed(installed, leaf.gfn);
                    if !window.is_closed() {
                        self.prefetch(local.walker.decoder(), id, window);
                    }
                    return Ok(FaultOutcome::Resume);
                }
                Err(Refused::TooLarge) => target = Level::L1,
                Err(Refused::Occupied) => {
                    let page = self.page(id);
                    let state = page.lock.lock(&self.locks);
                    self.remove_recorded(id, index, debt);
                    drop(state);
                    return Err(Again::Raced);
                }
                Err(Refused::Tracked) => {
                    if !self.make_unsync(leaf.gfn) {
                        self.count_at(Event::FaultEmulated, leaf.gfn);
                        return Ok(FaultOutcome::EmulateWrite {
                            gpa: way.walk.gpa(),
                            reason: EmulateReason::GuestTable,
                        });
                    }
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    /// Installs the leaf in a slot, if the guest's entry is still what the walk saw; says how many neighbours to prefetch.
    pub(crate) fn place(
        &self,
        way: &Way<'_>,
        id: PageId,
        level: Level,
        index: Index,
        leaf: &Leaf,
    ) -> Result<(Installed, Window), Refused> {
        let page = self.page(id);
        let purpose = if way.access.is_write() {
            Purpose::Write
        } else {
            Purpose::Any
        };
        let early = mutant!(RecheckBeforeLock).then(|| self.recheck(way, page, index));
        let mut state = page.lock.lock(&self.locks);
        if !page.is_alive() && !mutant!(InstallInDead) {
            return Err(Refused::Stale);
        }
        let stands_for_table = !page.role().is_direct() && !mutant!(LeafWithoutRecheck);
        if !stands_for_table {
            let installed = self.install_leaf(id, index, leaf, purpose)?;
            return Ok((installed, Window::default()));
        }
        let gpte = early.unwrap_or_else(|| self.recheck(way, page, index))?;
        let installed = self.install_leaf(id, index, leaf, purpose)?;
        self.note_derived(page, index, gpte, &mut state);
        // Where the guest uses a page for the first time, its neighbours are seldom in use already.
        let may_prefetch =
            installed == Installed::New && level == Level::L1 && !way.walk.is_first_use();
        if may_prefetch && self.mmu.config.prefetch != 0 {
            state.window = self.window(page, index, state.window);
            return Ok((installed, state.window));
        }
        Ok((installed, Window::default()))
    }

    /// Re-reads the guest's entry of a slot under the table lock: unchanged but for A and D that were set, or the install is stale.
    ///
    /// One that has lost a bit is stale: whoever cleared it has reported that, perhaps before there was an entry to remove, and no later flush looks at a
    /// clean page again.
    pub(crate) fn recheck(
        &self,
        way: &Way<'_>,
        page: &Page,
        index: Index,
    ) -> Result<Gpte, Refused> {
        let role = page.role();
        let seen = way.walk.entry(role.level()).ok_or(Refused::Stale)?;
        let now = self
            .read_gpte(role, Self::gpte_at(page, index), GpteWidth::Bytes8)
            .map_err(|_| Refused::Stale)?;
        let ad = Gpte::ACCESSED.with(Gpte::DIRTY);
        let is_still = if mutant!(RecheckIgnoresAd) {
            now.with(ad) == seen.with(ad)
        } else {
            now.is_still(seen)
        };
        if !is_still {
            return Err(Refused::Stale);
        }
        Ok(now)
    }

    fn count_fixed(&self, installed: Installed, gfn: Gfn) {
        let event = match installed {
            Installed::Present => Event::FaultSpurious,
            Installed::Widened | Installed::New => Event::FaultFixed,
        };
        self.count_at(event, gfn);
    }
}
