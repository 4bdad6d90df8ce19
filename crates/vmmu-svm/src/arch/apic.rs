//! The local APIC of the processor that asks (AMD APM vol. 2, section 16.3).
//!
//! Key types: [`LocalApic`], [`ApicRegister`]. The guest's processors use the same ones: each runs on the host's processor with the same
//! identifier, reads its registers directly, and has its writes passed on by [`crate::machine`].
//!
//! Invariants:
//! 1. The destination register is after each of the host's own interrupts what the guest has written.

use vmmu::addr::Gpa;

/// Where every local APIC is.
pub const BASE: Gpa = Gpa::new(0xfee0_0000);

/// A register, by its offset in the page: a multiple of 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicRegister(u16);

impl ApicRegister {
    /// The identifier.
    pub const ID: Self = Self(0x20);
    /// The priority below which interrupts wait.
    pub const TASK_PRIORITY: Self = Self(0x80);
    /// The end of an interrupt.
    pub const END: Self = Self(0xb0);
    /// The logical destination.
    pub const LOGICAL_DESTINATION: Self = Self(0xd0);
    /// The format of logical destinations.
    pub const DESTINATION_FORMAT: Self = Self(0xe0);
    /// The spurious interrupt's vector, and the bit that switches the APIC on.
    pub const SPURIOUS: Self = Self(0xf0);
    /// The first of eight registers that say which interrupts are being served.
    pub const IN_SERVICE: Self = Self(0x100);
    /// The lower half of the interrupt command, whose write sends.
    pub const COMMAND: Self = Self(0x300);
    /// Its upper half, with the destination.
    pub const DESTINATION: Self = Self(0x310);
    /// The first of six entries of the local vector table.
    pub const LOCAL_VECTORS: Self = Self(0x320);
    /// The timer's initial count.
    pub const INITIAL_COUNT: Self = Self(0x380);

    /// Returns the register at an address of the page; `None` between registers.
    pub const fn at(gpa: Gpa) -> Option<Self> {
        let offset = gpa.page_offset() as u16;
        if offset & 15 == 0 {
            Some(Self(offset))
        } else {
            None
        }
    }
    /// Returns the register `count` after this one.
    pub const fn after(self, count: u16) -> Self {
        Self(self.0 + 16 * count)
    }
}

/// An interrupt of the host's own, without its destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up at this page.
    StartUp(u8),
}

impl Signal {
    const fn command(self) -> u32 {
        const ASSERT: u32 = 1 << 14;
        match self {
            Self::Nmi => 4 << 8 | ASSERT,
            Self::Init => 5 << 8 | ASSERT,
            Self::StartUp(page) => 6 << 8 | ASSERT | page as u32,
        }
    }
}

/// The page of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalApic(*mut u32);

// SAFETY:
// - Each processor reaches its own registers by the address, which is the same everywhere.
unsafe impl Send for LocalApic {}
// SAFETY:
// - As for sending.
unsafe impl Sync for LocalApic {}

/// How many entries the local vector table has in all processors.
const LOCAL_VECTORS: u16 = 6;
/// An entry of it that is masked.
const MASKED: u32 = 1 << 16;
/// The spurious vector after INIT, with the APIC switched off.
const SWITCHED_OFF: u32 = 0xff;

impl LocalApic {
    /// Returns the registers where they are.
    #[cfg(feature = "image")]
    pub const fn get() -> Self {
        Self(BASE.get() as *mut u32)
    }

    fn pointer(self, register: ApicRegister) -> *mut u32 {
        self.0.wrapping_add(usize::from(register.0) / 4)
    }
    /// Reads a register.
    pub fn read(self, register: ApicRegister) -> u32 {
        // SAFETY:
        // - The page is the local APIC's, which is identity-mapped, and the register inside it.
        unsafe { self.pointer(register).read_volatile() }
    }
    /// Writes a register.
    pub fn write(self, register: ApicRegister, value: u32) {
        // SAFETY:
        // - As for reading. What is written changes interrupts, which the host holds off, and the guest's own timer.
        unsafe { self.pointer(register).write_volatile(value) }
    }

    /// Sends an interrupt to the processor with this identifier.
    pub fn send(self, to: u8, signal: Signal) {
        let guests = self.read(ApicRegister::DESTINATION);
        self.write(ApicRegister::DESTINATION, u32::from(to) << 24);
        self.write(ApicRegister::COMMAND, signal.command());
        self.write(ApicRegister::DESTINATION, guests);
    }

    /// Brings the registers to what INIT makes of them (section 16.3.3), but for interrupts that wait already.
    pub fn reset(self) {
        self.write(ApicRegister::INITIAL_COUNT, 0);
        for entry in 0..LOCAL_VECTORS {
            self.write(ApicRegister::LOCAL_VECTORS.after(entry), MASKED);
        }
        self.write(ApicRegister::LOGICAL_DESTINATION, 0);
        self.write(ApicRegister::DESTINATION_FORMAT, u32::MAX);
        // At most as often as there are vectors.
        let is_served = || (0..8).any(|word| self.read(ApicRegister::IN_SERVICE.after(word)) != 0);
        let mut vectors = 256;
        while vectors > 0 && is_served() {
            self.write(ApicRegister::END, 0);
            vectors -= 1;
        }
        self.write(ApicRegister::TASK_PRIORITY, 0);
        self.write(ApicRegister::SPURIOUS, SWITCHED_OFF);
    }
}

#[cfg(test)]
impl LocalApic {
    /// Makes registers of plain memory, never given back.
    pub(crate) fn on_heap() -> Self {
        Self(alloc::vec![0u32; 1024].leak().as_mut_ptr())
    }
}

#[cfg(test)]
mod interrupts_of_the_hosts_own {
    use super::*;

    #[test]
    fn leave_the_guests_destination_as_it_is() {
        let apic = LocalApic::on_heap();
        apic.write(ApicRegister::DESTINATION, 0x0700_0000);
        apic.send(3, Signal::Nmi);
        assert_eq!(apic.read(ApicRegister::COMMAND), 0x4400);
        assert_eq!(apic.read(ApicRegister::DESTINATION), 0x0700_0000);
        apic.send(3, Signal::StartUp(8));
        assert_eq!(apic.read(ApicRegister::COMMAND), 0x4608);
    }

    #[test]
    fn are_none_between_registers() {
        assert_eq!(
            ApicRegister::at(Gpa::new(0xfee0_0300)),
            Some(ApicRegister::COMMAND)
        );
        assert_eq!(ApicRegister::at(Gpa::new(0xfee0_0304)), None);
    }
}
