//! What a machine tells whoever watches its translations: the one trait between the machine and the judge.
//!
//! Key types: [`Observer`], implemented by `()` (nobody watches, and nothing of it is compiled in); [`Used`], [`Refused`], [`Emulated`] (what there
//! is to judge), [`Caught`] (the run is over), [`Epoch`], [`Load`].
//!
//! How a machine plays along:
//! - *Processor.* An array in front of the MMU holds what [`Observer::used`] has agreed to. At the start of each block, and after each entry, the
//!   processor compares [`Observer::epoch`] with the one that the array was filled under; if it is another, it empties the array and says so
//!   ([`Observer::renewed`]). So an entry is judged at its first use after a fill, and again after each event that narrows what is allowed.
//! - *Stores.* Watched frames ([`Observer::is_watched`]) get no entry for writing in the array; every store that does not go through the array, the
//!   walker's and the library's A and D bits, the hypervisor's and the devices' stores included, is made inside [`Observer::store`].
//! - *Hypervisor.* It tells the guest's registers and flushes *after* the library has served them and before the guest is entered again, and what it
//!   does instead of an access: a fault, an emulation. After an invalidation or a slot change is complete it calls [`Observer::remapped`].
//!
//! Invariants:
//! 1. [`Observer::renewed`], [`Observer::entered`], [`Observer::exited`] for a vCPU come from the thread that runs it.
//! 2. While a vCPU is inside (between `entered` and `exited`) the frame that it uses is not taken back: the library waits for it to leave.

use vmmu::addr::{Gfn, Gpa, Gva};
use vmmu::host::VcpuId;
use vmmu::paging::{Cr3, PagingState};
use vmmu::walk::PageFaultCode;
use vmmu::{EmulateReason, TlbFlush};
use vmmu_cpu::{Access, Cpu, Fault, Frame, Hpa, Physical, Translation, Va};
pub use vmmu_spec::Time;

use super::judged::Judged;

/// A number that changes when what a processor's front array holds has to be judged anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Epoch(pub u32);

/// Something that must not happen has: the observer has the report, and the run is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a translation was used that must not be")]
#[must_use]
pub struct Caught;

/// A translation about to be used.
#[derive(Clone, Copy, Debug)]
pub struct Used<'a> {
    /// The address.
    pub va: Va,
    /// What is done there.
    pub access: Access,
    /// What the processor found.
    pub translation: &'a Translation,
    /// The time ([`Observer::now`]) before the processor looked.
    pub start: Time,
    /// The instruction's address, for the report.
    pub rip: u64,
}

/// A fault that the guest is to see instead of an access.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// The address.
    pub va: Va,
    /// What was to be done there.
    pub access: Access,
    /// The fault.
    pub fault: GuestFault,
    /// The time before the access was tried.
    pub start: Time,
    /// The instruction's address.
    pub rip: u64,
}

/// What loaded registers that decide translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// MOV to CR0 or CR4, WRMSR to EFER, WRPKRU: flushes what the manuals say for the change (Intel SDM vol. 3, 4.10.4.1).
    Control,
    /// The machine: at the start, and at INIT. Nothing is cached from before.
    Machine,
}

/// A fault as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFault {
    /// #PF with this error code.
    Page(PageFaultCode),
    /// #GP or #SS, since the address is not canonical.
    NotCanonical,
}

/// An access that the hypervisor makes for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    /// The address that the instruction names.
    pub va: Gva,
    /// What is done there.
    pub access: Access,
    /// Where the hypervisor does it.
    pub gpa: Gpa,
    /// Why the library left it to the hypervisor; `None` for the other accesses of an instruction that is emulated.
    pub reason: Option<EmulateReason>,
    /// The time before the access was translated.
    pub start: Time,
    /// The instruction's address.
    pub rip: u64,
}

/// Whoever watches the translations of a machine.
///
/// A processor asks it where its front arrays have no answer, never on the way of a hit. So one kind of observer serves machines with and without a judge
/// (`Option<Judge>`), and the emulator is compiled once for both.
pub trait Observer: Send + Sync {
    /// Says whether anybody does; the same always. Asked where no front array has an answer.
    fn watches(&self) -> bool;

    /// Returns the present time in the order of stores to watched frames.
    fn now(&self) -> Time;

    /// Returns the epoch of a vCPU. Cheap: one load.
    fn epoch(&self, vcpu: VcpuId) -> Epoch;

    /// Notes that a vCPU's front array holds nothing that was put there before `epoch`.
    fn renewed(&self, vcpu: VcpuId, epoch: Epoch);

    /// Says whether stores to a host frame have to be told one by one.
    fn is_watched(&self, frame: Frame) -> bool;

    /// Makes a store of `len` bytes at `at` that does not go through a front array, whether the frame is watched or not.
    fn store<T>(&self, at: Hpa, len: usize, store: impl FnOnce() -> T) -> T;

    /// Notes that a vCPU is about to run its guest; it compares the epoch afterwards.
    fn entered(&self, vcpu: VcpuId);

    /// Notes that a vCPU has left its guest: it stores nothing through its front array from now on.
    fn exited(&self, vcpu: VcpuId);

    /// Notes the guest's registers, whenever one that decides translation was loaded, other than CR3 alone.
    fn registers(&self, vcpu: VcpuId, state: &PagingState, load: Load);

    /// Notes that the guest loaded CR3: MOV, or a task switch. Flushes what is not global, even if the value is the old one.
    fn root_loaded(&self, vcpu: VcpuId, cr3: Cr3);

    /// Notes a flush that the guest asked for.
    fn flushed(&self, vcpu: VcpuId, what: TlbFlush);

    /// Notes that guest frames were taken back, or a slot changed: the library has returned, what was mapped before is mapped no more.
    fn remapped(&self, base: Gfn, frames: u64);

    /// Judges a translation.
    ///
    /// # Errors
    /// [`Caught`]: it must not be used.
    fn used<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, used: &Used<'_>) -> Result<(), Caught>;

    /// Judges a fault, and notes that it drops what is cached for the address.
    ///
    /// # Errors
    /// [`Caught`]: the guest must not see it.
    fn refused(&self, vcpu: VcpuId, refused: &Refused) -> Result<(), Caught>;

    /// Judges an access that is emulated.
    ///
    /// # Errors
    /// [`Caught`]: it must not go there.
    fn emulated(&self, vcpu: VcpuId, emulated: &Emulated) -> Result<(), Caught>;

    /// Returns how much was judged.
    fn judged(&self) -> Option<Judged> {
        None
    }

    /// Returns the report on what was caught.
    fn report(&self) -> Option<String> {
        None
    }

    /// Reports that the processor was led where it must never be: freed tables, poisoned entries.
    fn violated<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, fault: Fault) -> Caught;
}

/// Nobody watches.
impl Observer for () {
    #[inline(always)]
    fn watches(&self) -> bool {
        false
    }
    #[inline(always)]
    fn now(&self) -> Time {
        Time::START
    }
    #[inline(always)]
    fn epoch(&self, _: VcpuId) -> Epoch {
        Epoch(0)
    }
    #[inline(always)]
    fn renewed(&self, _: VcpuId, _: Epoch) {}
    #[inline(always)]
    fn is_watched(&self, _: Frame) -> bool {
        false
    }
    #[inline(always)]
    fn store<T>(&self, _: Hpa, _: usize, store: impl FnOnce() -> T) -> T {
        store()
    }
    #[inline(always)]
    fn entered(&self, _: VcpuId) {}
    #[inline(always)]
    fn exited(&self, _: VcpuId) {}
    #[inline(always)]
    fn registers(&self, _: VcpuId, _: &PagingState, _: Load) {}
    #[inline(always)]
    fn root_loaded(&self, _: VcpuId, _: Cr3) {}
    #[inline(always)]
    fn flushed(&self, _: VcpuId, _: TlbFlush) {}
    #[inline(always)]
    fn remapped(&self, _: Gfn, _: u64) {}
    #[inline(always)]
    fn used<M: Physical>(&self, _: VcpuId, _: &Cpu<M>, _: &Used<'_>) -> Result<(), Caught> {
        Ok(())
    }
    #[inline(always)]
    fn refused(&self, _: VcpuId, _: &Refused) -> Result<(), Caught> {
        Ok(())
    }
    #[inline(always)]
    fn emulated(&self, _: VcpuId, _: &Emulated) -> Result<(), Caught> {
        Ok(())
    }
    fn violated<M: Physical>(&self, _: VcpuId, _: &Cpu<M>, _: Fault) -> Caught {
        Caught
    }
}

/// Somebody watches, or nobody.
impl<O: Observer> Observer for Option<O> {
    #[inline]
    fn watches(&self) -> bool {
        self.is_some()
    }
    #[inline]
    fn now(&self) -> Time {
        self.as_ref().map_or(Time::START, O::now)
    }
    #[inline]
    fn epoch(&self, vcpu: VcpuId) -> Epoch {
        self.as_ref()
            .map_or(Epoch(0), |watcher| watcher.epoch(vcpu))
    }
    #[inline]
    fn renewed(&self, vcpu: VcpuId, epoch: Epoch) {
        self.iter().for_each(|watcher| watcher.renewed(vcpu, epoch));
    }
    #[inline]
    fn is_watched(&self, frame: Frame) -> bool {
        self.as_ref()
            .is_some_and(|watcher| watcher.is_watched(frame))
    }
    #[inline]
    fn store<T>(&self, at: Hpa, len: usize, store: impl FnOnce() -> T) -> T {
        match self {
            Some(watcher) => watcher.store(at, len, store),
            None => store(),
        }
    }
    #[inline]
    fn entered(&self, vcpu: VcpuId) {
        self.iter().for_each(|watcher| watcher.entered(vcpu));
    }
    #[inline]
    fn exited(&self, vcpu: VcpuId) {
        self.iter().for_each(|watcher| watcher.exited(vcpu));
    }
    fn registers(&self, vcpu: VcpuId, state: &PagingState, load: Load) {
        self.iter()
            .for_each(|watcher| watcher.registers(vcpu, state, load));
    }
    fn root_loaded(&self, vcpu: VcpuId, cr3: Cr3) {
        self.iter()
            .for_each(|watcher| watcher.root_loaded(vcpu, cr3));
    }
    fn flushed(&self, vcpu: VcpuId, what: TlbFlush) {
        self.iter().for_each(|watcher| watcher.flushed(vcpu, what));
    }
    fn remapped(&self, base: Gfn, frames: u64) {
        self.iter()
            .for_each(|watcher| watcher.remapped(base, frames));
    }
    fn used<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, used: &Used<'_>) -> Result<(), Caught> {
        self.iter()
            .try_for_each(|watcher| watcher.used(vcpu, cpu, used))
    }
    fn refused(&self, vcpu: VcpuId, refused: &Refused) -> Result<(), Caught> {
        self.iter()
            .try_for_each(|watcher| watcher.refused(vcpu, refused))
    }
    fn emulated(&self, vcpu: VcpuId, emulated: &Emulated) -> Result<(), Caught> {
        self.iter()
            .try_for_each(|watcher| watcher.emulated(vcpu, emulated))
    }
    fn judged(&self) -> Option<Judged> {
        self.as_ref().and_then(O::judged)
    }
    fn report(&self) -> Option<String> {
        self.as_ref().and_then(O::report)
    }
    fn violated<M: Physical>(&self, vcpu: VcpuId, cpu: &Cpu<M>, fault: Fault) -> Caught {
        self.as_ref()
            .map_or(Caught, |watcher| watcher.violated(vcpu, cpu, fault))
    }
}
