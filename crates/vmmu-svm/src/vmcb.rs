//! The virtual machine control block, as the processor lays it out (AMD APM vol. 2, appendix B).
//!
//! Plain data: [`crate::arch::world`] hands it to VMRUN. Fields that the hypervisor doesn't use are padding.
//!
//! Invariants:
//! 1. Field offsets are the manual's; the assertions at the end check the landmarks.

use bitflags::bitflags;

bitflags! {
    /// Intercepts of the first vector (offset 00Ch).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Intercepts1: u32 {
        /// Physical interrupts.
        const INTERRUPT = 1 << 0;
        /// Physical non-maskable interrupts.
        const NMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 3;
        /// CPUID.
        const CPUID = 1 << 18;
        /// IRET.
        const IRET = 1 << 20;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPG.
        const INVLPG = 1 << 25;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// IN and OUT as the I/O permission map says.
        const IOIO = 1 << 27;
        /// RDMSR and WRMSR as the MSR permission map says.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// Shutdown: a triple fault.
        const SHUTDOWN = 1 << 31;
    }
}

bitflags! {
    /// Intercepts of the second vector (offset 010h).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct Intercepts2: u32 {
        /// VMRUN; the processor demands this one.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
    }
}

bitflags! {
    /// Control registers whose reads or writes exit, one bit a register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct ControlRegisters: u16 {
        /// CR0.
        const CR0 = 1 << 0;
        /// CR3.
        const CR3 = 1 << 3;
        /// CR4.
        const CR4 = 1 << 4;
    }
}

/// A segment register as the VMCB keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Bits 55:52 and 47:40 of the descriptor, put together.
    pub attributes: u16,
    /// The limit in bytes.
    pub limit: u32,
    /// The base.
    pub base: u64,
}

impl Segment {
    /// Makes a flat segment.
    pub const fn flat(selector: u16, attributes: u16) -> Self {
        Self {
            selector,
            attributes,
            limit: u32::MAX,
            base: 0,
        }
    }
    /// Tells whether the descriptor has L set: 64-bit code while long mode is active.
    pub const fn is_long(self) -> bool {
        self.attributes & 1 << 9 != 0
    }
    /// Tells whether the descriptor has D set: 32-bit code.
    pub const fn is_32bit(self) -> bool {
        self.attributes & 1 << 10 != 0
    }
}

/// The control block. Fields without a comment of their own are named as in the manual.
#[allow(
    missing_docs,
    reason = "the manual's tables B-1 and B-2 describe each field"
)]
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub cr_reads: ControlRegisters,
    pub cr_writes: ControlRegisters,
    pub dr_reads: u16,
    pub dr_writes: u16,
    pub exceptions: u32,
    pub intercepts1: Intercepts1,
    pub intercepts2: Intercepts2,
    pub intercepts3: u32,
    reserved_018: [u8; 0x28],
    pub iopm: u64,
    pub msrpm: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub interrupt_control: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested: u64,
    reserved_098: [u8; 0x10],
    pub event: u64,
    pub nested_cr3: u64,
    pub lbr: u64,
    pub clean: u64,
    pub next_rip: u64,
    reserved_0d0: [u8; 0x330],
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_4a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_4cc: u32,
    pub efer: u64,
    reserved_4d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_580: [u8; 0x58],
    pub rsp: u64,
    reserved_5e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_648: [u8; 0x20],
    pub pat: u64,
    reserved_670: [u8; 0x990],
}

impl Vmcb {
    /// Makes a control block of zeros.
    pub const fn new() -> Self {
        const NONE: Segment = Segment {
            selector: 0,
            attributes: 0,
            limit: 0,
            base: 0,
        };
        Self {
            cr_reads: ControlRegisters::empty(),
            cr_writes: ControlRegisters::empty(),
            dr_reads: 0,
            dr_writes: 0,
            exceptions: 0,
            intercepts1: Intercepts1::empty(),
            intercepts2: Intercepts2::empty(),
            intercepts3: 0,
            reserved_018: [0; 0x28],
            iopm: 0,
            msrpm: 0,
            tsc_offset: 0,
            asid: 0,
            tlb_control: 0,
            interrupt_control: 0,
            interrupt_shadow: 0,
            exit_code: 0,
            exit_info1: 0,
            exit_info2: 0,
            exit_int_info: 0,
            nested: 0,
            reserved_098: [0; 0x10],
            event: 0,
            nested_cr3: 0,
            lbr: 0,
            clean: 0,
            next_rip: 0,
            reserved_0d0: [0; 0x330],
            es: NONE,
            cs: NONE,
            ss: NONE,
            ds: NONE,
            fs: NONE,
            gs: NONE,
            gdtr: NONE,
            ldtr: NONE,
            idtr: NONE,
            tr: NONE,
            reserved_4a0: [0; 0x2b],
            cpl: 0,
            reserved_4cc: 0,
            efer: 0,
            reserved_4d8: [0; 0x70],
            cr4: 0,
            cr3: 0,
            cr0: 0,
            dr7: 0,
            dr6: 0,
            rflags: 0,
            rip: 0,
            reserved_580: [0; 0x58],
            rsp: 0,
            reserved_5e0: [0; 0x18],
            rax: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr2: 0,
            reserved_648: [0; 0x20],
            pat: 0,
            reserved_670: [0; 0x990],
        }
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Vmcb, iopm) == 0x40);
    assert!(offset_of!(Vmcb, exit_code) == 0x70);
    assert!(offset_of!(Vmcb, event) == 0xa8);
    assert!(offset_of!(Vmcb, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, es) == 0x400);
    assert!(offset_of!(Vmcb, tr) == 0x490);
    assert!(offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, efer) == 0x4d0);
    assert!(offset_of!(Vmcb, cr4) == 0x548);
    assert!(offset_of!(Vmcb, rip) == 0x578);
    assert!(offset_of!(Vmcb, rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, rax) == 0x5f8);
    assert!(offset_of!(Vmcb, cr2) == 0x640);
    assert!(offset_of!(Vmcb, pat) == 0x668);
};
