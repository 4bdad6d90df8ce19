//! What instructions work on: registers, and memory through the arrays in front of the MMU.
//!
//! Key type: [`Core`], which implements the emulator's [`vmmu_emu::Cpu`]. What an SVM hypervisor would intercept is an exit: the method says so and
//! leaves [`Core::exit`]. Neighbours: [`super::access`] has the slow ways of memory, [`super::Processor`] runs instructions on it.
//!
//! Invariants:
//! 1. A method that fails has done nothing that the guest can see.
//! 2. The front arrays hold what the observer has agreed to, and nothing for writing to a watched frame.

use std::sync::Arc;

use vmmu::TlbFlush;
use vmmu::host::VcpuId;
use vmmu_cpu::{Access as MmuAccess, Cpu as MmuCpu, Flush, Hpa, Kind, Privilege, Va};
use vmmu_emu::system::features::Features;
use vmmu_emu::system::msr;
use vmmu_emu::{Access, Control, Cpu, Flags, Invalidation, State, Stop, Word};

use crate::check::{Epoch, Observer};
use crate::clock::Clock;
use crate::cpu::exit::{Exit, Intercept};
use crate::cpu::front::{Class, Front};
use crate::cpu::walked::Walked;
use crate::memory::Memory;

/// Which engine's tables the processor walks, which decides what exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dimensions {
    /// The tables in force are the hypervisor's: #PF, INVLPG and control registers exit.
    Shadow,
    /// Guest tables on top of nested ones: the guest keeps its own tables and CR3.
    Nested,
}

/// The state of a processor that instructions work on.
#[derive(Debug)]
pub(crate) struct Core<O> {
    pub(super) state: State,
    pub(super) front: Front,
    pub(super) mmu: MmuCpu<Walked<O>>,
    pub(super) memory: Arc<Memory>,
    pub(super) dimensions: Dimensions,
    pub(super) features: Features,
    /// Why the last instruction stopped with [`Stop::Exit`].
    pub(super) exit: Option<Exit>,
    /// The block that is being executed may have changed.
    pub(super) stale: bool,
    /// Pages that a closed front found for this instruction's stores: they stay found until it ends.
    pub(super) granted: Vec<(u64, Hpa)>,
    pub(super) clock: Clock,
    /// How far the time-stamp counter is ahead of the clock.
    pub(super) timestamp_offset: u64,
    /// Instructions done, and how many were when the guest was entered.
    pub(super) done: u64,
    pub(super) done_before: u64,
    pub(super) observer: Arc<O>,
    pub(super) epoch: Epoch,
    pub(super) vcpu: VcpuId,
    /// How often the front arrays had no answer.
    pub(super) misses: u64,
    /// How often data was accessed, or a piece of it.
    pub(super) accesses: u64,
}

/// Returns what the MMU is asked for an access to data.
#[inline(always)]
const fn privilege(state: &State, access: Access) -> Privilege {
    match access {
        Access::SystemRead | Access::SystemWrite => Privilege::Implicit,
        _ => data_privilege(state),
    }
}

#[inline(always)]
const fn data_privilege(state: &State) -> Privilege {
    if state.cpl == 3 {
        Privilege::User
    } else if state.flags.contains(Flags::AC) {
        Privilege::SupervisorAc
    } else {
        Privilege::Supervisor
    }
}

#[inline(always)]
const fn kind(access: Access) -> Kind {
    match access {
        Access::Read | Access::SystemRead => Kind::Read,
        Access::Update | Access::Write | Access::SystemWrite => Kind::Write,
    }
}

impl<O: Observer> Core<O> {
    /// Returns what an access to data is to the MMU.
    #[inline(always)]
    pub(super) const fn data(&self, access: Access) -> MmuAccess {
        MmuAccess::new(kind(access), privilege(&self.state, access))
    }

    /// Returns what a fetch is to the MMU.
    #[inline(always)]
    pub(super) const fn code(&self) -> MmuAccess {
        let privilege = if self.state.cpl == 3 {
            Privilege::User
        } else {
            Privilege::Supervisor
        };
        MmuAccess::new(Kind::Execute, privilege)
    }

    /// Leaves the guest before this instruction.
    #[cold]
    pub(super) fn leave<T>(&mut self, exit: Exit) -> Result<T, Stop> {
        self.exit = Some(exit);
        Err(Stop::Exit)
    }

    fn intercept<T>(&mut self, what: Intercept) -> Result<T, Stop> {
        self.leave(Exit::Intercept(what))
    }

    /// Drops what the front arrays hold.
    pub(super) fn clear_front(&mut self) {
        self.front.clear();
        if self.observer.watches() {
            self.observer.renewed(self.vcpu, self.epoch);
        }
    }
}

impl<O: Observer> Cpu for Core<O> {
    #[inline(always)]
    fn state(&self) -> &State {
        &self.state
    }
    #[inline(always)]
    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn features(&self) -> Features {
        self.features
    }

    #[inline(always)]
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        self.accesses += 1;
        let wanted = self.data(access);
        match self
            .front
            .get(Class::new(wanted.kind, wanted.privilege), at, W::BYTES)
        {
            Some(hpa) => Ok(self.memory.load(hpa)),
            None => self.load_slowly(at, access),
        }
    }

    #[inline(always)]
    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        self.accesses += 1;
        let wanted = self.data(access);
        match self
            .front
            .get(Class::new(wanted.kind, wanted.privilege), at, W::BYTES)
        {
            Some(hpa) => {
                self.memory.store(hpa, value);
                self.stale |= self.memory.wrote(hpa);
                Ok(())
            }
            None => self.store_slowly(at, value, access),
        }
    }

    /// Looks up once what lies within a page that the front arrays know.
    #[inline]
    fn load_vector(&mut self, at: u64, access: Access) -> Result<u128, Stop> {
        self.accesses += 1;
        let wanted = self.data(access);
        let class = Class::new(wanted.kind, wanted.privilege);
        let (low, high): (u64, u64) = match self.front.get_byte(class, at) {
            Some(hpa) if is_within_a_page(at) => (
                self.memory.load(hpa),
                self.memory.load(Hpa::new(hpa.get() + 8)),
            ),
            _ => (
                self.load(at, access)?,
                self.load(at.wrapping_add(8), access)?,
            ),
        };
        Ok(u128::from(high) << 64 | u128::from(low))
    }

    /// As [`Self::load_vector`].
    #[inline]
    fn store_vector(&mut self, at: u64, value: u128, access: Access) -> Result<(), Stop> {
        self.accesses += 1;
        let wanted = self.data(access);
        let class = Class::new(wanted.kind, wanted.privilege);
        let (low, high) = (value as u64, (value >> 64) as u64);
        if let Some(hpa) = self.front.get_byte(class, at)
            && is_within_a_page(at)
        {
            self.memory.store(hpa, low);
            self.memory.store(Hpa::new(hpa.get() + 8), high);
            self.stale |= self.memory.wrote(hpa);
            return Ok(());
        }
        self.reach(at, 16, access)?;
        self.store(at, low, access)?;
        self.store(at.wrapping_add(8), high, access)
    }

    #[inline]
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        self.accesses += 1;
        let wanted = self.data(Access::Write);
        match self
            .front
            .get(Class::new(wanted.kind, wanted.privilege), at, W::BYTES)
        {
            Some(hpa) => {
                let found = self.memory.exchange_if(hpa, current, new);
                self.stale |= self.memory.wrote(hpa);
                Ok(found)
            }
            None => self.exchange_slowly(at, current, new),
        }
    }

    /// What the front arrays know is plain memory, which nobody asks about.
    fn copy(&mut self, from: u64, to: u64, len: usize) -> bool {
        self.accesses += 2;
        let (read, write) = (self.data(Access::Read), self.data(Access::Write));
        let read = Class::new(read.kind, read.privilege);
        let write = Class::new(write.kind, write.privilege);
        let found = (
            self.front.get_byte(read, from),
            self.front.get_byte(write, to),
        );
        let (Some(from), Some(to)) = found else {
            return false;
        };
        self.memory.copy_bytes(from, to, len);
        self.stale |= self.memory.wrote(to);
        true
    }

    fn fill(&mut self, at: u64, pattern: u64, len: usize) -> bool {
        self.accesses += 1;
        let write = self.data(Access::Write);
        let write = Class::new(write.kind, write.privilege);
        let Some(hpa) = self.front.get_byte(write, at) else {
            return false;
        };
        self.memory.fill_bytes(hpa, pattern, len);
        self.stale |= self.memory.wrote(hpa);
        true
    }

    #[inline]
    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        self.reach(at, len, access)
    }

    fn port_in(&mut self, _: u16, _: usize) -> Result<u32, Stop> {
        self.intercept(Intercept::In)
    }
    fn port_out(&mut self, _: u16, _: usize, _: u32) -> Result<(), Stop> {
        self.intercept(Intercept::Out)
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, Stop> {
        match msr::read(&self.state, number) {
            Ok(value) if is_the_guests_own(number) => Ok(value),
            _ => self.intercept(Intercept::Rdmsr),
        }
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        if !is_the_guests_own(number) {
            return self.intercept(Intercept::Wrmsr);
        }
        Ok(msr::write(&mut self.state, &self.features, number, value)?)
    }

    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        match (register, self.dimensions) {
            (Control::Cr3, Dimensions::Nested) => {
                if self.mmu.mov_cr3(value).is_err() {
                    return Err(vmmu_emu::Exception::GENERAL_PROTECTION.into());
                }
                self.state.cr3 = value;
                self.observer
                    .root_loaded(self.vcpu, vmmu::paging::Cr3::new(value));
                self.clear_front();
                Ok(())
            }
            _ => self.intercept(Intercept::Control),
        }
    }

    fn invalidate(&mut self, what: Invalidation) -> Result<(), Stop> {
        match (what, self.dimensions) {
            (Invalidation::Caches, _) => Ok(()),
            (_, Dimensions::Shadow) => self.intercept(Intercept::Invlpg),
            (Invalidation::Page(at), Dimensions::Nested) => {
                self.mmu.invlpg(Va::new(at));
                self.observer
                    .flushed(self.vcpu, TlbFlush::Address(vmmu::addr::Gva::new(at)));
                // A large page has many places.
                self.clear_front();
                Ok(())
            }
            (_, Dimensions::Nested) => {
                self.mmu.flush(Flush::Vpid(self.mmu.asid()));
                self.observer.flushed(self.vcpu, TlbFlush::All);
                self.clear_front();
                Ok(())
            }
        }
    }

    fn cpuid(&mut self, _: u32, _: u32) -> Result<[u32; 4], Stop> {
        self.intercept(Intercept::Cpuid)
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        let time = self.clock.timestamp(self.done - self.done_before);
        Ok(time.wrapping_add(self.timestamp_offset))
    }
    fn halt(&mut self) -> Result<(), Stop> {
        self.intercept(Intercept::Hlt)
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        self.intercept(Intercept::Vmmcall)
    }
}

/// Says whether 16 bytes do not reach the next page.
const fn is_within_a_page(at: u64) -> bool {
    at & 0xfff <= 4096 - 16
}

/// Says whether a model-specific register passes through: it decides nothing that the hypervisor answers for.
const fn is_the_guests_own(number: u32) -> bool {
    // SYSENTER's, SYSCALL's, the bases of FS and GS, TSC_AUX.
    matches!(number, 0x174..=0x176 | 0xc000_0081..=0xc000_0084 | 0xc000_0100..=0xc000_0103)
}
