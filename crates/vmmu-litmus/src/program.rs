//! Threads, where they start, and what must hold.
//!
//! Key types: [`Program`], [`Thread`].

use crate::machine::{Cell, Op, State, Test};

/// A thread: a name for people and its instructions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thread {
    /// Who it is.
    pub name: &'static str,
    /// What it does.
    pub ops: Vec<Op>,
}

impl Thread {
    /// A thread that does nothing yet.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            ops: Vec::new(),
        }
    }

    /// Adds an instruction.
    pub fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Adds a branch whose target is not known yet; [`Thread::land`] sets it.
    #[must_use]
    pub fn branch(&mut self, test: Test) -> usize {
        self.ops.push(Op::Branch(test, 0));
        self.ops.len() - 1
    }

    /// Makes a branch lead to the next instruction that is added.
    pub fn land(&mut self, branch: usize) {
        let here = self.ops.len() as u8;
        if let Op::Branch(_, to) = &mut self.ops[branch] {
            *to = here;
        }
    }
}

/// A shadow entry, and the flag without which nobody can reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shadow {
    pub(crate) entry: Cell,
    pub(crate) hashed: Cell,
}

/// Threads that run together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// What memory holds at the start; zero elsewhere.
    pub start: Vec<(Cell, u8)>,
    /// The threads.
    pub threads: Vec<Thread>,
    /// The guest's entry.
    pub(crate) guest: Cell,
    /// The shadow entries made of it.
    pub(crate) shadows: Vec<Shadow>,
    /// The thread that performs the guest's write.
    pub(crate) writer: usize,
    /// Cells by name, for people and files.
    pub(crate) names: Vec<(Cell, &'static str)>,
}

impl Program {
    /// Says whether a state is one that must not be: a shadow entry made of the old value, though the write has been dealt with.
    ///
    /// While another thread still works on the entry, it may yet go: so the entry counts once all threads are over, or, when it can be reached, once the write is.
    #[must_use]
    pub fn is_lost(&self, state: &State) -> bool {
        let stale = |shadow: &Shadow| {
            let entry = state.memory(shadow.entry);
            entry != 0 && entry != state.memory(self.guest)
        };
        let all_over = (0..self.threads.len()).all(|thread| state.is_over(self, thread));
        if all_over {
            return self.shadows.iter().any(stale);
        }
        let old = self
            .shadows
            .iter()
            .filter(|shadow| self.exists_from_the_start(shadow));
        state.is_over(self, self.writer)
            && old
                .into_iter()
                .any(|shadow| state.memory(shadow.hashed) != 0 && stale(shadow))
    }

    fn exists_from_the_start(&self, shadow: &Shadow) -> bool {
        self.start
            .iter()
            .any(|(cell, value)| *cell == shadow.entry && *value != 0)
    }

    /// Returns a cell's name.
    #[must_use]
    pub fn name(&self, cell: Cell) -> &'static str {
        let found = self.names.iter().find(|(named, _)| *named == cell);
        found.map_or("?", |(_, name)| name)
    }
}
