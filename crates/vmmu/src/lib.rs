//! The x86 memory-management unit of a hypervisor: shadow paging and nested paging behind one interface.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod addr;
pub mod paging;
pub mod walk;
