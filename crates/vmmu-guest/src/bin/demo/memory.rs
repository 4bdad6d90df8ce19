//! Frames, and how many address spaces share each.
//!
//! Key type: [`Frames`].
//!
//! Invariants:
//! 1. A frame is in the free list if and only if its count is zero.

use vmmu_guest::machine::Frame;

use crate::{Failure, fail};

/// The first frame that is handed out.
const FIRST: Frame = Frame::at(0x20_0000);
/// How many there are.
const COUNT: usize = 8192;

/// The frames of the machine that processes and their tables use.
pub(crate) struct Frames {
    /// How many users each has.
    users: [u16; COUNT],
    /// The free ones, as a stack.
    free: [u16; COUNT],
    free_count: usize,
}

impl Frames {
    /// Nothing is in use.
    pub(crate) const fn new() -> Self {
        let mut free = [0; COUNT];
        let mut index = 0;
        while index < COUNT {
            // The lowest on top.
            free[index] = (COUNT - 1 - index) as u16;
            index += 1;
        }
        Self {
            users: [0; COUNT],
            free,
            free_count: COUNT,
        }
    }

    /// Takes a frame with one user, its content as it is.
    pub(crate) fn take(&mut self) -> Frame {
        let Some(left) = self.free_count.checked_sub(1) else {
            fail(Failure::OutOfFrames)
        };
        self.free_count = left;
        let index = self.free[left];
        self.users[usize::from(index)] = 1;
        FIRST.next(index.into())
    }

    /// Takes a frame filled with zeros.
    pub(crate) fn take_cleared(&mut self) -> Frame {
        let frame = self.take();
        frame.clear();
        frame
    }

    /// Adds a user.
    pub(crate) fn share(&mut self, frame: Frame) {
        self.users[Self::index(frame)] += 1;
    }

    /// Says whether there is more than one user.
    pub(crate) fn is_shared(&self, frame: Frame) -> bool {
        self.users[Self::index(frame)] > 1
    }

    /// Ends one use; after the last the frame is free.
    pub(crate) fn release(&mut self, frame: Frame) {
        let index = Self::index(frame);
        self.users[index] -= 1;
        if self.users[index] == 0 {
            self.free[self.free_count] = index as u16;
            self.free_count += 1;
        }
    }

    /// Returns how many are in use.
    pub(crate) const fn used(&self) -> usize {
        COUNT - self.free_count
    }

    fn index(frame: Frame) -> usize {
        ((frame.address() - FIRST.address()) >> 12) as usize
    }
}
