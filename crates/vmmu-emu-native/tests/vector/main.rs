//! Vector and floating-point instructions: the emulator against the processor that the test runs on.
//!
//! Where the manuals leave a choice, which is in the x87 unit, the emulator follows AMD's processors: that part is ignored unless asked for, which
//! `cargo xtask unit` does on those.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod encoding;
mod operands;
mod sse;
mod state;
mod x87;
