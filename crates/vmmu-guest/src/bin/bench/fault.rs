//! The page-fault handler of the copy-on-write and demand phases, 15 instructions long, and the end of a run
//! that any other exception means.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu_guest::machine::{Entry, Frame, Gate, install_gates};

/// What the handler does: stores `value` to `slot`, invalidates the page if `invalidate` is not 0, counts.
#[repr(C)]
struct Repair {
    slot: AtomicU64,
    value: AtomicU64,
    invalidate: AtomicU64,
    count: AtomicU64,
}

static REPAIR: Repair = Repair {
    slot: AtomicU64::new(0),
    value: AtomicU64::new(0),
    invalidate: AtomicU64::new(0),
    count: AtomicU64::new(0),
};

global_asm!(
    "bench_page_fault:",
    "push rax",
    "push rcx",
    "mov rax, [rip + {repair}]",
    "mov rcx, [rip + {repair} + 8]",
    "mov [rax], rcx",
    "mov rcx, [rip + {repair} + 16]",
    "test rcx, rcx",
    "jz 2f",
    "mov rax, cr2",
    "invlpg [rax]",
    "2:",
    "inc qword ptr [rip + {repair} + 24]",
    "pop rcx",
    "pop rax",
    "add rsp, 8",
    "iretq",
    "bench_unexpected:",
    "mov eax, {unexpected}",
    "out 0xf4, eax",
    "cli",
    "hlt",
    repair = sym REPAIR,
    unexpected = const super::Failure::Exception as u32,
);

unsafe extern "C" {
    fn bench_page_fault();
    fn bench_unexpected();
}

/// Whether the handler invalidates the faulting page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidation {
    /// It does: the copy-on-write phase.
    Page = 1,
    /// It doesn't: a processor caches no translation that is not present.
    None = 0,
}

/// Installs the handlers.
pub(crate) fn install() {
    let mut gates = [Gate::new(bench_unexpected); 32];
    gates[14] = Gate::new(bench_page_fault);
    // SAFETY: `bench_page_fault` keeps all registers and pops the error code; `bench_unexpected` does not return. The
    // call itself raises no exception.
    unsafe { install_gates(gates) };
}

/// Says what the handler stores, and where.
pub(crate) fn repair((table, index): (Frame, usize), value: Entry, invalidation: Invalidation) {
    REPAIR
        .slot
        .store(table.address() + 8 * index as u64, Ordering::Relaxed);
    REPAIR.value.store(value.bits(), Ordering::Relaxed);
    REPAIR
        .invalidate
        .store(invalidation as u64, Ordering::Relaxed);
}

/// Page faults so far.
pub(crate) fn count() -> u64 {
    REPAIR.count.load(Ordering::Relaxed)
}
