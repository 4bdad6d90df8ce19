//! The registers of a processor.
//!
//! Key types: [`State`], [`Segment`], [`Table`], [`Gpr`], [`SegmentName`].
//!
//! Invariants:
//! 1. `gpr[Gpr::NONE]` is zero: a missing base or index reads it, so that an address is computed without a branch.
//! 2. While an instruction executes, `gpr[Gpr::RIP]` is its own address and `next` the following one's; who completes it moves `next` there.
//! 3. `cpl` is CS's privilege level as the processor tracks it: 3 in virtual-8086 mode, 0 in real mode.

use crate::flags::Flags;
use crate::fpu::Fpu;
use crate::system::msr::Msrs;

/// The number of a general register, or of a stand-in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr(pub(crate) u8);

#[expect(missing_docs, reason = "the manuals' names")]
impl Gpr {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RBX: Self = Self(3);
    pub const RSP: Self = Self(4);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R11: Self = Self(11);
    /// Reads as zero.
    pub(crate) const NONE: Self = Self(16);
    /// The instruction pointer.
    pub(crate) const RIP: Self = Self(17);
}

impl Gpr {
    /// Makes one of its number in an encoding, 0 to 15.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// Returns its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns its place in the file, which is larger than any number: no bounds check remains.
    #[inline(always)]
    pub(crate) const fn index(self) -> usize {
        (self.0 & 31) as usize
    }
}

/// A segment register's name, in the order of encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the manuals' names")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Descriptor bits 40 to 47 and 52 to 55, the latter as bits 8 to 11, as a VMCB has them (AMD APM vol. 2, section 15.5.1 and appendix B).
    pub attributes: u16,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// The base.
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// The base.
    pub base: u64,
    /// The limit.
    pub limit: u16,
}

/// All registers that instructions see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub(crate) gpr: [u64; 32],
    pub(crate) next: u64,
    /// RFLAGS.
    pub flags: Flags,
    /// Segment registers, by [`SegmentName`].
    pub segments: [Segment; 6],
    /// The local descriptor table's.
    pub ldtr: Segment,
    /// The task's.
    pub tr: Segment,
    /// The global descriptor table.
    pub gdtr: Table,
    /// The interrupt descriptor table.
    pub idtr: Table,
    /// The current privilege level.
    pub cpl: u8,
    /// Interrupts are held off for one instruction: after STI, MOV SS, POP SS. Whoever runs instructions clears it after the following one;
    /// [`step`](crate::step) does.
    pub interrupt_shadow: bool,
    /// The instruction takes no single-step trap: it went to a handler, or loaded SS.
    pub(crate) trap_held: bool,
    /// The bits of DR6 of a trap that is due before the next instruction.
    pub(crate) trap_pending: u64,
    /// Non-maskable interrupts are held off until the next IRET: one was delivered (AMD APM vol. 2, section 8.2.3).
    pub nmi_blocked: bool,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The task priority (CR8), where no local APIC holds it.
    pub cr8: u64,
    /// DR0 to DR3, and DR6, DR7 in their places.
    pub dr: [u64; 8],
    /// EFER.
    pub efer: u64,
    /// Model-specific registers that instructions use, or that are plain storage. The bases of FS and GS are the segments'.
    pub msrs: Msrs,
    /// PKRU.
    pub pkru: u32,
    /// The address of the last #PF raised; it goes to CR2 when the exception is delivered.
    pub fault_address: u64,
    /// The floating-point and vector registers.
    pub fpu: Fpu,
}

impl State {
    /// Returns the state after a reset: real mode, at the last 16 bytes below 4 GiB (AMD APM vol. 2, section 14.1.3).
    #[must_use]
    pub fn reset() -> Self {
        let data = Segment {
            selector: 0,
            attributes: 0x93,
            limit: 0xffff,
            base: 0,
        };
        let mut segments = [data; 6];
        segments[SegmentName::Cs as usize] = Segment {
            selector: 0xf000,
            attributes: 0x9b,
            limit: 0xffff,
            base: 0xffff_0000,
        };
        let mut gpr = [0; 32];
        gpr[Gpr::RIP.index()] = 0xfff0;
        Self {
            gpr,
            next: 0,
            flags: Flags::ONE,
            segments,
            ldtr: Segment {
                attributes: 0x82,
                ..data
            },
            tr: Segment {
                attributes: 0x8b,
                ..data
            },
            gdtr: Table::default(),
            idtr: Table {
                base: 0,
                limit: 0xffff,
            },
            cpl: 0,
            interrupt_shadow: false,
            trap_held: false,
            trap_pending: 0,
            nmi_blocked: false,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            efer: 0,
            msrs: Msrs::RESET,
            pkru: 0,
            fault_address: 0,
            fpu: Fpu::reset(),
        }
    }

    /// Returns a general register.
    #[inline(always)]
    #[must_use]
    pub const fn get(&self, register: Gpr) -> u64 {
        self.gpr[register.index()]
    }

    /// Sets a general register.
    #[inline(always)]
    pub const fn set(&mut self, register: Gpr, value: u64) {
        self.gpr[register.index()] = value;
    }

    /// Returns the instruction pointer.
    #[inline(always)]
    #[must_use]
    pub const fn rip(&self) -> u64 {
        self.get(Gpr::RIP)
    }

    /// Sets the instruction pointer.
    #[inline(always)]
    pub const fn set_rip(&mut self, rip: u64) {
        self.set(Gpr::RIP, rip);
    }

    /// Returns a segment register.
    #[inline(always)]
    #[must_use]
    pub const fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }

    /// Says whether long mode is active: 64-bit or compatibility mode.
    #[inline(always)]
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.efer & 1 << 10 != 0
    }

    /// Says whether code is 64-bit.
    #[inline(always)]
    #[must_use]
    pub const fn is_64_bit(&self) -> bool {
        self.is_long() && self.segment(SegmentName::Cs).attributes & 1 << 9 != 0
    }

    /// Says whether protection is off: real mode.
    #[inline(always)]
    #[must_use]
    pub const fn is_real(&self) -> bool {
        self.cr0 & 1 == 0
    }

    /// Says whether code is virtual-8086.
    #[inline(always)]
    #[must_use]
    pub const fn is_virtual_8086(&self) -> bool {
        self.flags.contains(Flags::VM)
    }
}
