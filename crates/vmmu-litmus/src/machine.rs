//! Processors with store buffers, as small as the question allows.
//!
//! Key types: [`State`] (memory, and of each processor its place, registers and buffer), [`Op`] (an instruction), [`Step`] (one thing that happens).
//!
//! Invariants:
//! 1. A step is one instruction of one processor, or one store that leaves a buffer. Branches are no steps: they read registers alone, so they are
//!    taken together with the step before.
//! 2. A buffer leaves in the order in which it was filled.

use crate::program::{Program, Thread};

/// Processors there can be.
pub(crate) const THREADS: usize = 4;
const CELLS: usize = 16;
const REGISTERS: usize = 4;
/// Stores a buffer can hold; a program that needs more is an error of its author.
const BUFFER: usize = 6;

/// A location in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cell(pub u8);

/// A register of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Register(pub u8);

/// What is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// This.
    Constant(u8),
    /// What a register holds.
    Register(Register),
    /// What a register holds and this more.
    Sum(Register, u8),
}

/// When a branch is taken: if the register's bits under the mask are (not) zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    /// All bits under the mask are zero.
    Zero(Register, u8),
    /// Some bit under the mask is set.
    NotZero(Register, u8),
    /// Two registers differ.
    Differ(Register, Register),
    /// Always.
    Always,
}

/// What taking a lock does to the processor's own buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// It empties it, as every lock on x86 does: it is taken by a locked instruction.
    Fencing,
    /// It leaves it as it is. No x86 has such a lock; protocols that hold only thanks to some lock nearby are unmasked by it.
    Silent,
}

/// An instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Reads memory, through the own buffer.
    Load(Register, Cell),
    /// Writes memory, into the own buffer.
    Store(Cell, Value),
    /// Adds, atomically; the register gets what was there before.
    FetchAdd(Register, Cell, u8),
    /// Sets bits, atomically.
    FetchOr(Cell, u8),
    /// Clears all other bits, atomically.
    FetchAnd(Cell, u8),
    /// Takes one off a count, and if that was the last clears the bits beside it too, in one atomic step: a compare-exchange that succeeded.
    TakeLast {
        /// Where the count is.
        cell: Cell,
        /// The bits beside it.
        beside: u8,
    },
    /// Stores the second value if the cell holds the first, in one atomic step; does nothing otherwise.
    CompareExchange(Cell, u8, u8),
    /// Waits until the own buffer is empty: MFENCE.
    Fence,
    /// Waits until another processor's buffer is empty: a part of a heavy barrier.
    Drain(u8),
    /// Waits until the lock is free, and takes it.
    Lock(Cell, LockKind),
    /// Frees a lock, by a store.
    Unlock(Cell),
    /// Goes on elsewhere.
    Branch(Test, u8),
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A processor executes its next instruction.
    Execute(u8),
    /// A processor's oldest store reaches memory.
    Leave(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Processor {
    at: u8,
    registers: [u8; REGISTERS],
    /// Cell and value, the oldest first.
    buffer: [(u8, u8); BUFFER],
    waiting: u8,
}

/// Everything at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    memory: [u8; CELLS],
    processors: [Processor; THREADS],
}

impl State {
    /// The state before a program's first step.
    #[must_use]
    pub fn first(program: &Program) -> Self {
        let mut state = Self {
            memory: [0; CELLS],
            processors: [Processor::default(); THREADS],
        };
        for (cell, value) in &program.start {
            state.memory[usize::from(cell.0)] = *value;
        }
        for (index, thread) in program.threads.iter().enumerate() {
            state.processors[index].branch(thread);
        }
        state
    }

    /// Returns what memory holds.
    #[must_use]
    pub const fn memory(&self, cell: Cell) -> u8 {
        self.memory[cell.0 as usize]
    }

    /// Returns a processor's register.
    #[must_use]
    pub const fn register(&self, thread: u8, register: Register) -> u8 {
        self.processors[thread as usize].registers[register.0 as usize]
    }

    /// Says whether a thread has executed everything and its buffer is empty.
    #[must_use]
    pub fn is_over(&self, program: &Program, thread: usize) -> bool {
        let processor = &self.processors[thread];
        usize::from(processor.at) >= program.threads[thread].ops.len() && processor.waiting == 0
    }

    /// Returns the oldest store in a buffer.
    #[must_use]
    pub fn oldest(&self, thread: u8) -> Option<(Cell, u8)> {
        let processor = &self.processors[usize::from(thread)];
        (processor.waiting != 0).then(|| (Cell(processor.buffer[0].0), processor.buffer[0].1))
    }

    /// Returns the instruction that a thread executes next.
    #[must_use]
    pub fn next_op(&self, program: &Program, thread: u8) -> Option<Op> {
        let at = self.processors[usize::from(thread)].at;
        program.threads[usize::from(thread)]
            .ops
            .get(usize::from(at))
            .copied()
    }

    /// Returns the state after a step, if the step is possible.
    #[must_use]
    pub fn after(&self, program: &Program, step: Step) -> Option<Self> {
        let mut next = *self;
        match step {
            Step::Leave(thread) => next.leave(thread)?,
            Step::Execute(thread) => {
                let op = self.next_op(program, thread)?;
                next.execute(thread, op)?;
                let processor = &mut next.processors[usize::from(thread)];
                processor.at += 1;
                processor.branch(&program.threads[usize::from(thread)]);
            }
        }
        Some(next)
    }

    fn leave(&mut self, thread: u8) -> Option<()> {
        let processor = &mut self.processors[usize::from(thread)];
        if processor.waiting == 0 {
            return None;
        }
        let (cell, value) = processor.buffer[0];
        processor.buffer.copy_within(1.., 0);
        processor.buffer[BUFFER - 1] = (0, 0);
        processor.waiting -= 1;
        self.memory[usize::from(cell)] = value;
        Some(())
    }

    /// Returns nothing if the instruction has to wait.
    fn execute(&mut self, thread: u8, op: Op) -> Option<()> {
        let own = usize::from(thread);
        let is_empty = self.processors[own].waiting == 0;
        match op {
            Op::Load(into, cell) => {
                let value = self.processors[own]
                    .forwarded(cell)
                    .unwrap_or(self.memory(cell));
                self.processors[own].registers[usize::from(into.0)] = value;
            }
            Op::Store(cell, value) => {
                let value = self.processors[own].value(value);
                self.processors[own].push(cell, value);
            }
            Op::Unlock(cell) => self.processors[own].push(cell, 0),
            Op::Drain(other) => (self.processors[usize::from(other)].waiting == 0).then_some(())?,
            Op::Lock(cell, kind) => {
                let may = is_empty || kind == LockKind::Silent;
                // A silent lock that this processor has just freed is free for it, but not for others.
                let held = self.processors[own]
                    .forwarded(cell)
                    .unwrap_or(self.memory(cell));
                (may && held == 0 && self.memory(cell) == 0).then_some(())?;
                self.memory[usize::from(cell.0)] = 1;
            }
            Op::Fence => is_empty.then_some(())?,
            Op::FetchAdd(..)
            | Op::FetchOr(..)
            | Op::FetchAnd(..)
            | Op::CompareExchange(..)
            | Op::TakeLast { .. } => {
                is_empty.then_some(())?;
                self.locked(own, op);
            }
            Op::Branch(..) => {}
        }
        Some(())
    }

    fn locked(&mut self, own: usize, op: Op) {
        match op {
            Op::FetchAdd(into, cell, by) => {
                let word = &mut self.memory[usize::from(cell.0)];
                self.processors[own].registers[usize::from(into.0)] = *word;
                *word = word.wrapping_add(by);
            }
            Op::FetchOr(cell, bits) => self.memory[usize::from(cell.0)] |= bits,
            Op::FetchAnd(cell, bits) => self.memory[usize::from(cell.0)] &= bits,
            Op::CompareExchange(cell, from, to) => {
                let word = &mut self.memory[usize::from(cell.0)];
                if *word == from {
                    *word = to;
                }
            }
            Op::TakeLast { cell, beside } => {
                let word = &mut self.memory[usize::from(cell.0)];
                *word = word.wrapping_sub(1);
                if *word & !beside == 0 {
                    *word = 0;
                }
            }
            _ => {}
        }
    }
}

impl Processor {
    fn value(&self, value: Value) -> u8 {
        match value {
            Value::Constant(value) => value,
            Value::Register(register) => self.registers[usize::from(register.0)],
            Value::Sum(register, more) => {
                self.registers[usize::from(register.0)].wrapping_add(more)
            }
        }
    }

    /// Returns the youngest buffered store to a cell.
    fn forwarded(&self, cell: Cell) -> Option<u8> {
        let waiting = &self.buffer[..usize::from(self.waiting)];
        waiting
            .iter()
            .rev()
            .find(|(at, _)| *at == cell.0)
            .map(|(_, value)| *value)
    }

    fn push(&mut self, cell: Cell, value: u8) {
        self.buffer[usize::from(self.waiting)] = (cell.0, value);
        self.waiting += 1;
    }

    /// Takes all branches at this place.
    fn branch(&mut self, thread: &Thread) {
        while let Some(Op::Branch(test, to)) = thread.ops.get(usize::from(self.at)) {
            let register = |register: Register| self.registers[usize::from(register.0)];
            let taken = match *test {
                Test::Zero(r, mask) => register(r) & mask == 0,
                Test::NotZero(r, mask) => register(r) & mask != 0,
                Test::Differ(a, b) => register(a) != register(b),
                Test::Always => true,
            };
            self.at = if taken { *to } else { self.at + 1 };
        }
    }
}
