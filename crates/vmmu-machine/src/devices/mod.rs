//! The board: interrupt controllers, timers, serial port, and what else a guest finds at ports and in device memory.
//!
//! Time is an argument, never read here: the caller's clock is the host's or counted instructions.

/// A moment, in nanoseconds since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);
