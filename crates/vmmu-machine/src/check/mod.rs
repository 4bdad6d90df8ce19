//! The judge: compares every translation that a processor uses with what the specification allows.
//!
//! - [`Observer`]: what the machine tells. `()` is the observer of a run without `--check`.
//! - [`Ground`]: guest memory as the judge reads it.

mod ground;
mod observer;

pub use ground::{Ground, Home};
pub use observer::{Caught, Emulated, Epoch, GuestFault, Load, Observer, Refused, Time, Used};
