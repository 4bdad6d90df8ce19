//! The board: interrupt controllers, timers, serial port, and what else a guest finds at ports and in device memory.
//!
//! Key types: [`Platform`], the whole board behind shared references; [`PlatformConfig`]; [`Wake`], by which it tells a
//! virtual processor that something is pending; [`Signals`] and [`Effect`], what it answers.
//!
//! Time is an argument, never read here: the caller's clock is the host's or counted instructions.

mod pending;
pub(crate) mod places;
mod platform;
mod serial;

pub use pending::{Pending, Signals};
pub use platform::{Effect, Platform, PlatformConfig, ReservedBits, Wake};

/// A moment, in nanoseconds since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);
