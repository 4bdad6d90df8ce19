//! The measured loops, instruction by instruction.
//!
//! What a phase costs natively is part of the comparison (and must not change with the compiler), so each
//! loop is written out. The number behind each name is the instructions of one round.
//!
//! 1. A loop touches nothing but the pages behind a [`Va`] and one entry of a table, both outside the image.
//! 2. Roots that a loop loads map the image as before (invariant 1 of [`vmmu_guest::machine`]).
#![allow(unsafe_code)]

use core::arch::asm;

use vmmu_guest::machine::{Entry, Frame, Va};

/// A slot of a page table that a loop writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(*mut u64);

impl Slot {
    /// Entry `index` of `table`.
    pub(crate) fn new((table, index): (Frame, usize)) -> Self {
        assert!(index < 512);
        Self((table.address() as *mut u64).wrapping_add(index))
    }
}

/// Emits `asm!` with a body that is repeated `$count` times, counting down: two instructions a round.
macro_rules! count_down {
    ($count:expr, [$($line:literal),+], $($operand:tt)*) => {
        // SAFETY: invariants 1 and 2 of this module; the body pushes nothing and leaves the direction flag alone.
        unsafe {
            asm!("2:", $($line,)+ "sub {rounds:e}, 1", "jne 2b", rounds = inout(reg) $count => _, $($operand)*)
        }
    };
}

/// Emits `asm!` with a body that is repeated `$count` times, counting up in `{round}`: three instructions a round.
macro_rules! count_up {
    ($count:expr, [$($line:literal),+], $($operand:tt)*) => {
        // SAFETY: as in `count_down`.
        unsafe {
            asm!("2:", $($line,)+ "add {round}, 1", "cmp {round:e}, {rounds:e}", "jne 2b",
                 round = inout(reg) 0_u64 => _, rounds = in(reg) $count, $($operand)*)
        }
    };
}

/// NOP: 3.
#[inline(always)]
pub(crate) fn nop(count: u32) {
    count_down!(count, ["nop"], options(nostack));
}

/// CPUID leaf 0: 5.
#[inline(always)]
pub(crate) fn cpuid(count: u32) {
    // RBX belongs to the compiler, so the loop's result in it is put aside.
    // SAFETY: as in `count_down`.
    unsafe {
        asm!("mov {kept}, rbx", "2:", "xor eax, eax", "xor ecx, ecx", "cpuid", "sub {rounds:e}, 1", "jne 2b",
             "mov rbx, {kept}", kept = out(reg) _, rounds = inout(reg) count => _, out("eax") _, out("ecx") _,
             out("edx") _, options(nostack));
    }
}

/// A load from every `stride`th byte from `first` on: 5.
#[inline(always)]
pub(crate) fn load(count: u32, first: Va, stride: u64) {
    count_up!(
        count, ["mov {value}, [{at}]", "add {at}, {stride}"],
        value = out(reg) _, at = inout(reg) first.value() => _, stride = in(reg) stride, options(nostack)
    );
}

/// A store of its own address to every `stride`th byte from `first` on: 5.
#[inline(always)]
pub(crate) fn store(count: u32, first: Va, stride: u64) {
    count_up!(
        count, ["mov [{at}], {at}", "add {at}, {stride}"],
        at = inout(reg) first.value() => _, stride = in(reg) stride, options(nostack)
    );
}

/// A store of its own address to each page from `first` up to, not including, `end`: 4.
#[inline(always)]
pub(crate) fn store_pages(first: Va, end: Va) {
    // SAFETY: as in `count_down`.
    unsafe {
        asm!("2:", "mov [{at}], {at}", "add {at}, 4096", "cmp {at}, {end}", "jne 2b",
             at = inout(reg) first.value() => _, end = in(reg) end.value(), options(nostack));
    }
}

/// CR3 load from memory: 4.
#[inline(always)]
pub(crate) fn load_root(count: u32, root: &u64) {
    count_down!(
        count, ["mov {value}, [{root}]", "mov cr3, {value}"],
        value = out(reg) _, root = in(reg) core::ptr::from_ref(root), options(nostack)
    );
}

/// CR3 load, the roots in turn (`mask` + 1 of them), and a store to `at`: 8.
#[inline(always)]
pub(crate) fn switch_roots<const MASK: u32>(count: u32, roots: &[u64; 8], at: Va) {
    const { assert!(MASK < 8) };
    count_up!(
        count, ["mov {index:e}, {round:e}", "and {index:e}, {mask}", "mov {root}, [{roots} + 8 * {index}]",
                "mov cr3, {root}", "mov [{at}], {at}"],
        index = out(reg) _, mask = const MASK, root = out(reg) _, roots = in(reg) roots.as_ptr(),
        at = in(reg) at.value(), options(nostack)
    );
}

/// The instructions that store the entry for the next of two data frames, as `rewrite_*` use them.
macro_rules! rewrite {
    ($flush:literal, $count:expr, $slot:expr, $data:expr, $bits:expr, $at:expr, $($operand:tt)*) => {
        count_up!(
            $count, ["mov {value}, {round}", "and {value:e}, 1", "add {value}, {page}", "shl {value}, 12",
                     "or {value}, {bits}", "mov [{slot}], {value}", $flush, "mov [{at}], {at}"],
            value = out(reg) _, page = in(reg) $data.address() >> 12, bits = in(reg) $bits, slot = in(reg) $slot.0,
            at = in(reg) $at.value(), $($operand)* options(nostack)
        )
    };
}

/// A leaf entry is rewritten (two data frames in turn), its page invalidated and written to: 11.
#[inline(always)]
pub(crate) fn rewrite_invalidate(count: u32, slot: Slot, data: Frame, bits: u64, at: Va) {
    rewrite!("invlpg [{at}]", count, slot, data, bits, at,);
}

/// A leaf entry is rewritten (two data frames in turn), CR3 loaded, the page written to: 11.
#[inline(always)]
pub(crate) fn rewrite_load_root(
    count: u32,
    slot: Slot,
    data: Frame,
    bits: u64,
    at: Va,
    root: Frame,
) {
    rewrite!("mov cr3, {root}", count, slot, data, bits, at, root = in(reg) root.address(),);
}

/// A directory entry is pointed at `even` and `odd` in turn, a page below it invalidated and written to: 9.
#[inline(always)]
pub(crate) fn swap_tables(count: u32, slot: Slot, even: Entry, odd: Entry, at: Va) {
    count_up!(
        count, ["test {round:l}, 1", "mov {value}, {even}", "cmovne {value}, {odd}", "mov [{slot}], {value}",
                "invlpg [{at}]", "mov [{at}], {at}"],
        value = out(reg) _, even = in(reg) even.bits(), odd = in(reg) odd.bits(), slot = in(reg) slot.0,
        at = in(reg) at.value(), options(nostack)
    );
}

/// All 512 entries from `slot` on are rewritten for the frames from `data` on: 7 an entry.
#[inline(always)]
pub(crate) fn fill_table(slot: Slot, data: Frame, bits: u64) {
    let end = data.address() + (512 << 12);
    // SAFETY: as in `count_down`; the slot is the first of its table.
    unsafe {
        asm!("2:", "mov {value}, {frame}", "add {frame}, 4096", "add {slot}, 8", "or {value}, {bits}",
             "mov [{slot} - 8], {value}", "cmp {frame}, {end}", "jne 2b",
             value = out(reg) _, frame = inout(reg) data.address() => _, slot = inout(reg) slot.0 => _,
             bits = in(reg) bits, end = in(reg) end, options(nostack));
    }
}

/// The pages from `first` up to, not including, `end` are mapped to the frames from `data` on, under `root`: walked for
/// one by one from the root, tables (cleared here) taken from `tables` on where one is missing. 42 a page, 2,058 a table.
///
/// Leaves get P, W and U, tables A and D too.
#[inline(always)]
pub(crate) fn map_pages(root: Frame, first: Va, end: Va, data: Frame, tables: Frame) {
    // SAFETY: as in `count_down`; the caller has taken the frames from `tables` on out of its pool.
    unsafe {
        asm!(
            "2:", "lea {leaf}, [{va} + {offset}]", "mov {table}, {root}", "mov ecx, 39", "jmp 4f",
            "3:", "sub ecx, 9", "and {table}, -4096", "cmp ecx, 12", "je 6f",
            "4:", "mov {slot}, {va}", "shr {slot}, cl", "and {slot:e}, 511", "lea {slot}, [{table} + 8 * {slot}]",
            "mov {table}, [{slot}]", "test {table:l}, 1", "jne 3b",
            "lea {table}, [{pool} + 4096]", "mov {at}, {pool}",
            "5:", "mov qword ptr [{at}], 0", "add {at}, 8", "cmp {at}, {table}", "jne 5b",
            "mov {table}, {pool}", "sub ecx, 9", "mov {pool}, {at}", "or {table}, 0x67", "mov [{slot}], {table}",
            "and {table}, -4096", "cmp ecx, 12", "jne 4b",
            "6:", "mov rcx, {va}", "or {leaf}, 7", "add {va}, 4096", "shr rcx, 12", "and ecx, 511",
            "mov [{table} + 8 * rcx], {leaf}", "cmp {va}, {end}", "jne 2b",
            leaf = out(reg) _, va = inout(reg) first.value() => _,
            offset = in(reg) data.address().wrapping_sub(first.value()), table = out(reg) _,
            root = in(reg) root.address(), slot = out(reg) _, at = out(reg) _,
            pool = inout(reg) tables.address() => _, end = in(reg) end.value(), out("rcx") _, options(nostack),
        );
    }
}

/// An entry is written, its page invalidated and written to, which faults: 5, and the handler's own.
#[inline(always)]
pub(crate) fn store_to_entry(count: u32, slot: Slot, entry: Entry, at: Va) {
    count_down!(
        count, ["mov [{slot}], {entry}", "invlpg [{at}]", "mov [{at}], {at}"],
        slot = in(reg) slot.0, entry = in(reg) entry.bits(), at = in(reg) at.value(), options(nostack)
    );
}

/// INVLPG: 3.
#[inline(always)]
pub(crate) fn invalidate(count: u32, at: Va) {
    count_down!(count, ["invlpg [{at}]"], at = in(reg) at.value(), options(nostack));
}

/// CR4.PGE is toggled twice: 4.
#[inline(always)]
pub(crate) fn toggle_global_pages(count: u32, cr4: u64) {
    count_down!(
        count, ["mov cr4, {other}", "mov cr4, {cr4}"],
        other = in(reg) cr4 ^ 0x80, cr4 = in(reg) cr4, options(nostack)
    );
}

/// RDMSR of IA32_APIC_BASE: 3.
#[inline(always)]
pub(crate) fn read_apic_base(count: u32) {
    count_down!(count, ["rdmsr"], in("ecx") 0x1b, out("eax") _, out("edx") _, options(nostack));
}
