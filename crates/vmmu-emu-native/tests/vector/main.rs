//! Vector and floating-point instructions: the emulator against the processor that the test runs on.
//!
//! What differs between makers follows AMD's processors. On others a few cases may differ: where the manuals leave a choice.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod compare;
mod encoding;
mod operands;
mod sse;
mod state;
mod x87;
