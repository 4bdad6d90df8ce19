//! Small bare-metal guests of the project's own, and what they share.
//!
//! | guest | starts as | does |
//! |---|---|---|
//! | `bench-guest` | PVH (32-bit entry, goes to long mode itself) | times 22 paging operations; `bench` compares them |
//! | `demo-guest` | PVH | runs processes that fork, write, map, switch and exit, in named phases |
//! | `gate-guest` | PVH (32-bit, paging off), starts a second processor | writes to page tables while they come into use, and counts stale translations |
//! | `multiboot-guest` | multiboot-1 (32-bit, paging off) | checks the hand-over, then what its command line says |
//! | `smp-guest` | PVH, starts the other processors by INIT and SIPI | lets them use and change the same page tables, and checks what each sees |
//! | `stress-guest` | PVH (32-bit entry, goes to long mode itself) | uses paging in every way it can and checks each result |
//! | `threads` | a program for Linux, static, without a C runtime | changes, in several threads at once, the address space that they share |
//!
//! All but `threads` are bare-metal. Each is freestanding Rust or assembly for the host's own target. They are built, and run natively, with the
//! commands below; a hypervisor under test takes the same files.
//!
//! ```text
//! cargo build --profile image -p vmmu-guest --features image --bins
//! cargo run -p vmmu-guest --example wrap-elf32 -- target/image/multiboot-guest target/image/multiboot-guest.elf
//!
//! native="qemu-system-x86_64 -accel tcg -cpu EPYC -m 256M -display none -nic none -no-reboot
//!     -debugcon stdio -serial null -device isa-debug-exit,iobase=0xf4,iosize=4"
//! timeout 20 $native -icount shift=0,sleep=off -kernel target/image/bench-guest
//! timeout 60 $native -kernel target/image/stress-guest -append 'only=random rounds=1 seed=7 steps=20000'
//! timeout 20 $native -kernel target/image/multiboot-guest.elf -append 'mode=pae exit=5' -initrd 'module text,other'
//! ```
//!
//! The second command makes the ELF32 that multiboot loaders demand of what the linker wrote; [`elf32`] does the same
//! for a program. A run ends with a 32-bit write of its result to port 0xf4: 0 is success. QEMU's own status is then
//! `(result << 1 | 1) & 0xff`.
//!
//! `cargo test -p vmmu-guest -- --ignored` does all of this: it demands that natively every check succeeds and that the benchmark's
//! operations cost what the peer's native column says.
//!
//! # Known gaps
//! Of the bare-metal ones all but `smp-guest` and `gate-guest` use one processor and no interrupts, only exceptions.
#![no_std]

#[cfg(feature = "image")]
pub mod console;
pub mod elf32;
#[cfg(feature = "image")]
pub mod machine;
