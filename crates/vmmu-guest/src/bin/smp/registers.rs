//! The local APIC as each processor sees its own: written by every form of instruction, and emptied by INIT.
//!
//! Key functions: [`check_forms`], [`check_init`].
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu_guest::machine::{Va, local_apic};

use crate::report::{Kind, failure};
use crate::{startup, trap};

/// The vector of the interrupt that waits until INIT discards it; no gate is there for it.
const LOST_VECTOR: u8 = 0x51;

/// What the processor that is to be reset has come to.
static STAGE: AtomicU64 = AtomicU64::new(STARTED);
const STARTED: u64 = 0;
const LISTENS: u64 = 1;
const HAS_IT: u64 = 2;

/// Has an interrupt wait for processor 1 while INIT resets it: nothing may wait when it has started again.
pub(crate) fn check_init() {
    startup::prepare(listen);
    startup::start(1);
    wait_for(LISTENS);
    local_apic::send_fixed(1, LOST_VECTOR);
    wait_for(HAS_IT);
    startup::forget();
    startup::prepare(look);
    startup::start(1);
    wait_for(STARTED);
    startup::forget();
}

fn wait_for(stage: u64) {
    while STAGE.load(Ordering::SeqCst) != stage {
        core::hint::spin_loop();
    }
}

/// Waits with interrupts off until one is there.
extern "C" fn listen(_: usize) -> ! {
    local_apic::enable(trap::SPURIOUS_VECTOR);
    STAGE.store(LISTENS, Ordering::SeqCst);
    while !local_apic::waits(LOST_VECTOR) {
        core::hint::spin_loop();
    }
    STAGE.store(HAS_IT, Ordering::SeqCst);
    park()
}

/// Looks whether it is still there.
extern "C" fn look(number: usize) -> ! {
    if local_apic::waits(LOST_VECTOR) {
        failure(
            number,
            Kind::WrongApic,
            format_args!("an interrupt has outlived INIT"),
        );
    }
    STAGE.store(STARTED, Ordering::SeqCst);
    park()
}

/// Waits for an INIT.
fn park() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Executes one instruction whose destination, `{}`, is the register.
macro_rules! execute {
    ($tried:expr, $instruction:literal $(; $($operands:tt)*)?) => {
        // SAFETY: the register only holds a priority, and the operands are the instruction's own.
        unsafe { asm!($instruction, in(reg) $tried.register, $($($operands)*,)? options(nostack)) }
    };
}

/// Writes a register by the forms that 32 bits in memory can be written by, and reads it back.
pub(crate) fn check_forms(number: usize) {
    let register = local_apic::task_priority();
    let tried = Forms { number, register };
    // A priority delays interrupts, and so would their handlers what is tried.
    trap::disable_interrupts();
    tried.change();
    tried.exchange();
    tried.copy();
    execute!(tried, "mov dword ptr [{}], 0");
    trap::enable_interrupts();
}

/// A register that is written by one form after the other.
struct Forms {
    number: usize,
    register: *mut u32,
}

impl Forms {
    fn change(&self) {
        execute!(self, "mov dword ptr [{}], 0x21");
        self.expect("MOV", 0x21);
        execute!(self, "or dword ptr [{}], 0x42");
        self.expect("OR", 0x63);
        execute!(self, "and dword ptr [{}], 0x51");
        self.expect("AND", 0x41);
        execute!(self, "lock xor dword ptr [{}], 0x60");
        self.expect("LOCK XOR", 0x21);
        execute!(self, "inc dword ptr [{}]");
        self.expect("INC", 0x22);
    }
    /// What the register holds before is 0x22.
    fn exchange(&self) {
        let mut found: u32 = 0x35;
        execute!(self, "xchg [{}], eax"; inout("eax") found);
        self.expect("XCHG", 0x35);
        self.same("what XCHG found", found, 0x22);
        found = 0x10;
        execute!(self, "lock xadd [{}], eax"; inout("eax") found);
        self.expect("XADD", 0x45);
        self.same("what XADD found", found, 0x35);
        found = 0x45;
        execute!(self, "lock cmpxchg [{}], ecx"; in("ecx") 0x17, inout("eax") found);
        self.expect("CMPXCHG", 0x17);
        self.same("what CMPXCHG found", found, 0x45);
    }
    fn copy(&self) {
        execute!(self, "mov rdi, {}; stosd"; out("rdi") _, in("eax") 0x28);
        self.expect("STOS", 0x28);
        let from = 0x19_u32;
        execute!(self, "mov rdi, {}; movsd"; out("rdi") _, inout("rsi") &raw const from => _);
        self.expect("MOVS", 0x19);
    }
    fn expect(&self, form: &str, expected: u32) {
        // SAFETY: the register is mapped, and reading it changes nothing.
        let found = unsafe { self.register.read_volatile() };
        self.same(form, found, expected);
    }
    fn same(&self, form: &str, found: u32, expected: u32) {
        if found != expected {
            let at = Va::new(self.register as u64).value();
            failure(
                self.number,
                Kind::WrongApic,
                format_args!("{form} at {at:#x}: {found:#x} instead of {expected:#x}"),
            );
        }
    }
}
