//! The way into native code and back: the crate's only unsafe module.
//!
//! Key type: [`Sandbox`].
//!
//! A process changes all its registers at once by returning from a signal handler. So [`Sandbox::run`] executes a breakpoint; the handler of its signal
//! keeps the interrupted context and returns to the instruction under test with the registers it was given. That instruction is surrounded by
//! breakpoints. The next signal, from one of them or from an exception, hands its context out and returns behind the first breakpoint, as if nothing had
//! happened. Handlers run on a stack of their own, so the stack pointer is a register like any other.
//!
//! Invariants
//! 1. One sandbox exists at a time (a mutex is held), on one thread (it isn't `Send`); [`EXCHANGE`] is null but during [`Sandbox::run`].
//! 2. Code and data pages are mapped from the first sandbox on, for the rest of the process, and only the holder of the mutex touches them.
//! 3. Code under test may write only to the data pages: whoever calls `run` chooses instructions and registers so. All else is unmapped nearby.

#![expect(
    unsafe_code,
    reason = "signal handlers that replace registers, and pages at fixed addresses"
)]

use core::ffi::{c_int, c_void};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::registers::{CodeMode, End, Fx, Registers};

/// Where code pages begin: below 2 GiB, so that every kind of address reaches them.
pub const CODE: u64 = 0x1000_0000;
/// The size of the code pages in bytes.
pub const CODE_LEN: usize = 0x1_0000;
/// Where data pages begin.
pub const DATA: u64 = 0x2000_0000;
/// The size of the data pages in bytes.
pub const DATA_LEN: usize = 0x2000;

/// The base of GS in 64-bit code.
pub const GS_BASE: u64 = 0x0800_0000;

const BREAKPOINT: u8 = 0xcc;
/// The signals that exceptions become.
const SIGNALS: [c_int; 5] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];
const STACK_LEN: usize = 1 << 16;
/// Linux's selectors for user code and data (its ABI: a process may load them), and those of the process's own descriptors.
const CODE_64: i64 = 0x33;
const CODE_32: i64 = 0x23;
const CODE_16: i64 = 0x07;
const DATA_32: i64 = 0x2b;
const DATA_16: i64 = 0x0f;
/// The places of general registers in a signal's context, by number in encodings.
const PLACES: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What [`Sandbox::run`] and the handler pass to each other.
#[repr(C)]
struct Exchange {
    registers: Registers,
    host_fx: Fx,
    host: [i64; 23],
    stage: Stage,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The next signal is the host's breakpoint.
    Enter,
    /// The next signal ends the code under test.
    Leave,
    /// No signal is expected.
    Done,
}

/// What the handler works on: null, or the exchange of the one `run` that is going on.
static EXCHANGE: AtomicPtr<Exchange> = AtomicPtr::new(ptr::null_mut());
static ONE: Mutex<()> = Mutex::new(());

/// Pages at fixed addresses, and the signal handlers, of the thread that opened it.
#[derive(Debug)]
pub struct Sandbox {
    _one: MutexGuard<'static, ()>,
    old_actions: Vec<libc::sigaction>,
    old_stack: libc::stack_t,
    stack: Vec<u8>,
    old_gs: u64,
    /// The kernel lets a process describe segments of its own.
    runs_16_bit: bool,
    /// The bytes of the last instruction, to be covered again.
    dirty: core::ops::Range<usize>,
    not_send: PhantomData<*mut ()>,
}

impl Sandbox {
    /// Opens the sandbox; waits for another thread's to close.
    ///
    /// # Errors
    /// The system refuses the pages or the handlers.
    pub fn open() -> io::Result<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        map(CODE, CODE_LEN, libc::PROT_EXEC)?;
        map(DATA, DATA_LEN, 0)?;
        let mut sandbox = Self {
            _one: one,
            old_actions: Vec::new(),
            old_stack: no_stack(),
            stack: vec![0; STACK_LEN],
            old_gs: gs_base()?,
            runs_16_bit: false,
            dirty: 0..CODE_LEN,
            not_send: PhantomData,
        };
        let stack = libc::stack_t {
            ss_sp: sandbox.stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: STACK_LEN,
        };
        // SAFETY: both point to valid structures; the stack lives until `drop` has taken it back.
        checked(unsafe { libc::sigaltstack(&raw const stack, &raw mut sandbox.old_stack) })?;
        for signal in SIGNALS {
            sandbox.old_actions.push(handle(signal)?);
        }
        set_gs_base(GS_BASE)?;
        sandbox.runs_16_bit = describe(CODE_16, CODE, SegmentKind::Code)
            .and_then(|()| describe(DATA_16, DATA, SegmentKind::Data))
            .is_ok();
        Ok(sandbox)
    }

    /// Says whether a mode can be used: kernels may be built, or told, to refuse 16-bit segments.
    #[must_use]
    pub const fn runs(&self, mode: CodeMode) -> bool {
        match mode {
            CodeMode::Bits64 | CodeMode::Bits32 => true,
            CodeMode::Bits16 => self.runs_16_bit,
        }
    }

    /// Executes the instruction `code` at `registers.rip`, which, the code segment's base added, lies in the code pages with 16 bytes to spare, on `data`, which the data pages hold
    /// meanwhile. All other bytes of the code pages are breakpoints.
    ///
    /// Whoever calls it vouches that the instruction writes nowhere but to the data pages, makes no system call and changes no segment register: this
    /// is a test of instructions, no confinement.
    ///
    /// # Panics
    /// The instruction does not fit into the code pages, or [`Sandbox::runs`] said that the mode can't be used.
    pub fn run(
        &mut self,
        code: &[u8],
        data: &mut [u8; DATA_LEN],
        registers: &mut Registers,
    ) -> End {
        assert!(self.runs(registers.mode), "the mode can be used");
        let at = registers.rip.wrapping_add(registers.mode.code_base());
        let start = at.wrapping_sub(CODE) as usize;
        assert!(
            start < CODE_LEN && start + code.len() <= CODE_LEN,
            "the instruction lies in the code pages"
        );
        self.place(start, code);
        let pages = DATA as *mut u8;
        // SAFETY: the pages are mapped writable, and this sandbox is the only one (invariants 1 and 2).
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), pages, DATA_LEN) };
        let mut exchange = Exchange {
            registers: registers.clone(),
            host_fx: Fx([0; 512]),
            host: [0; 23],
            stage: Stage::Enter,
            end: End::Completed,
        };
        load_data_segments(registers.mode);
        EXCHANGE.store(&raw mut exchange, Ordering::SeqCst);
        // SAFETY: the handler brings the thread back behind this breakpoint with all its registers, and memory changed only in `exchange` and in the
        // data pages, as the caller vouches.
        unsafe { core::arch::asm!("int3") };
        EXCHANGE.store(ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(pages, data.as_mut_ptr(), DATA_LEN) };
        *registers = exchange.registers;
        exchange.end
    }

    /// Covers the last instruction with breakpoints and writes the next.
    fn place(&mut self, start: usize, code: &[u8]) {
        let pages = CODE as *mut u8;
        // SAFETY: the ranges lie in the code pages, which are mapped writable and only this sandbox's (invariants 1 and 2).
        unsafe {
            ptr::write_bytes(
                pages.wrapping_add(self.dirty.start),
                BREAKPOINT,
                self.dirty.len(),
            )
        };
        // SAFETY: as above; `run` has checked the range.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), pages.wrapping_add(start), code.len()) };
        self.dirty = start..start + code.len();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for (signal, action) in SIGNALS.iter().zip(&self.old_actions) {
            // SAFETY: the action was the one before this sandbox.
            unsafe { libc::sigaction(*signal, action, ptr::null_mut()) };
        }
        // The thread had it before.
        let _ = set_gs_base(self.old_gs);
        // SAFETY: the stack was the one before this sandbox, or none.
        unsafe { libc::sigaltstack(&raw const self.old_stack, ptr::null_mut()) };
    }
}

const fn no_stack() -> libc::stack_t {
    libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    }
}

fn checked(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Maps pages at a fixed address, unless they are.
fn map(at: u64, len: usize, extra: c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE | extra;
    // SAFETY: NOREPLACE: nothing that exists is unmapped.
    let mapped = unsafe { libc::mmap(at as *mut c_void, len, protection, flags, -1, 0) };
    let error = io::Error::last_os_error();
    match mapped as u64 {
        found if found == at => Ok(()),
        _ if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        _ => Err(error),
    }
}

/// Installs the handler; returns the former action.
fn handle(signal: c_int) -> io::Result<libc::sigaction> {
    // SAFETY: all zeros is a valid action.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut old = action;
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the type that SA_SIGINFO wants, and touches only its arguments and the exchange.
    checked(unsafe { libc::sigaction(signal, &raw const action, &raw mut old) })?;
    Ok(old)
}

/// Loads DS and ES for a mode: 64-bit code ignores them, compatibility mode does not.
fn load_data_segments(mode: CodeMode) {
    let selector = match mode {
        CodeMode::Bits64 | CodeMode::Bits32 => DATA_32,
        CodeMode::Bits16 => DATA_16,
    };
    // SAFETY: the selector is the kernel's flat user data segment or the sandbox's own; 64-bit code does not use what it loads.
    unsafe {
        core::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) selector as u32, options(nomem, nostack, preserves_flags));
    }
}

/// Returns the base of GS.
fn gs_base() -> io::Result<u64> {
    const GET_GS: c_int = 0x1004;
    let mut base = 0u64;
    // SAFETY: the call writes the base to the variable.
    checked(unsafe { libc::syscall(libc::SYS_arch_prctl, GET_GS, &raw mut base) } as c_int)?;
    Ok(base)
}

/// Sets the base of GS, which 64-bit programs on Linux leave alone: FS is the one of thread-local variables.
fn set_gs_base(base: u64) -> io::Result<()> {
    const SET_GS: c_int = 0x1001;
    // SAFETY: nothing in this process uses GS.
    checked(unsafe { libc::syscall(libc::SYS_arch_prctl, SET_GS, base) } as c_int)
}

/// What a segment of the process's own holds, as `modify_ldt` has it in bits 1 and 2 of its flags.
#[derive(Clone, Copy)]
enum SegmentKind {
    Data = 0,
    Code = 2,
}

/// Describes a 16-bit segment of 64 KiB to the kernel.
fn describe(selector: i64, base: u64, kind: SegmentKind) -> io::Result<()> {
    /// The kernel's `struct user_desc`.
    #[repr(C)]
    struct Description {
        number: u32,
        base: u32,
        limit: u32,
        /// Bit 0: 32-bit; bits 1 and 2: the contents; bit 3: not writable, or not readable; bit 6: useable.
        flags: u32,
    }
    const WRITE: c_int = 0x11;
    let description = Description {
        number: (selector >> 3) as u32,
        base: base as u32,
        limit: 0xffff,
        flags: (kind as u32) << 1 | 1 << 6,
    };
    let (at, len) = (&raw const description, size_of::<Description>());
    // SAFETY: the structure is the one that the call reads, and as long as it says.
    let result = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, at, len) };
    checked(result as c_int)
}

extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let exchange = EXCHANGE.load(Ordering::SeqCst);
    // SAFETY: null, or the exchange on the stack of the `run` that this thread is in, which does not touch it meanwhile (invariant 1).
    let exchange = unsafe { exchange.as_mut() };
    // SAFETY: the kernel passes a context that is this handler's alone.
    let context = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    match exchange {
        Some(exchange) if exchange.stage == Stage::Enter && signal == libc::SIGTRAP => {
            enter(exchange, context);
        }
        Some(exchange) if exchange.stage == Stage::Leave => leave(exchange, context),
        // SAFETY: an error of the host itself: the default action takes it when it happens again.
        _ => drop(unsafe { libc::signal(signal, libc::SIG_DFL) }),
    }
}

fn enter(exchange: &mut Exchange, context: &mut libc::mcontext_t) {
    exchange.host = context.gregs;
    exchange.host_fx = read_fx(context);
    exchange.stage = Stage::Leave;
    let registers = &exchange.registers;
    for (place, value) in PLACES.iter().zip(registers.gpr) {
        context.gregs[*place as usize] = value as i64;
    }
    context.gregs[libc::REG_RIP as usize] = registers.rip as i64;
    let flags = &mut context.gregs[libc::REG_EFL as usize];
    *flags = *flags & !(Registers::FLAGS as i64) | (registers.flags & Registers::FLAGS) as i64;
    let (code, stack) = match registers.mode {
        CodeMode::Bits64 => (CODE_64, DATA_32),
        CodeMode::Bits32 => (CODE_32, DATA_32),
        CodeMode::Bits16 => (CODE_16, DATA_16),
    };
    let selectors = &mut context.gregs[libc::REG_CSGSFS as usize];
    *selectors = *selectors & 0x0000_ffff_ffff_0000 | code | stack << 48;
    write_fx(context, &registers.fx);
}

fn leave(exchange: &mut Exchange, context: &mut libc::mcontext_t) {
    let greg = |place: c_int| context.gregs[place as usize] as u64;
    let mut rip = greg(libc::REG_RIP);
    let vector = greg(libc::REG_TRAPNO) as u8;
    exchange.end = if vector == 3 {
        rip = rip.wrapping_sub(1);
        End::Completed
    } else {
        End::Exception {
            vector,
            code: greg(libc::REG_ERR) as u32,
            address: greg(libc::REG_CR2),
        }
    };
    let registers = &mut exchange.registers;
    for (place, value) in PLACES.iter().zip(&mut registers.gpr) {
        *value = greg(*place);
    }
    if registers.mode == CodeMode::Bits16 {
        // The way to a 16-bit stack segment leaves the address of the kernel's own stack in the upper half, which 16-bit code can't see.
        registers.gpr[4] &= 0xffff_ffff;
    }
    registers.rip = rip;
    registers.flags = greg(libc::REG_EFL) & Registers::FLAGS;
    registers.fx = read_fx(context);
    exchange.stage = Stage::Done;
    context.gregs = exchange.host;
    write_fx(context, &exchange.host_fx);
}

fn read_fx(context: &libc::mcontext_t) -> Fx {
    // SAFETY: the kernel's frame holds an FXSAVE image, 16-byte aligned.
    unsafe { context.fpregs.cast::<Fx>().read() }
}

/// Writes the FXSAVE image, and says in the XSAVE header behind it, if there is one, that x87 and SSE are to be loaded.
fn write_fx(context: &mut libc::mcontext_t, fx: &Fx) {
    /// Bytes that belong to the kernel: they say whether an XSAVE header follows (its ABI, FP_XSTATE_MAGIC1).
    const OWN: core::ops::Range<usize> = 464..512;
    let image = context.fpregs.cast::<Fx>();
    // SAFETY: as in `read_fx`; the frame is this handler's alone.
    let image = unsafe { &mut *image };
    let mut new = *fx;
    new.0[OWN].copy_from_slice(&image.0[OWN]);
    *image = new;
    if new.0[464..468] == 0x4650_5853u32.to_le_bytes() {
        let header = context.fpregs.cast::<u64>().wrapping_add(64);
        // SAFETY: the magic number says that the header follows the image; its first word is XSTATE_BV.
        let present = unsafe { &mut *header };
        *present |= 3;
    }
}
