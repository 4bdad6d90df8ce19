//! Frames for tables, handed out one by one.

use alloc::vec::Vec;

use spin::Mutex;
use vmmu::addr::Pfn;

use crate::arch::physical::Frames;

/// The allocator of table frames: frames never used so far, and a list of those that came back.
#[derive(Debug)]
pub struct TableFrames {
    /// The frames' words.
    pub frames: Frames,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: Pfn,
    free: Vec<Pfn>,
}

impl TableFrames {
    /// Makes an allocator of all of `frames`.
    pub fn new(frames: Frames) -> Self {
        let next = frames.range().start;
        Self {
            frames,
            state: Mutex::new(State {
                next,
                free: Vec::new(),
            }),
        }
    }
    /// Allocates a frame of zeros, if one is left.
    pub fn allocate(&self) -> Option<Pfn> {
        let frame = {
            let mut state = self.state.lock();
            match state.free.pop() {
                Some(frame) => frame,
                None if state.next < self.frames.range().end => {
                    let next = state.next.wrapping_add(1);
                    core::mem::replace(&mut state.next, next)
                }
                None => return None,
            }
        };
        self.frames.clear(frame);
        Some(frame)
    }
    /// Takes a frame back.
    pub fn free(&self, frame: Pfn) {
        self.state.lock().free.push(frame);
    }
    /// Returns how many frames there are.
    pub fn capacity(&self) -> u64 {
        self.frames.range().end.get() - self.frames.range().start.get()
    }
    /// Returns how many frames are in use.
    pub fn in_use(&self) -> u64 {
        let state = self.state.lock();
        state.next.get() - self.frames.range().start.get() - state.free.len() as u64
    }
}
