//! RAM as page tables and data: frames, entries, addresses, and the pool that frames come from.

use core::arch::asm;
use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where the image and its stack lie (the linker script sees to it).
pub const IMAGE: Range<u64> = 0x10_0000..0x20_0000;

/// The page size of entries in tables of level 2.
pub const LARGE_PAGE: u64 = 1 << Level::Pd.shift();

/// The RAM that a guest uses for tables and data.
pub const TABLES_AND_DATA: Range<u64> = 0x20_0000..0x400_0000;

/// Bytes of a frame.
const FRAME_SIZE: u64 = 4096;

/// A level of the page-table tree: 1 is the table of 4 KiB pages, 4 the root (AMD APM vol. 2, section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The page table: entries map 4 KiB.
    Pt = 1,
    /// The page directory: entries map 2 MiB or point at a page table.
    Pd = 2,
    /// The page-directory-pointer table: entries map 1 GiB or point at a page directory.
    Pdpt = 3,
    /// The root.
    Pml4 = 4,
}

impl Level {
    /// The bit of an address where this level's index begins.
    #[must_use]
    pub const fn shift(self) -> u32 {
        12 + 9 * (self as u32 - 1)
    }
}

/// A virtual address in the part of the address space that a guest maps for its tests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Va(u64);

impl Va {
    /// The lowest address that a `Va` may have: everything that PML4 entry 0 maps belongs to the image.
    pub const LOWEST: u64 = 1 << Level::Pml4.shift();

    /// The address `value`.
    ///
    /// # Panics
    /// If it is not canonical (4-level paging) or below [`Va::LOWEST`]: an error of the guest's author.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        let upper = value >> 47;
        assert!(value >= Self::LOWEST && (upper == 0 || upper == 0x1_ffff));
        Self(value)
    }

    /// The address as a number.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The address `pages` 4 KiB pages further on.
    #[must_use]
    pub const fn page(self, pages: u64) -> Self {
        Self::new(self.0 + pages * FRAME_SIZE)
    }

    /// The address `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self::new(self.0 + bytes)
    }

    /// Where this address's entry sits in a table of `level`.
    #[inline]
    #[must_use]
    pub const fn index(self, level: Level) -> usize {
        (self.0 >> level.shift() & 511) as usize
    }

    /// Stores 64 bits.
    #[inline]
    pub fn store(self, value: u64) {
        // SAFETY: a `Va` never names a Rust object (invariant 3); a fault is handled or ends the run.
        unsafe { ptr::write_volatile(self.0 as *mut u64, value) };
    }

    /// Loads 64 bits.
    #[inline]
    #[must_use]
    pub fn load(self) -> u64 {
        // SAFETY: as in `store`.
        unsafe { ptr::read_volatile(self.0 as *const u64) }
    }

    /// Loads 32 bits; the address is a multiple of 4.
    #[must_use]
    pub fn load_u32(self) -> u32 {
        // SAFETY: as in `store`.
        unsafe { ptr::read_volatile(self.0 as *const u32) }
    }

    /// Stores one byte.
    pub fn store_u8(self, value: u8) {
        // SAFETY: as in `store`.
        unsafe { ptr::write_volatile(self.0 as *mut u8, value) };
    }

    /// Stores 32 bits.
    pub fn store_u32(self, value: u32) {
        // SAFETY: as in `store`. The address may be any, so not through a pointer, whose alignment counts.
        unsafe {
            asm!("mov [{}], {:e}", in(reg) self.0, in(reg) value, options(nostack, preserves_flags))
        };
    }

    /// Stores two words by one 128-bit instruction; the address is a multiple of 16.
    pub fn store_pair(self, low: u64, high: u64) {
        // SAFETY: as in `store`.
        unsafe {
            asm!("movq {wide}, {low}", "movq {upper}, {high}", "punpcklqdq {wide}, {upper}", "movaps [{at}], {wide}",
                 wide = out(xmm_reg) _, upper = out(xmm_reg) _, low = in(reg) low, high = in(reg) high, at = in(reg) self.0,
                 options(nostack, preserves_flags));
        }
    }

    /// Exchanges 64 bits, locked.
    pub fn exchange(self, value: u64) -> u64 {
        let old;
        // SAFETY: as in `store`.
        unsafe {
            asm!("xchg [{at}], {value}", at = in(reg) self.0, value = inout(reg) value => old,
                 options(nostack, preserves_flags));
        }
        old
    }

    /// Stores `value` if the 64 bits there are `expected`, locked. Returns what was there.
    pub fn compare_exchange(self, expected: u64, value: u64) -> u64 {
        let old;
        // SAFETY: as in `store`.
        unsafe {
            asm!("lock cmpxchg [{at}], {value}", at = in(reg) self.0, value = in(reg) value,
                 inout("rax") expected => old, options(nostack));
        }
        old
    }

    /// Stores `value` to `count` words by one string instruction.
    pub fn fill(self, value: u64, count: u64) {
        // SAFETY: as in `store`, for each word; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep stosq", inout("rdi") self.0 => _, inout("rcx") count => _, in("rax") value,
                 options(nostack, preserves_flags));
        }
    }

    /// Copies `bytes` bytes from `source` by one string instruction.
    pub fn copy_from(self, source: Self, bytes: u64) {
        // SAFETY: as in `fill`.
        unsafe {
            asm!("rep movsb", inout("rdi") self.0 => _, inout("rsi") source.0 => _, inout("rcx") bytes => _,
                 options(nostack, preserves_flags));
        }
    }
}

impl fmt::Debug for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Va({:#x})", self.0)
    }
}

/// An entry of a page table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Not present.
    pub const EMPTY: Self = Self(0);
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// User.
    pub const U: u64 = 1 << 2;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty.
    pub const D: u64 = 1 << 6;
    /// Large page (level 2 and 3).
    pub const PS: u64 = 1 << 7;
    /// Global.
    pub const G: u64 = 1 << 8;
    /// Not executable.
    pub const NX: u64 = 1 << 63;
    /// The bits that hold an address.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// The entry that maps `frame` (or points at it) with `bits`.
    #[inline]
    #[must_use]
    pub const fn new(frame: Frame, bits: u64) -> Self {
        Self(frame.0 | bits)
    }

    /// The entry with exactly these bits, whatever they mean.
    #[must_use]
    pub const fn raw(bits: u64) -> Self {
        Self(bits)
    }

    /// The entry as a number.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every one of `bits` is set.
    #[inline]
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The frame that the entry names.
    ///
    /// # Panics
    /// If that is no frame of [`TABLES_AND_DATA`].
    #[must_use]
    pub fn frame(self) -> Frame {
        Frame::at(self.0 & Self::ADDRESS)
    }

    /// The table that the entry points at, which is known to be one of this guest's.
    #[inline]
    fn table(self) -> Frame {
        Frame(self.0 & Self::ADDRESS)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#x})", self.0)
    }
}

/// A 4 KiB frame of RAM outside the image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame(u64);

impl Frame {
    /// The frame at `address`.
    ///
    /// # Panics
    /// If `address` is not aligned or not in [`TABLES_AND_DATA`]: an error of the guest's author.
    #[must_use]
    pub const fn at(address: u64) -> Self {
        assert!(
            address.is_multiple_of(FRAME_SIZE)
                && TABLES_AND_DATA.start <= address
                && address < TABLES_AND_DATA.end
        );
        Self(address)
    }

    /// The frame's physical address.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0
    }

    /// The frame `frames` further on.
    #[must_use]
    pub const fn next(self, frames: u64) -> Self {
        Self::at(self.0 + frames * FRAME_SIZE)
    }

    /// Stores entry `index`.
    #[inline]
    pub fn set(self, index: usize, entry: Entry) {
        assert!(index < 512);
        // SAFETY: inside a frame that holds no Rust object (invariant 2) and that is identity-mapped (invariant 1).
        unsafe { ptr::write_volatile((self.0 as *mut u64).wrapping_add(index), entry.0) };
    }

    /// Loads entry `index`.
    #[inline]
    #[must_use]
    pub fn get(self, index: usize) -> Entry {
        assert!(index < 512);
        // SAFETY: as in `set`.
        Entry(unsafe { ptr::read_volatile((self.0 as *const u64).wrapping_add(index)) })
    }

    /// Exchanges entry `index`, locked: returns the one before, with the bits that processors have set in it.
    pub fn exchange(self, index: usize, entry: Entry) -> Entry {
        Entry(self.word(index).swap(entry.0, Ordering::SeqCst))
    }

    /// Clears `bits` in entry `index`, locked: returns the one before.
    pub fn clear_bits(self, index: usize, bits: u64) -> Entry {
        Entry(self.word(index).fetch_and(!bits, Ordering::SeqCst))
    }

    /// Entry `index` as an atomic word.
    fn word(self, index: usize) -> &'static AtomicU64 {
        assert!(index < 512);
        let word = (self.0 as *mut u64).wrapping_add(index);
        // SAFETY: as in `set`; the word is aligned, RAM for ever, and never borrowed otherwise.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Empties all 512 entries, one 64-bit store each, four instructions per store.
    pub fn clear(self) {
        // SAFETY: as in `set`, for each entry of the frame. The loop is written out because the benchmark measures it.
        unsafe {
            asm!("2:", "mov qword ptr [{at}], 0", "add {at}, 8", "cmp {at}, {end}", "jne 2b",
                 at = inout(reg) self.0 => _, end = in(reg) self.0 + FRAME_SIZE, options(nostack));
        }
    }

    /// Copies all of `source`.
    pub fn copy_from(self, source: Self) {
        // SAFETY: as in `set`, for each word of both frames; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep movsq", inout("rdi") self.0 => _, inout("rsi") source.0 => _, inout("rcx") FRAME_SIZE / 8 => _,
                 options(nostack, preserves_flags));
        }
    }

    /// The table of `level` and the index in it where `address`'s entry sits, under this root.
    ///
    /// Missing tables on the way come from `pool` and are linked with `link`'s bits.
    pub fn slot(self, address: Va, level: Level, pool: &mut FramePool, link: u64) -> (Self, usize) {
        let mut table = self;
        for upper in [Level::Pml4, Level::Pdpt, Level::Pd] {
            if upper == level {
                break;
            }
            let index = address.index(upper);
            if !table.get(index).has(Entry::P) {
                table.set(index, Entry::new(pool.take(), link));
            }
            table = table.get(index).table();
        }
        (table, address.index(level))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:#x})", self.0)
    }
}

/// Hands out cleared frames in ascending order.
#[derive(Clone, Debug)]
pub struct FramePool {
    next: u64,
    end: u64,
}

impl FramePool {
    /// A pool of the frames from `start` up to `end`, both in [`TABLES_AND_DATA`].
    #[must_use]
    pub const fn new(start: Frame, end: Frame) -> Self {
        Self {
            next: start.0,
            end: end.0,
        }
    }

    /// The next frame, cleared.
    ///
    /// # Panics
    /// If the pool is empty.
    pub fn take(&mut self) -> Frame {
        let frame = self.take_uncleared(1);
        frame.clear();
        frame
    }

    /// The first of the next `count` frames, as they are.
    ///
    /// # Panics
    /// If the pool has fewer.
    pub fn take_uncleared(&mut self, count: u64) -> Frame {
        assert!(
            self.end - self.next >= count * FRAME_SIZE,
            "the frame pool is empty"
        );
        let frame = Frame(self.next);
        self.next += count * FRAME_SIZE;
        frame
    }
}
