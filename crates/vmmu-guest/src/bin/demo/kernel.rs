//! The kernel: system calls and page faults.
//!
//! Key functions: [`start`], [`serve`]. Key type: [`Kernel`], of which there is one.
//!
//! Invariants:
//! 1. The processor's root is the current process's whenever a process runs.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;

use vmmu_guest::machine::register::cr2;
use vmmu_guest::machine::{Entry, end_run};

use crate::memory::Frames;
use crate::phase::Phase;
use crate::process::{Process, Processes, Waiting};
use crate::program::PROGRAM;
use crate::space::{AREA, AREA_PAGES, CODE, HEAP, Reply, STACK, Space};
use crate::trap::{Cause, Trap, enter};
use crate::{Failure, fail};

/// Numbers of system calls, which the program has too.
pub(crate) mod call {
    /// A phase of the story begins; arguments: its number (0: none) and how many operations it has.
    pub(crate) const PHASE: u64 = 1;
    /// Makes a copy of the process; the answer is 0 in the copy, its number in the original.
    pub(crate) const FORK: u64 = 2;
    /// Lets the others go on.
    pub(crate) const TURN: u64 = 3;
    /// Maps fresh memory; arguments: first page of the area, number of pages.
    pub(crate) const MAP: u64 = 4;
    /// Removes memory; arguments as for [`MAP`].
    pub(crate) const UNMAP: u64 = 5;
    /// Waits for a child's end; the answer is its status, or all ones if there is no child.
    pub(crate) const WAIT: u64 = 6;
    /// Ends the process; argument: its status.
    pub(crate) const EXIT: u64 = 7;
}

/// What [`call::WAIT`] answers when there is no child.
const NO_CHILD: u64 = u64::MAX;

/// All that the kernel knows.
struct Kernel {
    frames: Frames,
    processes: Processes,
    phase: Phase,
}

/// A value that one processor with interrupts off uses.
struct Solo<T>(UnsafeCell<T>);

// SAFETY: there is one processor, and the kernel is never entered from itself (invariant 1 of `trap`).
unsafe impl<T> Sync for Solo<T> {}

static KERNEL: Solo<Kernel> = Solo(UnsafeCell::new(Kernel {
    frames: Frames::new(),
    processes: Processes::new(),
    phase: Phase::NONE,
}));

/// Returns the kernel's state. Only [`start`] and [`serve`] call it, once each time the kernel is entered.
fn kernel() -> &'static mut Kernel {
    // SAFETY: as for `Sync`: the reference of an earlier entry is gone.
    unsafe { &mut *KERNEL.0.get() }
}

/// Makes the first process and runs it.
pub(crate) fn start() -> ! {
    let kernel = kernel();
    let space = Space::new(&mut kernel.frames);
    let code = kernel.frames.take_cleared();
    for (index, word) in PROGRAM.words().enumerate() {
        code.set(index, Entry::raw(word));
    }
    space.map(&mut kernel.frames, CODE, code, 0);
    let trap = Trap::new(CODE, STACK.value() + 4096);
    kernel.processes.begin(Process::new(space, trap));
    space.load();
    enter(&trap)
}

/// Serves what a process entered the kernel for.
pub(crate) fn serve(trap: &mut Trap) {
    kernel().serve(trap);
}

impl Kernel {
    fn serve(&mut self, trap: &mut Trap) {
        match trap.cause() {
            Cause::PageFault(code) => self.page_fault(code),
            Cause::Call(call::PHASE, [number, operations]) => {
                self.phase.next(number, operations);
            }
            Cause::Call(call::FORK, _) => self.fork(trap),
            Cause::Call(call::TURN, _) => self.switch(trap, Waiting::Turn),
            Cause::Call(call::MAP, [first, pages]) => self.map(first, pages),
            Cause::Call(call::UNMAP, [first, pages]) => {
                self.space()
                    .unmap(&mut self.frames, AREA.page(first), pages);
            }
            Cause::Call(call::WAIT, _) => self.wait(trap),
            Cause::Call(call::EXIT, [status, _]) => self.exit(trap, status),
            Cause::Call(..) => fail(Failure::Access),
        }
    }

    fn space(&self) -> Space {
        self.processes.current().space
    }

    fn page_fault(&mut self, code: u64) {
        self.phase.fault();
        if self.space().fault(&mut self.frames, cr2(), code) == Reply::Refused {
            fail(Failure::Access);
        }
    }

    fn map(&mut self, first: u64, pages: u64) {
        if first.saturating_add(pages) > AREA_PAGES {
            fail(Failure::Access);
        }
        for page in first..first + pages {
            let frame = self.frames.take_cleared();
            self.space()
                .map(&mut self.frames, AREA.page(page), frame, Entry::W);
        }
    }

    fn fork(&mut self, trap: &mut Trap) {
        let space = self.space().fork(&mut self.frames);
        let mut child = *trap;
        child.answer(0);
        let number = self.processes.add(Process::new(space, child));
        trap.answer(number);
    }

    /// Goes on with the next process that can.
    fn switch(&mut self, trap: &mut Trap, waiting: Waiting) {
        *trap = self.processes.switch(*trap, waiting);
        self.space().load();
    }

    fn wait(&mut self, trap: &mut Trap) {
        match self.processes.take_ended() {
            Some(status) => trap.answer(status),
            None if self.processes.others() == 0 => trap.answer(NO_CHILD),
            // The system call is made again when its turn comes.
            None => {
                trap.repeat_call();
                self.switch(trap, Waiting::Turn);
            }
        }
    }

    fn exit(&mut self, trap: &mut Trap, status: u64) {
        let space = self.space();
        if self.processes.others() == 0 {
            self.end(space, status);
        }
        self.switch(trap, Waiting::Ended(status));
        space.drop(&mut self.frames);
    }

    /// The last process is over, and with it the run.
    fn end(&mut self, space: Space, status: u64) -> ! {
        // Its root is the processor's until the end, so nothing may use the frame again.
        space.drop(&mut self.frames);
        match (status, self.frames.used()) {
            (0, 0) => end_run(0),
            (0, _) => fail(Failure::Leak),
            _ => fail(Failure::Data),
        }
    }
}

/// What the program has to know.
pub(crate) const HEAP_ADDRESS: u64 = HEAP.value();
/// As above.
pub(crate) const AREA_ADDRESS: u64 = AREA.value();
