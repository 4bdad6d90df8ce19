//! Model-specific and control registers, CPUID, the time-stamp counter.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};

use vmmu::addr::{Gva, Hpa};

/// A model-specific register that the hypervisor itself uses (AMD APM vol. 2, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Msr {
    /// The local APIC's base and enable bits.
    ApicBase = 0x1b,
    /// The page-attribute table.
    Pat = 0x277,
    /// Extended features; SVME is bit 12.
    Efer = 0xc000_0080,
    /// Where VMRUN keeps the host's state.
    VmHsavePa = 0xc001_0117,
}

/// Reads a model-specific register.
pub fn read_msr(msr: Msr) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY:
    // - Every processor with SVM has the registers that `Msr` names.
    unsafe {
        asm!("rdmsr", in("ecx") msr as u32, out("eax") low, out("edx") high, options(nomem, nostack))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Switches SVM on, with `host_save` as the page where VMRUN keeps the host's state, and holds interrupts and NMIs off for good.
pub fn enable_svm(host_save: Hpa) {
    // SAFETY:
    // - SVME changes nothing for code that uses no SVM instruction.
    unsafe { write_msr(Msr::Efer, read_msr(Msr::Efer) | 1 << 12) }
    // SAFETY:
    // - The page is the caller's, and used for nothing else.
    unsafe { write_msr(Msr::VmHsavePa, host_save.get()) }
    // SAFETY:
    // - Nothing waits for an interrupt.
    unsafe { asm!("clgi", options(nostack)) }
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must not take away what the running code stands on.
unsafe fn write_msr(msr: Msr, value: u64) {
    // SAFETY:
    // - The caller vouches for the value.
    unsafe {
        asm!("wrmsr", in("ecx") msr as u32, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    }
}

/// The four registers that CPUID fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Asks the processor for a leaf of CPUID.
#[inline]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let answer = __cpuid_count(leaf, subleaf);
    CpuidResult {
        eax: answer.eax,
        ebx: answer.ebx,
        ecx: answer.ecx,
        edx: answer.edx,
    }
}

/// Reads the time-stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY:
    // - Every x86-64 processor has the counter, and the host keeps CR4.TSD clear.
    unsafe { _rdtsc() }
}

/// Reads CR2, where the last page fault of the host happened.
pub fn cr2() -> Gva {
    let address: u64;
    // SAFETY:
    // - Reading CR2 has no effect; the host runs at CPL 0.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) }
    Gva::new(address)
}

/// Reads CR0.
pub fn cr0() -> u64 {
    let value: u64;
    // SAFETY:
    // - Reading CR0 has no effect; the host runs at CPL 0.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) }
    value
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let value: u64;
    // SAFETY:
    // - Reading CR4 has no effect; the host runs at CPL 0.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) }
    value
}

/// Reads CR3, the host's root table.
pub fn cr3() -> Hpa {
    let root: u64;
    // SAFETY:
    // - Reading CR3 has no effect; the host runs at CPL 0.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) }
    Hpa::new(root & !0xfff)
}

/// Loads CR3 again, which drops the host's own TLB.
pub fn reload_cr3() {
    // SAFETY:
    // - The same tables stay in force.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) }
}

#[cfg(feature = "image")]
unsafe extern "sysv64" {
    fn vmmu_let_nmis_in() -> u32;
    fn vmmu_wait_for_nmi() -> u32;
}

/// Lets NMIs in that wait, so that they wait no more, and returns how many.
///
/// An intercepted NMI stays pending across its exit (AMD APM vol. 2, section 15.13.1): the next VMRUN would exit again at once.
#[cfg(feature = "image")]
pub fn let_nmis_in() -> u32 {
    // SAFETY:
    // - Interrupts stay off by RFLAGS.IF; the host's handler of NMIs returns at once, on a stack of its own.
    unsafe { vmmu_let_nmis_in() }
}

/// Waits until an NMI comes, or takes one that waits already; returns how many it let in.
#[cfg(feature = "image")]
pub fn wait_for_nmi() -> u32 {
    // SAFETY:
    // - Interrupts stay off by RFLAGS.IF; the host's handler of NMIs returns at once, behind the halt.
    unsafe { vmmu_wait_for_nmi() }
}

/// Lets interrupts in that wait, and discards them ([`super::apic::LocalApic::reset`]).
#[cfg(feature = "image")]
pub fn discard_interrupts() {
    super::descriptor::let_interrupts_in();
}

/// Stands in where there are no interrupts: tests don't get here.
#[cfg(not(feature = "image"))]
pub const fn discard_interrupts() {}

/// Stands in where there is no host of NMIs: tests don't get here.
#[cfg(not(feature = "image"))]
pub fn let_nmis_in() -> u32 {
    0
}

/// Stands in where there is no host of NMIs: tests don't get here.
#[cfg(not(feature = "image"))]
pub fn wait_for_nmi() -> u32 {
    core::hint::spin_loop();
    0
}

/// Waits for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY:
        // - With interrupts off the processor simply stops.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Tells whether the processor has SVM (CPUID 8000_0001h ECX\[2\]).
pub fn has_svm() -> bool {
    cpuid(0x8000_0000, 0).eax >= 0x8000_000a && cpuid(0x8000_0001, 0).ecx & 4 != 0
}
