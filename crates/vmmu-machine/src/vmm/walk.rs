//! The guest's own tables, walked by the hypervisor: for emulated instructions, and for reports.
//!
//! Under shadow paging the library walks; under nested paging it knows nothing of the guest's tables.
//!
//! Invariants:
//! 1. A frame stays at its place while an entry of it is read or marked.

use vmmu::addr::{Gpa, Gva};
use vmmu::walk::{
    Access as GuestAccess, AccessKind, CasOutcome, Gpte, GpteError, GpteMemory, GpteWidth,
    Privilege, Walk, WalkFailure,
};

use crate::check::Observer;
use crate::cpu::Dimensions;
use crate::memory::Memory;
use crate::vmm::guest::GuestFrames;
use crate::vmm::paging::state_of;
use crate::vmm::runner::Runner;

/// What a walk gave, or why it gave nothing.
pub(super) type Walked = Result<Result<Walk, WalkFailure>, vmmu::Error>;

impl<'m, O: Observer> Runner<'m, O> {
    /// Translates as the guest's own tables say.
    pub(super) fn translate(&mut self, gva: Gva, kind: AccessKind, privilege: Privilege) -> Walked {
        if self.vm.dimensions == Dimensions::Shadow {
            return self.vcpu.translate(gva, kind, privilege);
        }
        self.walker
            .set_state(state_of(self.processor.state(), &self.vm.shape));
        let tables = self.tables();
        let mut walk = Walk::new();
        let walked = self
            .walker
            .probe(&tables, gva, GuestAccess::new(kind, privilege), &mut walk);
        Ok(walked.map(|()| walk))
    }

    /// Translates for an access that happens: sets accessed and dirty bits.
    pub(super) fn touch(
        &mut self,
        gva: Gva,
        kind: AccessKind,
        privilege: Privilege,
    ) -> Result<Walk, WalkFailure> {
        self.walker
            .set_state(state_of(self.processor.state(), &self.vm.shape));
        self.walker
            .walk(&self.tables(), gva, GuestAccess::new(kind, privilege))
    }

    fn tables(&self) -> Tables<'m, O> {
        Tables {
            guest: &self.vm.guest,
            memory: &self.vm.memory,
            observer: &self.vm.observer,
        }
    }
}

/// Guest tables as the hypervisor reaches them for itself.
struct Tables<'m, O> {
    guest: &'m GuestFrames,
    memory: &'m Memory,
    observer: &'m O,
}

impl<O: Observer> GpteMemory for Tables<'_, O> {
    fn read(&self, at: Gpa, width: GpteWidth) -> Result<Gpte, GpteError> {
        let _settled = self.guest.settle();
        let hpa = self.guest.hpa(at).ok_or(GpteError::Missing)?;
        Ok(Gpte::new(match width {
            GpteWidth::Bytes8 => self.memory.load(hpa),
            GpteWidth::Bytes4 => u64::from(self.memory.load::<u32>(hpa)),
        }))
    }

    fn compare_exchange(
        &self,
        at: Gpa,
        width: GpteWidth,
        current: Gpte,
        new: Gpte,
    ) -> Result<CasOutcome, GpteError> {
        // The frame stays, and whoever moves it later moves the marks along.
        let _settled = self.guest.settle();
        let hpa = self.guest.hpa(at).ok_or(GpteError::Missing)?;
        let (current, new) = (current.raw(), new.raw());
        let found = match width {
            GpteWidth::Bytes8 => {
                let exchange = || self.memory.exchange_if(hpa, current, new);
                self.observer.store(hpa, 8, exchange)
            }
            GpteWidth::Bytes4 => {
                let exchange = || self.memory.exchange_if(hpa, current as u32, new as u32);
                u64::from(self.observer.store(hpa, 4, exchange))
            }
        };
        Ok(if found == current {
            CasOutcome::Done
        } else {
            CasOutcome::Lost
        })
    }
}
