//! Small bare-metal guests of the project's own, and what they share.
//!
//! | guest | starts as | does |
//! |---|---|---|
//! | `bench-guest` | PVH (32-bit entry, goes to long mode itself) | times 22 paging operations; `bench` compares them |
//!
//! Each is freestanding Rust for the host's own target. It is built and run (natively here; a hypervisor under test
//! takes the same file) with
//!
//! ```text
//! cargo build --profile image -p vmmu-guest --features image --bin bench-guest
//! qemu-system-x86_64 -accel tcg -icount shift=0,sleep=off -cpu EPYC -m 256M -display none -nic none -no-reboot \
//!     -debugcon stdio -serial null -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel target/image/bench-guest
//! ```
//!
//! A run ends with a 32-bit write of its result to port 0xf4: 0 is success, and QEMU's own status is then 1.
//!
//! # Known gaps
//! One processor; no interrupts, only exceptions.
#![no_std]

#[cfg(feature = "image")]
pub mod console;
#[cfg(feature = "image")]
pub mod machine;
