//! The world switch: into the guest and back, with all registers.
//!
//! VMRUN itself keeps RAX, RSP, RIP, RFLAGS, the control registers and CS, SS, DS, ES; VMLOAD and VMSAVE keep FS, GS, TR, LDTR and
//! the system-call registers (AMD APM vol. 2, section 15.5). The rest is switched here. GIF is 0 on both sides: an NMI that
//! arrives while the host runs is taken by the next VMRUN as an exit.

use core::arch::global_asm;

use vmmu::addr::Hpa;

use crate::vmcb::Vmcb;

/// The guest's registers that the control block does not hold.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Registers {
    /// RAX to R15 by their numbers; those of RAX and RSP are unused, the control block has these two.
    general: [u64; 16],
    xmm: [[u64; 2]; 16],
}

impl Registers {
    /// Makes registers that hold 0.
    pub const fn new() -> Self {
        Self {
            general: [0; 16],
            xmm: [[0; 2]; 16],
        }
    }
    /// Returns general register `number`, which is neither RAX nor RSP.
    #[inline]
    pub const fn get(&self, number: u8) -> u64 {
        self.general[number as usize & 15]
    }
    /// Sets all general registers to 0.
    pub const fn clear_general(&mut self) {
        self.general = [0; 16];
    }
    /// Sets general register `number`, which is neither RAX nor RSP.
    #[inline]
    pub const fn set(&mut self, number: u8, value: u64) {
        self.general[number as usize & 15] = value;
    }
}

impl Default for Registers {
    fn default() -> Self {
        Self::new()
    }
}

global_asm!(
    ".text",
    ".balign 64",
    ".globl vmmu_world_switch",
    // rdi: the guest's control block, rsi: its registers, rdx: the host's control block.
    "vmmu_world_switch:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdx",
    "push rsi",
    "mov rax, rdi",
    "movaps xmm0, [rsi+0x80]",
    "movaps xmm1, [rsi+0x90]",
    "movaps xmm2, [rsi+0xa0]",
    "movaps xmm3, [rsi+0xb0]",
    "movaps xmm4, [rsi+0xc0]",
    "movaps xmm5, [rsi+0xd0]",
    "movaps xmm6, [rsi+0xe0]",
    "movaps xmm7, [rsi+0xf0]",
    "movaps xmm8, [rsi+0x100]",
    "movaps xmm9, [rsi+0x110]",
    "movaps xmm10, [rsi+0x120]",
    "movaps xmm11, [rsi+0x130]",
    "movaps xmm12, [rsi+0x140]",
    "movaps xmm13, [rsi+0x150]",
    "movaps xmm14, [rsi+0x160]",
    "movaps xmm15, [rsi+0x170]",
    "mov rcx, [rsi+0x08]",
    "mov rdx, [rsi+0x10]",
    "mov rbx, [rsi+0x18]",
    "mov rbp, [rsi+0x28]",
    "mov rdi, [rsi+0x38]",
    "mov r8, [rsi+0x40]",
    "mov r9, [rsi+0x48]",
    "mov r10, [rsi+0x50]",
    "mov r11, [rsi+0x58]",
    "mov r12, [rsi+0x60]",
    "mov r13, [rsi+0x68]",
    "mov r14, [rsi+0x70]",
    "mov r15, [rsi+0x78]",
    "mov rsi, [rsi+0x30]",
    "vmload rax",
    "vmrun rax",
    "vmsave rax",
    "xchg rsi, [rsp]",
    "mov [rsi+0x08], rcx",
    "mov [rsi+0x10], rdx",
    "mov [rsi+0x18], rbx",
    "mov [rsi+0x28], rbp",
    "mov [rsi+0x38], rdi",
    "mov [rsi+0x40], r8",
    "mov [rsi+0x48], r9",
    "mov [rsi+0x50], r10",
    "mov [rsi+0x58], r11",
    "mov [rsi+0x60], r12",
    "mov [rsi+0x68], r13",
    "mov [rsi+0x70], r14",
    "mov [rsi+0x78], r15",
    "pop rax",
    "mov [rsi+0x30], rax",
    "movaps [rsi+0x80], xmm0",
    "movaps [rsi+0x90], xmm1",
    "movaps [rsi+0xa0], xmm2",
    "movaps [rsi+0xb0], xmm3",
    "movaps [rsi+0xc0], xmm4",
    "movaps [rsi+0xd0], xmm5",
    "movaps [rsi+0xe0], xmm6",
    "movaps [rsi+0xf0], xmm7",
    "movaps [rsi+0x100], xmm8",
    "movaps [rsi+0x110], xmm9",
    "movaps [rsi+0x120], xmm10",
    "movaps [rsi+0x130], xmm11",
    "movaps [rsi+0x140], xmm12",
    "movaps [rsi+0x150], xmm13",
    "movaps [rsi+0x160], xmm14",
    "movaps [rsi+0x170], xmm15",
    "pop rax",
    // The host's TR again, whose stacks its exceptions need.
    "vmload rax",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "sysv64" {
    fn vmmu_world_switch(guest: *mut Vmcb, registers: *mut Registers, host: *mut Vmcb);
    fn vmmu_save_host(host: *mut Vmcb);
}

global_asm!(
    ".text",
    ".globl vmmu_save_host",
    "vmmu_save_host:",
    "mov rax, rdi",
    "vmsave rax",
    "ret"
);

/// The control block that keeps the host's own FS, GS and TR.
#[derive(Debug)]
pub struct HostWorld(Vmcb);

impl HostWorld {
    /// Notes the host's state as it is now; it must not change any more.
    pub fn save(&mut self) {
        // SAFETY:
        // - The block is page-aligned, and the identity map makes its address physical.
        // - SVM is on: there is no other way to here than through `enable_svm`.
        unsafe { vmmu_save_host(&raw mut self.0) }
    }
    /// Makes a block for [`HostWorld::save`].
    pub const fn new() -> Self {
        Self(Vmcb::new())
    }
}

impl Default for HostWorld {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the guest until it exits.
///
/// What the guest may reach is what the control block's tables and permission maps grant: they are the hypervisor's business, and
/// its whole business.
#[inline]
pub fn run(vmcb: &mut Vmcb, registers: &mut Registers, host: &mut HostWorld) {
    // SAFETY:
    // - Both blocks are page-aligned and their addresses physical, by the identity map.
    // - All registers that the ABI lets a function keep are kept; the rest is clobbered by the call.
    // - `host` holds what `save` noted.
    unsafe { vmmu_world_switch(vmcb, registers, &raw mut host.0) }
}

/// Returns the physical address of a page-aligned block that the processor reads.
pub fn physical<T>(block: &T) -> Hpa {
    Hpa::new(&raw const *block as u64)
}
