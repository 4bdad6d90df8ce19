//! One instruction, executed by the hypervisor: the processor's state, and memory through the guest's own tables.
//!
//! Key type: [`Emulator`], a second implementation of the emulator's [`Cpu`]. It reaches devices where no memory is, reports its writes to the
//! library, and notes in [`Follow`] what is to be done when the instruction is over.
//!
//! Invariants:
//! 1. Translations are those of the guest's tables now, rights included.
//! 2. Frames stay at their place while one is accessed; the library is called when none is.

use vmmu::addr::{Gpa, Gva};
use vmmu::paging::{Cr0, Cr4, Rflags};
use vmmu::walk::{AccessKind, PageFaultCode, Privilege, WalkFailure};
use vmmu_cpu::{Access as MmuAccess, Hpa, Kind, Privilege as Rank, Va};
use vmmu_emu::system::features::Features;
use vmmu_emu::system::{control, msr};
use vmmu_emu::{
    Access, Control, Cpu, DecodeError, Exception, Flags, Invalidation, Mode, State, Stop, Word,
    decode,
};

use crate::check::{GuestFault, Observer};
use crate::devices::{Effect, Time};
use crate::vmm::fault::Attempt;
use crate::vmm::runner::Runner;
use crate::vmm::walk::Walked;

/// The vector of a page fault.
const PAGE_FAULT: u8 = 14;
/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;
/// The time-stamp counter.
const TSC: u32 = 0x10;
/// What was added to the time-stamp counter, by writes to either (Intel SDM vol. 3, section 18.17.3).
const TSC_ADJUST: u32 = 0x3b;
/// The offset of the local APIC's task priority register (Intel SDM vol. 3, section 11.8.6).
const TASK_PRIORITY: u64 = 0x80;
/// EFER.
const EFER: u32 = 0xc000_0080;
/// How often a translation that raced is tried again.
const ATTEMPTS: u32 = 1000;

/// What is to be done when the instruction is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Follow {
    /// Nothing.
    #[default]
    Nothing,
    /// CR3 was loaded.
    Root,
    /// CR0, CR4 or EFER changed.
    Paging,
    /// A page is no longer to be found in caches.
    Page(Gva),
    /// Everything isn't.
    All,
    /// The processor sleeps until an interrupt comes.
    Halt,
    /// A device did something.
    Effect(Effect),
}

/// Why the emulator gave up.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The library can't serve it.
    Library(vmmu::Error),
    /// A guest table lies where nothing is.
    TableMissing(Gpa),
    /// Code lies in device memory.
    Code(Gpa),
    /// The observer caught it.
    Caught,
}

/// Where bytes of one page are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Ram(Hpa, Gpa),
    Device(Gpa),
}

/// The emulation of one instruction.
#[derive(Debug)]
pub(super) struct Emulator<'a, 'm, O: Observer> {
    pub(super) runner: &'a mut Runner<'m, O>,
    pub(super) follow: Follow,
    pub(super) trouble: Option<Trouble>,
    now: Time,
}

impl<'a, 'm, O: Observer> Emulator<'a, 'm, O> {
    pub(super) fn new(runner: &'a mut Runner<'m, O>) -> Self {
        let now = runner.vm.clock.now();
        Self {
            runner,
            follow: Follow::Nothing,
            trouble: None,
            now,
        }
    }

    fn give_up<T>(&mut self, trouble: Trouble) -> Result<T, Stop> {
        self.trouble = Some(trouble);
        Err(Stop::Exit)
    }

    /// Executes the instruction at the guest's instruction pointer; returns the trap that follows it.
    pub(super) fn execute(&mut self) -> Result<Option<Exception>, Stop> {
        let (bytes, len) = self.fetch()?;
        let mode = Mode::of(self.state());
        match decode::<Self>(&bytes[..len], mode) {
            Ok(op) if self.state().is_watched() => op.execute_watched(self),
            Ok(op) => op.execute(self).map(|()| None),
            Err(DecodeError::Invalid | DecodeError::NotOffered) => Err(Exception::UNDEFINED.into()),
            Err(DecodeError::TooLong) => Err(Exception::GENERAL_PROTECTION.into()),
            Err(DecodeError::CutShort) if len < bytes.len() => {
                // It goes on in the next page, which can't be fetched: that is the guest's fault to see.
                let next = self.runner.instruction_address().wrapping_add(len as u64);
                self.fetch_part(next, &mut [0])?;
                Err(Stop::Unsupported)
            }
            Err(DecodeError::CutShort | DecodeError::Unsupported) => Err(Stop::Unsupported),
        }
    }

    /// Fetches the instruction's bytes, as many as there are.
    pub(super) fn fetch(&mut self) -> Result<([u8; 15], usize), Stop> {
        let at = self.runner.instruction_address();
        let mut bytes = [0; 15];
        let head = (4096 - at.page_offset() as usize).min(15);
        self.fetch_part(at, &mut bytes[..head])?;
        if head < 15 {
            // The instruction may end before the next page, which need not be there.
            let next = at.wrapping_add(head as u64);
            if self.fetch_part(next, &mut bytes[head..]).is_err() {
                self.trouble = None;
                return Ok((bytes, head));
            }
        }
        Ok((bytes, 15))
    }

    fn fetch_part(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Stop> {
        let privilege = self.privilege(Access::Read);
        let gpa = self.walk(
            |runner| runner.translate(at, AccessKind::Fetch, privilege),
            at,
        )?;
        if self.runner.vm.guest.read(gpa, bytes) {
            Ok(())
        } else {
            self.give_up(Trouble::Code(gpa))
        }
    }

    fn privilege(&self, access: Access) -> Privilege {
        let state = self.runner.processor.state();
        match access {
            Access::SystemRead | Access::SystemWrite => Privilege::KERNEL,
            _ => Privilege::new(state.cpl, Rflags::from_bits_retain(state.flags.bits())),
        }
    }

    /// Walks the guest's tables.
    fn walk(
        &mut self,
        mut walk: impl FnMut(&mut Runner<'m, O>) -> Walked,
        at: Gva,
    ) -> Result<Gpa, Stop> {
        for _ in 0..ATTEMPTS {
            match walk(self.runner) {
                Ok(Ok(walk)) => return Ok(walk.gpa()),
                Ok(Err(WalkFailure::Fault(fault))) => {
                    self.state_mut().fault_address = at.get();
                    return Err(Exception::with_code(PAGE_FAULT, fault.code.bits() as u16).into());
                }
                Ok(Err(WalkFailure::NonCanonical)) => {
                    return Err(Exception::GENERAL_PROTECTION.into());
                }
                Ok(Err(WalkFailure::MemoryMissing { gpa, .. })) => {
                    return self.give_up(Trouble::TableMissing(gpa));
                }
                Ok(Err(_)) => std::thread::yield_now(),
                Err(error) => return self.give_up(Trouble::Library(error)),
            }
        }
        self.give_up(Trouble::Library(vmmu::Error::VcpuBusy(
            self.runner.vcpu.id(),
        )))
    }

    /// Finds the bytes at `at`, which do not cross a page.
    fn find(&mut self, at: u64, access: Access) -> Result<Gpa, Stop> {
        let kind = match access {
            Access::Read | Access::SystemRead => AccessKind::Read,
            Access::Update | Access::Write | Access::SystemWrite => AccessKind::Write,
        };
        let privilege = self.privilege(access);
        let attempt = Attempt {
            va: Va::new(at),
            access: self.seen(access),
            start: self.runner.vm.observer.now(),
        };
        let gva = Gva::new(at);
        let found = self.walk(|runner| Ok(runner.touch(gva, kind, privilege)), gva);
        let allowed = match found {
            Ok(gpa) => self.runner.may_emulate(&attempt, gpa, None),
            Err(Stop::Exception(Exception {
                vector: PAGE_FAULT,
                code: Some(code),
            })) => {
                let code = PageFaultCode::from_bits_retain(u32::from(code));
                self.runner.may_see(&attempt, GuestFault::Page(code))
            }
            Err(_) => true,
        };
        if allowed {
            found
        } else {
            self.give_up(Trouble::Caught)
        }
    }

    /// Returns an access to data as the observer is told of it.
    fn seen(&self, access: Access) -> MmuAccess {
        let kind = match access {
            Access::Read | Access::SystemRead => Kind::Read,
            Access::Update | Access::Write | Access::SystemWrite => Kind::Write,
        };
        let state = self.runner.processor.state();
        let privilege = match access {
            Access::SystemRead | Access::SystemWrite => Rank::Implicit,
            _ if state.cpl == 3 => Rank::User,
            _ if state.flags.contains(Flags::AC) => Rank::SupervisorAc,
            _ => Rank::Supervisor,
        };
        MmuAccess::new(kind, privilege)
    }

    fn place(&self, gpa: Gpa) -> Place {
        self.runner
            .vm
            .guest
            .hpa(gpa)
            .map_or(Place::Device(gpa), |hpa| Place::Ram(hpa, gpa))
    }

    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) {
        if !self.runner.vm.guest.read(gpa, bytes) {
            let vm = self.runner.vm;
            let value = vm
                .platform
                .mmio_read(self.runner.number(), self.now, gpa, bytes.len());
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let vm = self.runner.vm;
        let settled = vm.guest.settle();
        let place = self.place(gpa);
        match place {
            Place::Ram(hpa, _) => {
                let memory = &vm.memory;
                vm.reported(gpa, bytes.len(), || {
                    vm.observer.store(hpa, bytes.len(), || match *bytes {
                        [a, b, c, d, e, f, g, h] => {
                            memory.store(hpa, u64::from_le_bytes([a, b, c, d, e, f, g, h]))
                        }
                        [a, b, c, d] => memory.store(hpa, u32::from_le_bytes([a, b, c, d])),
                        [a, b] => memory.store(hpa, u16::from_le_bytes([a, b])),
                        _ => memory.write(hpa, bytes),
                    });
                    memory.wrote(hpa);
                    drop(settled);
                });
            }
            Place::Device(gpa) => {
                drop(settled);
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                let value = u64::from_le_bytes(word);
                let effect =
                    vm.platform
                        .mmio_write(self.runner.number(), self.now, gpa, bytes.len(), value);
                self.effect(effect);
                if gpa.page_offset() == TASK_PRIORITY {
                    // CR8 is another name of the register, and the processor reads it by itself.
                    let class = vm.platform.task_priority(self.runner.number());
                    self.state_mut().cr8 = u64::from(class);
                }
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        if effect != Effect::None {
            self.follow = Follow::Effect(effect);
        }
    }
}

/// Returns how many of `bytes` bytes at `at` lie in its page.
const fn head(at: u64, bytes: usize) -> usize {
    let left = 4096 - (at & 0xfff) as usize;
    if left < bytes { left } else { bytes }
}

impl<O: Observer> Cpu for Emulator<'_, '_, O> {
    fn state(&self) -> &State {
        self.runner.processor.state()
    }
    fn state_mut(&mut self) -> &mut State {
        self.runner.processor.state_mut()
    }
    fn features(&self) -> Features {
        self.runner.vm.shape.features()
    }

    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop> {
        let head = head(at, W::BYTES);
        let low = self.find(at, access)?;
        let mut bytes = [0; 8];
        if head < W::BYTES {
            let high = self.find(at.wrapping_add(head as u64), access)?;
            self.read(high, &mut bytes[head..W::BYTES]);
        }
        self.read(low, &mut bytes[..head]);
        Ok(W::truncate(u64::from_le_bytes(bytes)))
    }

    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop> {
        let head = head(at, W::BYTES);
        let low = self.find(at, access)?;
        let bytes = value.zero_extend().to_le_bytes();
        if head < W::BYTES {
            let high = self.find(at.wrapping_add(head as u64), access)?;
            self.write(high, &bytes[head..W::BYTES]);
        }
        self.write(low, &bytes[..head]);
        Ok(())
    }

    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop> {
        if head(at, W::BYTES) < W::BYTES {
            self.check_write(at, W::BYTES, Access::Write)?;
            let found: W = self.load(at, Access::Update)?;
            if found == current {
                self.store(at, new, Access::Write)?;
            }
            return Ok(found);
        }
        let gpa = self.find(at, Access::Write)?;
        let vm = self.runner.vm;
        let settled = vm.guest.settle();
        if let Place::Ram(hpa, _) = self.place(gpa) {
            return Ok(vm.reported(gpa, W::BYTES, || {
                let found = vm
                    .observer
                    .store(hpa, W::BYTES, || vm.memory.exchange_if(hpa, current, new));
                vm.memory.wrote(hpa);
                drop(settled);
                found
            }));
        }
        drop(settled);
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes[..W::BYTES]);
        let found = W::truncate(u64::from_le_bytes(bytes));
        if found == current {
            self.write(gpa, &new.zero_extend().to_le_bytes()[..W::BYTES]);
        }
        Ok(found)
    }

    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop> {
        let mut page = at;
        let last = at.wrapping_add(len.max(1) as u64 - 1);
        let access = match access {
            Access::Read => Access::Write,
            Access::SystemRead => Access::SystemWrite,
            other => other,
        };
        loop {
            self.find(page, access)?;
            if page & !0xfff == last & !0xfff {
                return Ok(());
            }
            page = (page & !0xfff).wrapping_add(4096);
        }
    }

    fn port_in(&mut self, port: u16, bytes: usize) -> Result<u32, Stop> {
        *self.runner.port_reads.entry(port).or_default() += 1;
        let vm = self.runner.vm;
        Ok(vm.platform.port_read(self.now, port, bytes))
    }
    fn port_out(&mut self, port: u16, bytes: usize, value: u32) -> Result<(), Stop> {
        let vm = self.runner.vm;
        let effect = vm.platform.port_write(self.now, port, bytes, value);
        self.effect(effect);
        Ok(())
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, Stop> {
        match number {
            APIC_BASE => Ok(self.runner.vm.platform.apic_base(self.runner.number())),
            TSC => self.timestamp(),
            TSC_ADJUST => Ok(self.runner.processor.timestamp_offset()),
            _ => Ok(msr::read(self.state(), number)?),
        }
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop> {
        match number {
            APIC_BASE => {
                let vm = self.runner.vm;
                let set = vm.platform.set_apic_base(self.runner.number(), value);
                set.map_err(|_| Exception::GENERAL_PROTECTION.into())
            }
            TSC | TSC_ADJUST => {
                let before = if number == TSC { self.now.0 } else { 0 };
                let offset = value.wrapping_sub(before);
                self.runner.processor.set_timestamp_offset(offset);
                Ok(())
            }
            _ => {
                let features = self.features();
                msr::write(self.state_mut(), &features, number, value)?;
                if number == EFER {
                    self.follow = Follow::Paging;
                }
                Ok(())
            }
        }
    }

    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop> {
        let old = (self.state().cr0, self.state().cr4);
        control::set(self.state_mut(), register, value);
        match register {
            Control::Cr3 => self.follow = Follow::Root,
            Control::Cr8 => {
                let vm = self.runner.vm;
                vm.platform
                    .set_task_priority(self.runner.number(), value as u8);
            }
            Control::Cr0 | Control::Cr4 => {
                let paging = Cr0::PE | Cr0::PG | Cr0::WP;
                let changed = (old.0 ^ self.state().cr0) & paging.bits();
                // Every write of CR4 may be meant as a flush.
                let matters = changed != 0
                    || register == Control::Cr4
                        && Cr4::from_bits_retain(old.1 ^ value) != Cr4::empty();
                if matters {
                    self.follow = Follow::Paging;
                }
            }
        }
        Ok(())
    }

    fn invalidate(&mut self, what: Invalidation) -> Result<(), Stop> {
        self.follow = match what {
            Invalidation::Page(at) | Invalidation::PageOf { at, .. } => Follow::Page(Gva::new(at)),
            Invalidation::Spaces { .. } => Follow::All,
            Invalidation::Caches => Follow::Nothing,
        };
        Ok(())
    }

    fn cpuid(&mut self, leaf: u32, _: u32) -> Result<[u32; 4], Stop> {
        Ok(self.runner.vm.shape.cpuid(self.runner.number() as u8, leaf))
    }
    fn timestamp(&mut self) -> Result<u64, Stop> {
        let offset = self.runner.processor.timestamp_offset();
        Ok(self.now.0.wrapping_add(offset))
    }
    fn halt(&mut self) -> Result<(), Stop> {
        self.follow = Follow::Halt;
        Ok(())
    }
    fn hypercall(&mut self) -> Result<(), Stop> {
        Err(Exception::UNDEFINED.into())
    }
}
