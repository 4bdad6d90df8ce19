//! Segments for user mode and the task-state segment (AMD APM vol. 2, sections 4.8 and 12.2.5).

use core::arch::asm;
use core::cell::UnsafeCell;

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

/// The segments and the task-state segment of one processor.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Segments {
    /// The descriptor table.
    table: UnsafeCell<[u64; 7]>,
    /// A 64-bit task-state segment, as 32-bit words because its 64-bit fields are not aligned.
    task: UnsafeCell<[u32; 26]>,
}

// SAFETY: only the one processor that installs it writes to it, and nothing reads it but that processor's segment loads
// and stack switches.
unsafe impl Sync for Segments {}

impl Default for Segments {
    fn default() -> Self {
        Self::new()
    }
}

impl Segments {
    /// Segments that no processor uses yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            table: UnsafeCell::new([0; 7]),
            task: UnsafeCell::new([0; 26]),
        }
    }

    /// Makes this processor use these segments and `stacks`.
    ///
    /// # Safety
    /// - No other processor uses these segments.
    /// - The stacks must be memory that nothing else uses, mapped whenever an exception can arrive (or a fault on them be
    ///   what the caller wants).
    pub unsafe fn install(&'static self, stacks: Stacks) {
        #[repr(C, packed)]
        struct Pointer {
            limit: u16,
            base: u64,
        }
        self.set_stacks(stacks);
        let task = self.task.get() as u64;
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
        // SAFETY: no other processor uses it, and until the LGDT below this one uses another table.
        unsafe { self.table.get().write(segments) };
        let pointer = Pointer {
            limit: size_of::<[u64; 7]>() as u16 - 1,
            base: self.table.get() as u64,
        };
        // SAFETY: the table is static; selectors 8 and 16, which are loaded, mean the same in it.
        unsafe {
            asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const pointer, in(reg) TASK_STATE, options(nostack, preserves_flags));
        }
    }

    /// Changes the stacks of the task-state segment.
    fn set_stacks(&self, stacks: Stacks) {
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
        // SAFETY: interrupts are off and this code raises no exception, so the processor does not read it meanwhile.
        unsafe { self.task.get().write_volatile(words) };
    }
}

/// The segments of a guest that uses one processor.
static BOOT: Segments = Segments::new();

/// Makes the boot processor use segments of its own and `stacks`.
///
/// # Safety
/// As of [`Segments::install`]; no other processor calls it.
pub unsafe fn install_segments(stacks: Stacks) {
    // SAFETY: the caller vouches for the stacks, and that only one processor does this.
    unsafe { BOOT.install(stacks) };
}

/// Changes the stacks of [`install_segments`].
pub fn set_stacks(stacks: Stacks) {
    BOOT.set_stacks(stacks);
}
