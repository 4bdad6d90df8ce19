//! Memory accesses that the front arrays have no answer for: misaligned, across pages, not seen lately.
//!
//! Invariants:
//! 1. An access across two pages finds both before it touches either.
//! 2. What [`Core::reach`] found for an instruction's stores stays found until the instruction ends.

use vmmu_cpu::{Access as MmuAccess, EptQualification, Fault, Hpa, Kind, NpfCode, Translation, Va};
use vmmu_emu::{Access, Cpu, Exception, Stop, Word};

use vmmu::walk::PageFaultCode;

use crate::check::{GuestFault, Observer, Refused, Time, Used};
use crate::cpu::core::{Core, Dimensions};
use crate::cpu::exit::Exit;
use crate::cpu::front::Class;

/// The vector of a page fault.
const PAGE_FAULT: u8 = 14;

impl<O: Observer> Core<O> {
    /// Finds where the byte at `at` is, for an access that does not cross its page; `data` says what an instruction does there, if it is no fetch.
    pub(super) fn find(
        &mut self,
        at: u64,
        wanted: MmuAccess,
        data: Option<Access>,
    ) -> Result<Hpa, Stop> {
        if let Some(hpa) = self
            .front
            .get_byte(Class::new(wanted.kind, wanted.privilege), at)
        {
            return Ok(hpa);
        }
        if wanted.kind == Kind::Write
            && let Some((_, page)) = self.granted.iter().find(|(page, _)| *page == at & !0xfff)
        {
            return Ok(page.plus(at & 0xfff));
        }
        self.misses += 1;
        let start = self.observer.now();
        match self.mmu.translate(Va::new(at), wanted) {
            Ok(translation) => self.take(at, wanted, &translation, start),
            Err(fault) => self.fault(fault, wanted, data, start),
        }
    }

    /// Uses a translation, and keeps it for the next time.
    fn take(
        &mut self,
        at: u64,
        access: MmuAccess,
        translation: &Translation,
        start: Time,
    ) -> Result<Hpa, Stop> {
        let hpa = translation.hpa;
        if self.observer.watches() {
            let used = Used {
                va: Va::new(at),
                access,
                translation,
                start,
                rip: self.state.rip(),
            };
            if self.observer.used(self.vcpu, &self.mmu, &used).is_err() {
                return self.leave(Exit::Caught);
            }
        }
        let stays_told = self.observer.watches()
            && access.kind == Kind::Write
            && self.observer.is_watched(hpa.frame());
        if !self.front.is_open() || stays_told {
            if access.kind == Kind::Write {
                self.granted
                    .push((at & !0xfff, Hpa::new(hpa.get() & !0xfff)));
            }
            return Ok(hpa);
        }
        self.front.fill(access, at, hpa);
        // What can be written can nearly always be read, and is.
        let read = MmuAccess::new(Kind::Read, access.privilege);
        if access.kind == Kind::Write
            && !self.observer.watches()
            && self.mmu.permits(&translation.entry).contains(read)
        {
            self.front.fill(read, at, hpa);
        }
        Ok(hpa)
    }

    /// Turns the MMU's fault into the guest's exception or an exit.
    #[cold]
    fn fault<T>(
        &mut self,
        fault: Fault,
        wanted: MmuAccess,
        access: Option<Access>,
        start: Time,
    ) -> Result<T, Stop> {
        match (fault, self.dimensions) {
            (Fault::Page { va, code }, Dimensions::Shadow) => {
                self.leave(Exit::PageFault { va, code, access })
            }
            (Fault::Page { va, code }, Dimensions::Nested) => {
                self.state.fault_address = va.get();
                let code = PageFaultCode::from_bits_retain(code.bits());
                self.refused(va, wanted, GuestFault::Page(code), start)?;
                Err(Exception::with_code(PAGE_FAULT, code.bits() as u16).into())
            }
            (Fault::Nested { gpa, code }, _) => {
                let va = Va::new(0);
                self.leave(Exit::NestedFault { gpa, va, code })
            }
            (
                Fault::EptViolation {
                    gpa,
                    va,
                    qualification,
                },
                _,
            ) => {
                let code = cause(qualification);
                self.leave(Exit::NestedFault { gpa, va, code })
            }
            (Fault::EptMisconfig { .. }, _) => {
                let _ = self.observer.violated(self.vcpu, &self.mmu, fault);
                self.leave(Exit::Caught)
            }
            (Fault::NotCanonical(_) | Fault::BadPdpte(_), _) => {
                Err(Exception::GENERAL_PROTECTION.into())
            }
            (Fault::Violation(violation), _) => {
                let _ = self.observer.violated(self.vcpu, &self.mmu, fault);
                self.leave(Exit::Violation(violation))
            }
            _ => self.leave(Exit::Unsupported),
        }
    }

    /// Tells the observer that the guest is to see a fault.
    fn refused(
        &mut self,
        va: Va,
        access: MmuAccess,
        fault: GuestFault,
        start: Time,
    ) -> Result<(), Stop> {
        let refused = Refused {
            va,
            access,
            fault,
            start,
            rip: self.state.rip(),
        };
        match self.observer.refused(self.vcpu, &refused) {
            Ok(()) => Ok(()),
            Err(_) => self.leave(Exit::Caught),
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn load_slowly<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let wanted = self.data(access);
        let head = (4096 - (at & 0xfff)) as usize;
        if head >= W::BYTES {
            let hpa = self.find(at, wanted, Some(access))?;
            return Ok(self.memory.load(hpa));
        }
        let low = self.find(at, wanted, Some(access))?;
        let high = self.find(at.wrapping_add(head as u64), wanted, Some(access))?;
        let mut bytes = [0; 8];
        self.memory.read(low, &mut bytes[..head]);
        self.memory.read(high, &mut bytes[head..W::BYTES]);
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn store_slowly<W: Word>(
        &mut self,
        at: u64,
        value: W,
        access: Access,
    ) -> Result<(), Stop> {
        let wanted = self.data(access);
        let head = (4096 - (at & 0xfff)) as usize;
        if head >= W::BYTES {
            let hpa = self.find(at, wanted, Some(access))?;
            self.observer
                .store(hpa, W::BYTES, || self.memory.store(hpa, value));
            self.stale |= self.memory.wrote(hpa);
            return Ok(());
        }
        let low = self.find(at, wanted, Some(access))?;
        let high = self.find(at.wrapping_add(head as u64), wanted, Some(access))?;
        let bytes = value.zero_extend().to_le_bytes();
        for (hpa, part) in [(low, &bytes[..head]), (high, &bytes[head..W::BYTES])] {
            self.observer
                .store(hpa, part.len(), || self.memory.write(hpa, part));
            self.stale |= self.memory.wrote(hpa);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(super) fn exchange_slowly<W: Word>(
        &mut self,
        at: u64,
        current: W,
        new: W,
    ) -> Result<W, Stop> {
        if (at & 0xfff) as usize + W::BYTES > 4096 {
            // Across two pages: a processor locks the bus, which nobody relies on.
            self.reach(at, W::BYTES, Access::Write)?;
            let found: W = self.load(at, Access::Update)?;
            if found == current {
                self.store(at, new, Access::Write)?;
            }
            return Ok(found);
        }
        let hpa = self.find(at, self.data(Access::Write), Some(Access::Write))?;
        let found = self
            .observer
            .store(hpa, W::BYTES, || self.memory.exchange_if(hpa, current, new));
        self.stale |= self.memory.wrote(hpa);
        Ok(found)
    }

    /// Finds every page of `len` bytes at `at`.
    pub(super) fn reach(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        let wanted = self.data(access);
        let last = at.wrapping_add(len.max(1) as u64 - 1);
        let mut page = at;
        loop {
            self.find(page, wanted, Some(access))?;
            if page & !0xfff == last & !0xfff {
                return Ok(());
            }
            page = (page & !0xfff).wrapping_add(4096);
        }
    }
}

/// Returns what an EPT violation's qualification says, as the error code of a nested page fault says it.
fn cause(qualification: EptQualification) -> NpfCode {
    let is = |bit| qualification.contains(bit);
    let mut code = NpfCode::USER;
    code.set(
        NpfCode::PRESENT,
        is(EptQualification::READABLE)
            || is(EptQualification::WRITABLE)
            || is(EptQualification::EXECUTABLE),
    );
    code.set(NpfCode::WRITE, is(EptQualification::WRITE));
    code.set(NpfCode::FETCH, is(EptQualification::FETCH));
    if is(EptQualification::FINAL) {
        code | NpfCode::FINAL
    } else {
        code | NpfCode::TABLE
    }
}
