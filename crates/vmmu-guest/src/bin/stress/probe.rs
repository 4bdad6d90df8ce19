//! Runs one instruction at a chosen privilege and says what became of it.
//!
//! A probe enters its code by IRET and always ends in an exception: INT3 behind the instruction when that has
//! completed, or the fault that it raised. The handler notes the exception and returns from [`run`], whatever the stack
//! and privilege were, so nothing has to be resumed. [`repair`] is the exception: page faults that are
//! answered as an operating system does, by changing an entry and returning to the instruction.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu_guest::machine::segment::{self, Stacks};
use vmmu_guest::machine::{Entry, Frame, Gate, Va, install_gates, use_gates_at};

use crate::access::{Kind, Outcome, Privilege};

/// What the handler notes and what steers it. `stack` is where `run` waits, 0 when no probe is under way.
#[repr(C)]
struct Note {
    stack: AtomicU64,
    vector: AtomicU64,
    error: AtomicU64,
    rip: AtomicU64,
    rax: AtomicU64,
    cr2: AtomicU64,
    repairs_left: AtomicU64,
    repair_slot: AtomicU64,
    repair_value: AtomicU64,
}

static NOTE: Note = Note {
    stack: AtomicU64::new(0),
    vector: AtomicU64::new(0),
    error: AtomicU64::new(0),
    rip: AtomicU64::new(0),
    rax: AtomicU64::new(0),
    cr2: AtomicU64::new(0),
    repairs_left: AtomicU64::new(0),
    repair_slot: AtomicU64::new(0),
    repair_value: AtomicU64::new(0),
};

/// Where an IRET leads.
#[repr(C)]
struct Target {
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

global_asm!(
    // run(RDI: target, RSI: the instruction's RDI, RDX: its RSI)
    "stress_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {note}], rsp",
    "push qword ptr [rdi + 32]",
    "push qword ptr [rdi + 24]",
    "push qword ptr [rdi + 16]",
    "push qword ptr [rdi + 8]",
    "push qword ptr [rdi]",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "iretq",
    // The supervisor's instructions; the user's are bytes in a frame of their own.
    "stress_load: mov rax, [rdi]",
    "int3",
    "stress_store: mov [rdi], rsi",
    "int3",
    // On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    "stress_trap:",
    "cmp dword ptr [rsp], 14",
    "jne 2f",
    "cmp qword ptr [rip + {note} + 48], 0",
    "jne 4f",
    "2: cmp qword ptr [rip + {note}], 0",
    "je 3f",
    "pop qword ptr [rip + {note} + 8]",
    "pop qword ptr [rip + {note} + 16]",
    "pop qword ptr [rip + {note} + 24]",
    "mov [rip + {note} + 32], rax",
    "mov rax, cr2",
    "mov [rip + {note} + 40], rax",
    "mov rsp, [rip + {note}]",
    "mov qword ptr [rip + {note}], 0",
    "mov eax, 16",
    "mov ss, eax",
    // RFLAGS.AC outlives an exception; nothing else of the probe's flags may either.
    "push 2",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "3: mov rdi, [rsp]",
    "mov rsi, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rcx, cr2",
    "and rsp, -16",
    "call {unexpected}",
    "ud2",
    // Answers a page fault and goes back to the instruction.
    "4: push rax",
    "push rcx",
    "dec qword ptr [rip + {note} + 48]",
    "mov rax, [rip + {note} + 56]",
    "mov rcx, [rip + {note} + 64]",
    "mov [rax], rcx",
    "mov rax, cr2",
    "invlpg [rax]",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code; the others get 0.
    ".balign 16",
    "stress_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (0x60227d00 >> vector) & 1 == 0",
    "push 0",
    ".endif",
    "push vector",
    "jmp stress_trap",
    ".set vector, vector + 1",
    ".endr",
    note = sym NOTE,
    unexpected = sym unexpected,
);

unsafe extern "C" {
    fn stress_run(target: *const Target, rdi: u64, rsi: u64);
    fn stress_load();
    fn stress_store();
    fn stress_stubs();
}

/// An exception outside every probe: the guest itself is broken.
extern "C" fn unexpected(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    panic!("exception {vector} error {error:#x} at {rip:#x}, cr2 {cr2:#x}")
}

/// Bytes of each of the stacks below.
const STACK: usize = 4096;

/// The stacks: of supervisor probes, of exceptions in user mode, of double faults, of page faults that ask for one.
#[repr(C, align(16))]
struct StackSpace([[u8; STACK]; 4]);
static mut STACKS: StackSpace = StackSpace([[0; STACK]; 4]);

/// The top of stack `number`.
fn stack_top(number: usize) -> u64 {
    &raw const STACKS as u64 + ((number + 1) * STACK) as u64
}

/// The stacks that exceptions use unless a check wants others.
pub(crate) fn usual_stacks() -> Stacks {
    Stacks {
        kernel: stack_top(1),
        interrupt: [stack_top(2), stack_top(3), 0],
    }
}

/// The interrupt stack that a gate for page faults may be told to use.
pub(crate) const PAGE_FAULT_STACK: u16 = 2;

/// Where the page-fault handler gets its stack from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFaultStack {
    /// As every exception: the interrupted one, or the task's when coming from user mode.
    Usual,
    /// Always the interrupt stack [`PAGE_FAULT_STACK`].
    Own,
}

/// Installs segments, stacks and handlers.
pub(crate) fn install() {
    // SAFETY: the stacks are static, identity-mapped, and used for nothing else.
    unsafe { segment::install_segments(usual_stacks()) };
    install_handlers(PageFaultStack::Usual);
}

/// Installs the handlers, with the page fault's stack as asked for.
pub(crate) fn install_handlers(page_fault: PageFaultStack) {
    const STUB_SIZE: usize = 16;
    let mut gates = [Gate::EMPTY; 32];
    for (vector, gate) in gates.iter_mut().enumerate() {
        *gate = Gate::at(stress_stubs as *const () as u64 + (vector * STUB_SIZE) as u64);
    }
    gates[3] = gates[3].for_user();
    gates[8] = gates[8].on_stack(1);
    if page_fault == PageFaultStack::Own {
        gates[14] = gates[14].on_stack(PAGE_FAULT_STACK);
    }
    // SAFETY: `stress_trap` returns to `run` with the registers that a call keeps, to the interrupted instruction with all
    // registers kept, or not at all. The call itself raises no exception.
    unsafe { install_gates(gates) };
}

/// The user's load and store, as code for a frame: `mov rax, [rdi]; int3` and `mov [rdi], rsi; int3`.
const USER_LOAD: u64 = 0xcc07_8b48;
const USER_STORE: u64 = 0xcc37_8948;

/// Where every root maps the user's instructions.
pub(crate) const USER_CODE: Va = Va::new(0x7f80_0000_0000);

/// Writes the user's instructions to `frame`.
pub(crate) fn write_user_code(frame: Frame) {
    frame.set(0, Entry::raw(USER_LOAD));
    frame.set(1, Entry::raw(USER_STORE));
}

/// Whether RFLAGS.AC is set during a probe: with SMAP, whether the supervisor may access user pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AlignmentCheck {
    Clear,
    Set,
}

/// Performs one access and says what became of it. A load is of 64 bits; a store stores `value`; code that is executed
/// must end in INT3 and leave its result in RAX.
pub(crate) fn run(
    kind: Kind,
    privilege: Privilege,
    ac: AlignmentCheck,
    address: u64,
    value: u64,
) -> Outcome {
    let user = privilege == Privilege::User;
    let rip = match kind {
        Kind::Execute => address,
        Kind::Load if user => USER_CODE.value(),
        Kind::Store if user => USER_CODE.value() + 8,
        Kind::Load => stress_load as *const () as u64,
        Kind::Store => stress_store as *const () as u64,
    };
    enter(rip, privilege, ac, address, value);
    outcome()
}

/// Goes to `rip` with RDI and RSI as given, and comes back with the exception noted.
fn enter(rip: u64, privilege: Privilege, ac: AlignmentCheck, rdi: u64, rsi: u64) {
    let user = privilege == Privilege::User;
    let target = Target {
        rip,
        cs: if user {
            segment::USER_CODE
        } else {
            segment::KERNEL_CODE
        },
        flags: 2 | u64::from(ac == AlignmentCheck::Set) << 18,
        rsp: stack_top(0),
        ss: if user {
            segment::USER_DATA
        } else {
            segment::KERNEL_DATA
        },
    };
    // SAFETY: the code at `rip` ends in an exception, whose handler comes back here with the ABI's registers kept. What
    // it accesses is the caller's test memory.
    unsafe { stress_run(&raw const target, rdi, rsi) };
}

/// What the handler noted.
fn outcome() -> Outcome {
    const BREAKPOINT: u64 = 3;
    const PAGE_FAULT: u64 = 14;
    let read = |field: &AtomicU64| field.load(Ordering::Relaxed);
    match read(&NOTE.vector) {
        BREAKPOINT => Outcome::Done(read(&NOTE.rax)),
        PAGE_FAULT => Outcome::PageFault {
            code: read(&NOTE.error),
            address: read(&NOTE.cr2),
        },
        vector => Outcome::Exception {
            vector,
            error: read(&NOTE.error),
        },
    }
}

/// Lets the next `count` page faults be answered by storing `value` to entry `index` of `table`, an INVLPG of the
/// faulting address, and a return to the instruction.
pub(crate) fn repair(count: u64, (table, index): (Frame, usize), value: Entry) {
    NOTE.repair_slot
        .store(table.address() + 8 * index as u64, Ordering::Relaxed);
    NOTE.repair_value.store(value.bits(), Ordering::Relaxed);
    NOTE.repairs_left.store(count, Ordering::Relaxed);
}

/// Ends [`repair`] and says how many page faults of its count did not happen.
pub(crate) fn repairs_left() -> u64 {
    NOTE.repairs_left.swap(0, Ordering::Relaxed)
}

/// Runs the store instruction at `code` (`mov [rdi], rsi; int3`), which stores `value` to `address`.
pub(crate) fn store_by_code_at(code: Va, privilege: Privilege, address: Va, value: u64) {
    enter(
        code.value(),
        privilege,
        AlignmentCheck::Clear,
        address.value(),
        value,
    );
}

/// Tells the processor that its descriptor table is at `address`, which is mapped to it.
pub(crate) fn use_descriptors_at(address: Va) {
    // SAFETY: the caller has mapped the table's memory there, and goes back before that changes.
    unsafe { use_gates_at(address.value()) };
}
