//! The hypervisor image: what only a freestanding binary may define. Everything else is the library beside it.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    vmmu_svm::image::panicked(info)
}
