//! One vCPU: its paging state, and the calls that a hypervisor makes for it.
//!
//! Key types: [`Vcpu`] (a handle), [`VcpuLocal`] (what the thread that claimed the vCPU works with), [`VcpuShared`] (what others see).
//! Neighbours: `root` loads roots, `presence` is the protocol of entering and leaving the guest, `shadow` and `direct` serve faults.
//!
//! Invariants:
//! 1. Whoever calls has claimed the vCPU; nobody waits for it.
//! 2. Only `enter` and `exited` change whether the vCPU counts as inside its guest.

use crate::addr::{Gfn, Gva, Level};
use crate::config::ForeignWrites;
use crate::debt::Debt;
use crate::error::Error;
use crate::host::{Host, VcpuId};
use crate::mmu::{Call, Mmu};
use crate::outcome::{Entry, FaultOutcome, Unprotected};
use crate::page::PageId;
use crate::paging::{CpuModel, Cr3, GuestFormat, PagingState};
use crate::presence::Presence;
use crate::role::Role;
use crate::root::Roots;
use crate::shadow::{Again, Near};
use crate::slots::{AddressSpace, SlotHint};
use crate::stats::{Counters, Event, Observer};
use crate::sync::{Claim, Claimed, Locks};
use crate::walk::{Access, AccessKind, Privilege, Rights, Walk, WalkFailure, Walker};

/// How often a fault at the page limit looks for a page whose grace period is over before it gives up.
const PATIENCE: u32 = 1 << 20;

/// What others see of a vCPU; aligned as [`crate::sync::Apart`] is.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct VcpuShared {
    pub(crate) local: Claim<VcpuLocal>,
    pub(crate) presence: Presence,
    pub(crate) counters: Counters,
    pub(crate) hint: SlotHint,
}

/// What the claimant of a vCPU works with.
#[derive(Debug)]
pub(crate) struct VcpuLocal {
    pub(crate) walker: Walker,
    pub(crate) space: AddressSpace,
    pub(crate) roots: Roots,
    /// The own TLB has to be flushed at the next entry.
    flush: bool,
    /// Where the last fault was installed.
    pub(crate) near: Option<Near>,
    /// The last instruction that was retried after unprotecting.
    retried: Option<(u64, Gva)>,
}

impl VcpuShared {
    pub(crate) fn new(cpu: CpuModel) -> Self {
        let state = PagingState::reset(cpu);
        let local = VcpuLocal {
            walker: Walker::new(state),
            space: AddressSpace::Normal,
            roots: Roots::new(&state, AddressSpace::Normal),
            flush: true,
            near: None,
            retried: None,
        };
        Self {
            local: Claim::new(local),
            presence: Presence::new(),
            counters: Counters::new(),
            hint: SlotHint::new(),
        }
    }

    /// Counts as inside the guest from now on, in tests that play the processor themselves.
    #[cfg(all(test, loom))]
    pub(crate) fn pretend_in_guest(&self) {
        self.presence.arrive();
    }
}

impl VcpuLocal {
    /// Returns the role of a page of `level` on a way below the root, for a guest table with `inherited` rights.
    #[inline]
    pub(crate) fn role_at(&self, level: Level, inherited: Rights) -> Role {
        self.roots.role().child(level, inherited, false)
    }
}

/// A vCPU of an [`Mmu`].
///
/// Calls for one vCPU come from one thread at a time; a second one is refused with [`Error::VcpuBusy`] and never waits. All are made outside the guest:
/// after [`Vcpu::exited`], before [`Vcpu::enter`].
#[derive(Debug)]
pub struct Vcpu<'m, H: Host, O: Observer = ()> {
    pub(crate) mmu: &'m Mmu<H, O>,
    pub(crate) shared: &'m VcpuShared,
    pub(crate) id: VcpuId,
}

impl<H: Host, O: Observer> Clone for Vcpu<'_, H, O> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<H: Host, O: Observer> Copy for Vcpu<'_, H, O> {}

/// What an invalidation by the guest covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TlbFlush {
    /// INVLPG of one address.
    Address(Gva),
    /// Everything: MOV to CR3, a change of CR4.PGE, INVPCID types 1 to 3.
    All,
}

impl<'m, H: Host, O: Observer> Vcpu<'m, H, O> {
    /// Returns the vCPU's number.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    fn claim(&self) -> Result<Claimed<'m, VcpuLocal>, Error> {
        self.shared.local.claim().ok_or(Error::VcpuBusy(self.id))
    }

    /// Begins a call; the caller has claimed the vCPU, so that guard slot and counters are its own.
    fn call(&self) -> Call<'m, H, O> {
        Call {
            mmu: self.mmu,
            locks: Locks::default(),
            guard: Some(self.mmu.grace.enter_vcpu(self.id.0)),
            counters: &self.shared.counters,
            hint: Some(&self.shared.hint),
        }
    }

    /// Runs `work` until it is done: once, nearly always.
    #[inline]
    fn with_pages<T>(
        &self,
        mut work: impl FnMut(&Call<'m, H, O>) -> Result<T, Again>,
    ) -> Result<T, Error> {
        let call = self.call();
        match work(&call) {
            Ok(value) => Ok(value),
            Err(again) => {
                let next = self.after(call, again, &mut 0)?;
                self.work_on(next, work)
            }
        }
    }

    /// Runs `work` again and again.
    #[cold]
    fn work_on<T>(
        &self,
        mut call: Call<'m, H, O>,
        mut work: impl FnMut(&Call<'m, H, O>) -> Result<T, Again>,
    ) -> Result<T, Error> {
        let mut round = 0;
        loop {
            match work(&call) {
                Ok(value) => return Ok(value),
                Err(again) => call = self.after(call, again, &mut round)?,
            }
        }
    }

    /// Does what `again` asks for, and returns the call to go on with. For pages the guard is left, so that grace periods can end.
    #[cold]
    fn after(
        &self,
        call: Call<'m, H, O>,
        again: Again,
        round: &mut u32,
    ) -> Result<Call<'m, H, O>, Error> {
        match again {
            Again::Error(error) => return Err(error),
            Again::Missing(missing) => call.provide(missing)?,
            Again::Flush => call.flush_all(),
            Again::Raced => {}
            Again::NeedPages => {
                drop(call);
                self.wait_for_pages(round)?;
                return Ok(self.call());
            }
        }
        Ok(call)
    }

    /// Gives grace periods a chance to end. No guard is held.
    fn wait_for_pages(&self, round: &mut u32) -> Result<(), Error> {
        let outside = Call {
            mmu: self.mmu,
            locks: Locks::default(),
            guard: None,
            counters: &self.shared.counters,
            hint: Some(&self.shared.hint),
        };
        if outside.reap(8) == 0 {
            self.mmu.host.relax(*round);
            *round = round.saturating_add(1);
        }
        if *round > PATIENCE {
            return Err(Error::PageLimit {
                limit: self.mmu.pool.limit(),
            });
        }
        Ok(())
    }

    /// Tells what decides the guest's translation: after MOV to CR0 or CR4, a write to EFER or PKRU, or anything that changes several.
    ///
    /// Roots and translations made for another mode are not used again before they are checked.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if the engine has no tables for the format yet: the vCPU is as before. [`Error::TableMissing`] if CR3 names
    /// what no slot has. [`Error::OutOfTables`] and others as for a fault. The state is set even so, and the root is loaded by the next call that
    /// needs it.
    pub fn set_paging(&self, state: &PagingState, space: AddressSpace) -> Result<(), Error> {
        let mut local = self.claim()?;
        let format = state.format();
        let is_shadow = self.mmu.config.engine == crate::Engine::Shadow;
        if is_shadow && matches!(format, GuestFormat::Bits32 | GuestFormat::Pae) {
            return Err(Error::UnsupportedFormat { format });
        }
        local.walker.set_state(*state);
        local.space = space;
        local.roots.ask_for(state, space);
        local.flush = true;
        if is_shadow {
            self.with_pages(|call| call.load_root(&mut local))
        } else {
            Ok(())
        }
    }

    /// Serves MOV to CR3 (without PCID): what the guest changed before is seen after. Bits above MAXPHYADDR have been refused by the embedder.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`].
    pub fn load_cr3(&self, cr3: Cr3) -> Result<(), Error> {
        let mut local = self.claim()?;
        local.walker.set_cr3(cr3, None);
        local.flush |= !mutant!(Cr3KeepsTlb);
        if self.mmu.config.engine == crate::Engine::Shadow && !self.reload_root(&mut local) {
            self.with_pages(|call| call.load_root(&mut local))
        } else {
            Ok(())
        }
    }

    /// Serves the guest's own flushes. Needed in the shadow engine only: under nested paging the processor does them.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`].
    pub fn invalidate(&self, what: TlbFlush) -> Result<(), Error> {
        let mut local = self.claim()?;
        local.flush |= !mutant!(InvlpgKeepsTlb);
        if self.mmu.config.engine != crate::Engine::Shadow {
            return Ok(());
        }
        match what {
            TlbFlush::All => self.with_pages(|call| call.load_root(&mut local)),
            TlbFlush::Address(gva) => {
                self.shared.counters.add_alone(Event::Invlpg, 1);
                self.mmu.observer.observe(Event::Invlpg, None);
                let reported = self.mmu.config.foreign_writes == ForeignWrites::ReportedFirst;
                let is_exact = reported
                    && (self.is_way_clean(&local) || mutant!(InvlpgTrusts))
                    && (!self.mmu.writes.are_in_flight() || mutant!(InvlpgMeetsNobody));
                if !is_exact {
                    self.invalidate_address(&local, gva);
                }
                Ok(())
            }
        }
    }

    fn invalidate_address(&self, local: &VcpuLocal, gva: Gva) {
        let call = self.call();
        let mut debt = Debt::new(&call);
        if !mutant!(InvlpgMeetsNobody) {
            call.meet_writes(&mut debt);
        }
        let root = call.usable_root(local);
        let slot = root
            .filter(|_| !mutant!(InvlpgOnlyFlushes))
            .and_then(|root| call.invalidate_way(root, gva, &mut debt));
        debt.pay();
        if let Some((id, index)) = slot {
            call.fill_one(local.walker.decoder(), id, index);
        }
    }

    /// Serves a #PF exit of the shadow engine: `access` says what the guest tried.
    ///
    /// # Errors
    /// [`Error::OutOfTables`], [`Error::OutOfMemory`], [`Error::HostMemory`], [`Error::PageLimit`]: nothing is lost, the guest may be entered
    /// again when there is memory. [`Error::VcpuBusy`], [`Error::WrongEngine`].
    pub fn handle_fault(&self, gva: Gva, access: Access) -> Result<FaultOutcome, Error> {
        let engine = self.mmu.config.engine;
        if engine != crate::Engine::Shadow {
            return Err(Error::WrongEngine { engine });
        }
        let mut local = self.claim()?;
        self.shared.counters.add_alone(Event::FaultTaken, 1);
        self.with_pages(|call| call.shadow_fault(&mut local, gva, access))
    }

    /// Serves an exit of the direct engine: the guest-physical address, and what was tried there.
    ///
    /// # Errors
    /// As [`Vcpu::handle_fault`].
    pub fn handle_nested_fault(
        &self,
        gpa: crate::addr::Gpa,
        access: AccessKind,
    ) -> Result<FaultOutcome, Error> {
        let engine = self.mmu.config.engine;
        if engine == crate::Engine::Shadow {
            return Err(Error::WrongEngine { engine });
        }
        let local = self.claim()?;
        self.shared.counters.add_alone(Event::FaultTaken, 1);
        self.with_pages(|call| call.direct_fault(local.space, gpa, access))
    }

    /// Translates an address as the guest would, without touching A and D bits: for fetching an instruction that has to be decoded.
    ///
    /// # Errors
    /// [`Error::VcpuBusy`], [`Error::HostMemory`]; the inner result is the walk's own.
    pub fn translate(
        &self,
        gva: Gva,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Result<Result<Walk, WalkFailure>, Error> {
        let local = self.claim()?;
        let call = self.call();
        let memory = crate::memory::SlottedMemory::new(&call, local.space);
        let mut walk = Walk::new();
        let walked = local
            .walker
            .probe(&memory, gva, Access::new(kind, privilege), &mut walk);
        // A table that was not resident is by the time the caller tries again.
        memory.page_in()?;
        Ok(walked.map(|()| walk))
    }

    /// Unprotects the guest table that a write hit, where the write cannot be emulated: its pages are zapped. `rip` tells an instruction that
    /// writes a table of its own translation (scenario L3).
    ///
    /// # Errors
    /// [`Error::VcpuBusy`].
    pub fn unprotect(
        &self,
        gpa: crate::addr::Gpa,
        rip: u64,
        gva: Gva,
    ) -> Result<Unprotected, Error> {
        let mut local = self.claim()?;
        let call = self.call();
        let mut debt = Debt::new(&call);
        let again = local.retried.replace((rip, gva)) == Some((rip, gva));
        call.count(Event::Unprotect);
        if again && let Some(root) = call.usable_root(&local) {
            let _ = call.clean_listed(root, &mut debt, None);
        }
        let zapped = call.zap_gfn(Gfn::containing(gpa), &mut debt);
        debt.pay();
        Ok(match (again, zapped) {
            (true, _) => Unprotected::Again,
            (false, 0) => Unprotected::NotProtected,
            (false, _) => Unprotected::Retry,
        })
    }

    /// Begins to enter the guest: serves what was requested meanwhile, and says with which root to run.
    ///
    /// From its return to [`Vcpu::exited`] the vCPU counts as inside the guest, and may be kicked.
    ///
    /// # Errors
    /// As [`Vcpu::set_paging`], when a new root is needed.
    pub fn enter(&self) -> Result<Entry, Error> {
        let mut local = self.claim()?;
        let presence = &self.shared.presence;
        loop {
            let root = match self.root_at_hand(&local) {
                Some(root) => root,
                None => self.with_pages(|call| call.root_to_enter(&mut local))?,
            };
            let page = self.mmu.pool.get(root);
            presence.arrive();
            let is_alive = page.is_alive();
            if is_alive && !presence.is_requested() {
                return Ok(Entry {
                    root: page.table().address(),
                    flush: core::mem::take(&mut local.flush),
                });
            }
            if !mutant!(ServeInside) {
                presence.leave();
            }
            local.flush |= presence.take_requests();
            if !is_alive {
                // Chosen anew, outside.
                local.roots.unload();
            }
        }
    }

    /// Returns the root to enter with if it is at hand; whether it is alive is seen after the barrier. Needs no guard: a loaded root is referenced, a
    /// direct one lives as long as the VM.
    #[inline]
    fn root_at_hand(&self, local: &VcpuLocal) -> Option<PageId> {
        if self.mmu.config.engine == crate::Engine::Shadow {
            local.roots.loaded()
        } else {
            self.mmu.direct.get(local.space)
        }
    }

    /// Ends the guest's run: to be called first after every exit.
    #[inline]
    pub fn exited(&self) {
        self.shared.presence.leave();
    }

    /// Returns the paging state as last set.
    ///
    /// # Errors
    /// [`Error::VcpuBusy`].
    pub fn paging(&self) -> Result<PagingState, Error> {
        Ok(*self.claim()?.walker.state())
    }
}

#[cfg(all(test, not(loom)))]
mod a_fault_of_the_other_engine {
    use crate::addr::{Gpa, Gva};
    use crate::audit::Strictness;
    use crate::testhost::World;
    use crate::walk::{Access, AccessKind};
    use crate::{Engine, Error};

    #[test]
    fn is_refused() {
        for engine in [Engine::Shadow, Engine::Npt, Engine::Ept] {
            let world = World::new(engine, |_| {});
            let vcpu = world.vcpu(0);
            let refused = if engine == Engine::Shadow {
                vcpu.handle_nested_fault(Gpa::new(0), AccessKind::Read)
            } else {
                vcpu.handle_fault(Gva::new(0), Access::READ)
            };
            assert_eq!(refused, Err(Error::WrongEngine { engine }));
            let report = world.mmu.audit(Strictness::Exact).unwrap();
            assert_eq!(report.pages, 0);
        }
    }
}
