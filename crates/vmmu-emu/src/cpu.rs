//! What an instruction reaches beyond its registers: the one trait of an embedder.
//!
//! Key types: [`Cpu`], [`Access`], [`Stop`], [`Exception`].
//!
//! Invariants that an embedder keeps:
//! 1. A method that returns an error has done nothing that the guest can see.
//! 2. A store crosses a page only if both pages grant it: all of it or nothing.
//! 3. [`Cpu::check_write`] that succeeded is followed by stores to its range that succeed, until the instruction ends.

use crate::state::State;
use crate::system::features::Features;
use crate::word::Word;

/// How memory is accessed; with the current privilege level and RFLAGS.AC it decides what the page tables must grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Access {
    /// A data read.
    Read,
    /// A read of what is written next: it must be writable, and a fault says that it was a write.
    Update,
    /// A data write.
    Write,
    /// A read by the processor itself, of a descriptor table or task state: as privilege level 0.
    SystemRead,
    /// A write by the processor itself, such as a descriptor's accessed bit, or the pushes of an interrupt to an inner level.
    SystemWrite,
}

/// An exception that an instruction raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// The vector.
    pub vector: u8,
    /// The error code, for vectors that have one. #PF: the address is in [`State::fault_address`].
    pub code: Option<u16>,
}

#[expect(missing_docs, reason = "the manuals' names")]
impl Exception {
    pub const DIVIDE: Self = Self::new(0);
    pub const DEBUG: Self = Self::new(1);
    pub const BREAKPOINT: Self = Self::new(3);
    pub const OVERFLOW: Self = Self::new(4);
    pub const BOUND: Self = Self::new(5);
    pub const UNDEFINED: Self = Self::new(6);
    pub const NO_FPU: Self = Self::new(7);
    pub const GENERAL_PROTECTION: Self = Self::with_code(13, 0);
    pub const STACK: Self = Self::with_code(12, 0);
    pub const X87: Self = Self::new(16);
    pub const ALIGNMENT: Self = Self::with_code(17, 0);
    pub const SIMD: Self = Self::new(19);

    /// Makes one without an error code.
    #[must_use]
    pub const fn new(vector: u8) -> Self {
        Self { vector, code: None }
    }

    /// Makes one with an error code.
    #[must_use]
    pub const fn with_code(vector: u8, code: u16) -> Self {
        Self {
            vector,
            code: Some(code),
        }
    }
}

/// Why an instruction did not complete. The state is as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It raises an exception, which is to be delivered.
    Exception(Exception),
    /// The embedder takes over: it knows why, because it said so.
    Exit,
    /// The emulator does not know the instruction.
    Unsupported,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// A processor, as the emulator sees it.
pub trait Cpu: Sized {
    /// Whether the emulator executes x87, MMX and SSE instructions; otherwise it does not know them, and its code stays small.
    const HAS_VECTORS: bool = true;

    /// Returns the registers.
    fn state(&self) -> &State;
    /// Returns the registers, to change them.
    fn state_mut(&mut self) -> &mut State;

    /// Says what the processor offers; CPUID is to agree.
    fn features(&self) -> Features {
        Features::BASELINE
    }

    /// Reads at a linear address, which is canonical or below 4 GiB; it may cross pages.
    ///
    /// # Errors
    /// [`Stop::Exception`] with #PF (or #GP, #AC), or [`Stop::Exit`].
    fn load<W: Word>(&mut self, at: u64, access: Access) -> Result<W, Stop>;

    /// Writes at a linear address.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    fn store<W: Word>(&mut self, at: u64, value: W, access: Access) -> Result<(), Stop>;

    /// Reads 16 bytes at a linear address: a vector.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    #[inline]
    fn load_vector(&mut self, at: u64, access: Access) -> Result<u128, Stop> {
        let low: u64 = self.load(at, access)?;
        let high: u64 = self.load(at.wrapping_add(8), access)?;
        Ok(u128::from(high) << 64 | u128::from(low))
    }

    /// Writes 16 bytes at a linear address: a vector, all of it or nothing.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    #[inline]
    fn store_vector(&mut self, at: u64, value: u128, access: Access) -> Result<(), Stop> {
        self.check_write(at, 16, access)?;
        self.store(at, value as u64, access)?;
        self.store(at.wrapping_add(8), (value >> 64) as u64, access)
    }

    /// Replaces `current` by `new` at a linear address, atomically among all processors and devices; returns what was there.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    fn compare_exchange<W: Word>(&mut self, at: u64, current: W, new: W) -> Result<W, Stop>;

    /// Does the same with 16 bytes, aligned (CMPXCHG16B). As it stands here it is not atomic, which suffices where nobody else writes meanwhile.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    fn compare_exchange_pair(&mut self, at: u64, current: u128, new: u128) -> Result<u128, Stop> {
        let found = self.load_vector(at, Access::Update)?;
        if found == current {
            self.store_vector(at, new, Access::Write)?;
        }
        Ok(found)
    }

    /// Copies `len` bytes upwards between linear addresses, each range within a page, for a repeated MOVS; either all of them, or none and says no.
    /// The ranges do not overlap so that it mattered, wherever their pages are.
    ///
    /// An embedder whose memory can't, or has to be asked for each element (a device, a fault, an observer), leaves it at no: each element is a load
    /// and a store then.
    fn copy(&mut self, _from: u64, _to: u64, _len: usize) -> bool {
        false
    }

    /// Fills `len` bytes at a linear address, within a page, with the bytes of `pattern` over and over, for a repeated STOS; all or none, as
    /// [`Cpu::copy`].
    fn fill(&mut self, _at: u64, _pattern: u64, _len: usize) -> bool {
        false
    }

    /// Finds out whether `len` bytes, at most 4096, could be written.
    ///
    /// # Errors
    /// As [`Cpu::store`] would.
    fn check_write(&mut self, at: u64, len: usize, access: Access) -> Result<(), Stop>;

    /// Reads a port, `bytes` wide (1, 2 or 4). The emulator has checked the privilege.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn port_in(&mut self, port: u16, bytes: usize) -> Result<u32, Stop>;
    /// Writes a port.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn port_out(&mut self, port: u16, bytes: usize, value: u32) -> Result<(), Stop>;

    /// Reads a model-specific register. The emulator has checked the privilege.
    ///
    /// # Errors
    /// #GP where there is none; [`Stop::Exit`].
    fn read_msr(&mut self, number: u32) -> Result<u64, Stop>;
    /// Writes a model-specific register.
    ///
    /// # Errors
    /// As [`Cpu::read_msr`].
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Stop>;

    /// Writes CR0, CR3, CR4 or CR8 into the state, and does what follows from it. The emulator has checked privilege and value.
    ///
    /// # Errors
    /// [`Stop::Exit`]; #GP for what only the embedder can refuse.
    fn write_control(&mut self, register: Control, value: u64) -> Result<(), Stop>;
    /// Drops cached translations.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn invalidate(&mut self, what: Invalidation) -> Result<(), Stop>;

    /// Answers CPUID with EAX, EBX, ECX, EDX.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> Result<[u32; 4], Stop>;
    /// Reads the time-stamp counter.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn timestamp(&mut self) -> Result<u64, Stop>;
    /// Sleeps until the next interrupt; returns at once, the instruction is over.
    ///
    /// # Errors
    /// [`Stop::Exit`].
    fn halt(&mut self) -> Result<(), Stop>;
    /// Serves VMMCALL or VMCALL.
    ///
    /// # Errors
    /// #UD, or [`Stop::Exit`].
    fn hypercall(&mut self) -> Result<(), Stop>;
}

/// A control register that instructions write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the manuals' names")]
pub enum Control {
    Cr0,
    Cr3,
    Cr4,
    Cr8,
}

/// What an instruction invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// INVLPG: the page at a linear address, global or not.
    Page(u64),
    /// INVPCID of one page of an address space: type 0.
    PageOf {
        /// The address space.
        pcid: u16,
        /// The linear address.
        at: u64,
    },
    /// INVPCID types 1 to 3: an address space, everything, everything not global.
    Spaces {
        /// The type.
        kind: u8,
        /// The address space, for type 1.
        pcid: u16,
    },
    /// INVD or WBINVD: the data caches.
    Caches,
}
