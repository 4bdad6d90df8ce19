//! A thin bare-metal hypervisor on AMD SVM, with [`vmmu`] as its memory management.
//!
//! The image (`vmmu-image`, feature `image`) is started by a PVH loader with a bundle as its module: a kernel, modules, a command
//! line, a configuration ([`bundle`], [`config`]). It divides memory ([`layout`]), loads the kernel ([`load`]) and runs it
//! ([`machine`]). The guest owns the devices and gets interrupts directly; exits are those that the MMU needs, and few others.
//!
//! | part | modules |
//! |---|---|
//! | what the boot loader leaves | [`start_info`], [`bundle`], [`config`], [`layout`] |
//! | loading the guest | [`load`] |
//! | running it | [`machine`], [`vcpu`], [`vmcb`], [`exit`], [`event`], [`fetch`], [`decode`], [`store`] |
//! | what it is shown | [`cpuid`], [`control`], [`permission`] |
//! | its processors among each other | [`cpus`], [`pause`] |
//! | its memory | [`paging`], [`host`], [`tables`], [`guest_tables`] |
//! | telling the command | [`channel`], [`json`], [`report`] |
//! | the hardware | [`arch`], the one module with `unsafe` |
//!
//! The library part builds on any x86-64 host, where its pure modules are tested.
//!
//! Known gaps stand at the end of `docs/hypervisor.md`.
#![no_std]
#![deny(unsafe_code)]
extern crate alloc;

pub mod arch;
pub mod bundle;
pub mod channel;
pub mod config;
pub mod control;
pub mod cpuid;
pub mod cpus;
pub mod decode;
pub mod event;
pub mod exit;
pub mod fetch;
pub mod guest_tables;
pub mod host;
#[cfg(feature = "image")]
pub mod image;
pub mod json;
pub mod layout;
pub mod load;
pub mod machine;
pub mod paging;
pub mod pause;
pub mod permission;
pub mod report;
pub mod start_info;
pub mod store;
pub mod tables;
pub mod vcpu;
pub mod vmcb;
