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
    /// The first of eight registers that say which interrupts wait.
    pub const REQUESTED: Self = Self(0x200);
    /// The lower half of the interrupt command, whose write sends.
    pub const COMMAND: Self = Self(0x300);
    /// Its upper half, with the destination.
    pub const DESTINATION: Self = Self(0x310);
    /// The first of six entries of the local vector table.
    pub const LOCAL_VECTORS: Self = Self(0x320);
    /// The entry of the pin that the 8259s are at.
    pub const LINT0: Self = Self(0x350);
    /// The timer's initial count.
    pub const INITIAL_COUNT: Self = Self(0x380);
    /// What the timer's clock is divided by.
    pub const DIVIDER: Self = Self(0x3e0);

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
/// The same, with the APIC on.
const SWITCHED_ON: u32 = 0x1ff;
/// The bit of the interrupt command that says that it is still on its way.
const ON_ITS_WAY: u32 = 1 << 12;
/// As many vectors as there are, and so as many interrupts as can wait at a time.
const VECTORS: u32 = 256;
/// How often a local APIC is emptied again because something came while it was switched off.
const PASSES: u32 = 8;

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

    /// Sends an interrupt to the processor with this identifier. When this returns, that has accepted it.
    pub fn send(self, to: u8, signal: Signal) {
        // The guest's own last one may be on its way.
        self.wait_for_command();
        let guests = self.read(ApicRegister::DESTINATION);
        self.write(ApicRegister::DESTINATION, u32::from(to) << 24);
        self.write(ApicRegister::COMMAND, signal.command());
        self.wait_for_command();
        self.write(ApicRegister::DESTINATION, guests);
    }
    fn wait_for_command(self) {
        while self.read(ApicRegister::COMMAND) & ON_ITS_WAY != 0 {
            core::hint::spin_loop();
        }
    }

    /// Lets the interrupts of the 8259s through to this processor, as firmware does on the one that boots.
    pub fn boots(self) {
        const EXTERNAL: u32 = 7 << 8;
        self.write(ApicRegister::SPURIOUS, SWITCHED_ON);
        self.write(ApicRegister::LINT0, EXTERNAL);
    }
    /// Switches the APIC off for good, with all its own interrupts.
    pub fn retire(self) {
        for entry in 0..LOCAL_VECTORS {
            self.write(ApicRegister::LOCAL_VECTORS.after(entry), MASKED);
        }
        self.write(ApicRegister::SPURIOUS, SWITCHED_OFF);
    }

    /// Brings the registers to what INIT makes of them (section 16.3.3). The interrupts that wait are discarded: `let_in` lets the processor
    /// take at least one, if there are any, and does nothing about it.
    pub fn reset(self, mut let_in: impl FnMut()) {
        self.write(ApicRegister::INITIAL_COUNT, 0);
        for entry in 0..LOCAL_VECTORS {
            self.write(ApicRegister::LOCAL_VECTORS.after(entry), MASKED);
        }
        self.write(ApicRegister::DIVIDER, 0);
        self.write(ApicRegister::DESTINATION, 0);
        self.write(ApicRegister::LOGICAL_DESTINATION, 0);
        self.write(ApicRegister::DESTINATION_FORMAT, u32::MAX);
        self.write(ApicRegister::TASK_PRIORITY, 0);
        self.end_all();
        self.write(ApicRegister::SPURIOUS, SWITCHED_OFF);
        for _ in 0..PASSES {
            if !self.has(ApicRegister::REQUESTED) {
                break;
            }
            // Only while it is on are those that wait delivered; others may send some meanwhile.
            self.write(ApicRegister::SPURIOUS, SWITCHED_ON);
            let mut rounds = VECTORS;
            while rounds > 0 && self.has(ApicRegister::REQUESTED) {
                let_in();
                self.end_all();
                rounds -= 1;
            }
            self.write(ApicRegister::SPURIOUS, SWITCHED_OFF);
        }
    }
    /// Ends all interrupts that are being served.
    fn end_all(self) {
        let mut rounds = VECTORS;
        while rounds > 0 && self.has(ApicRegister::IN_SERVICE) {
            self.write(ApicRegister::END, 0);
            rounds -= 1;
        }
    }
    /// Tells whether one of the eight registers from `first` on has a bit set.
    fn has(self, first: ApicRegister) -> bool {
        (0..8).any(|word| self.read(first.after(word)) != 0)
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
    fn are_discarded_one_after_the_other_by_a_reset() {
        let apic = LocalApic::on_heap();
        let third = ApicRegister::REQUESTED.after(2);
        apic.write(third, 0b101);
        apic.write(ApicRegister::TASK_PRIORITY, 0xf0);
        let mut taken = 0;
        apic.reset(|| {
            // The processor takes one if the APIC is on and the priority lets it pass.
            assert_eq!(apic.read(ApicRegister::SPURIOUS), SWITCHED_ON);
            assert_eq!(apic.read(ApicRegister::TASK_PRIORITY), 0);
            let waiting = apic.read(third);
            apic.write(third, waiting & (waiting - 1));
            taken += 1;
        });
        assert_eq!((taken, apic.read(third)), (2, 0));
        assert_eq!(apic.read(ApicRegister::SPURIOUS), SWITCHED_OFF);
        let timer = apic.read(ApicRegister::LOCAL_VECTORS);
        assert_eq!(timer, MASKED);
    }

    #[test]
    fn that_nobody_takes_do_not_hold_a_reset_up() {
        let apic = LocalApic::on_heap();
        apic.write(ApicRegister::REQUESTED, 1);
        apic.reset(|| ());
        assert_eq!(apic.read(ApicRegister::SPURIOUS), SWITCHED_OFF);
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
