//! Segments for user mode and the task-state segment (AMD APM vol. 2, sections 4.8 and 12.2.5).

use core::arch::asm;

/// The kernel's code segment.
pub const KERNEL_CODE: u64 = 0x08;
/// The kernel's data segment.
pub const KERNEL_DATA: u64 = 0x10;
/// The user's data segment, with its privilege level.
pub const USER_DATA: u64 = 0x18 | 3;
/// The user's code segment, with its privilege level.
pub const USER_CODE: u64 = 0x20 | 3;
/// The task-state segment's selector.
const TASK_STATE: u16 = 0x28;

/// Stacks that the processor switches to, as top addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stacks {
    /// For exceptions in user mode.
    pub kernel: u64,
    /// For gates that ask for interrupt stack 1 to 3.
    pub interrupt: [u64; 3],
}

/// A 64-bit task-state segment, as 32-bit words because its 64-bit fields are not aligned.
static mut TASK: [u32; 26] = [0; 26];
static mut SEGMENTS: [u64; 7] = [0; 7];

/// Makes the processor use these segments and `stacks`.
///
/// # Safety
/// The stacks must be memory that nothing else uses, mapped whenever an exception can arrive (or a fault on them be what
/// the caller wants).
pub unsafe fn install_segments(stacks: Stacks) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    set_stacks(stacks);
    let task = &raw mut TASK as u64;
    let limit = size_of::<[u32; 26]>() as u64 - 1;
    let low = limit | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
    let segments = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        low,
        task >> 32,
    ];
    let table = &raw mut SEGMENTS;
    // SAFETY: one processor, and until the LGDT below it uses another table.
    unsafe { table.write(segments) };
    let pointer = Pointer {
        limit: size_of::<[u64; 7]>() as u16 - 1,
        base: table as u64,
    };
    // SAFETY: the table is static; selectors 8 and 16, which are loaded, mean the same in it.
    unsafe {
        asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const pointer, in(reg) TASK_STATE, options(nostack, preserves_flags));
    }
}

/// Changes the stacks of the task-state segment.
pub fn set_stacks(stacks: Stacks) {
    let mut words = [0; 26];
    let mut put = |index: usize, value: u64| {
        words[index] = value as u32;
        words[index + 1] = (value >> 32) as u32;
    };
    put(1, stacks.kernel);
    for (number, top) in stacks.interrupt.into_iter().enumerate() {
        put(9 + 2 * number, top);
    }
    // No I/O permission bitmap: its offset lies behind the limit.
    words[25] = 104 << 16;
    let task = &raw mut TASK;
    // SAFETY: interrupts are off and this code raises no exception, so the processor does not read it meanwhile.
    unsafe { task.write_volatile(words) };
}
