//! Points that no processor passes before all have come there.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::shoot_down;

static ARRIVED: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Waits until each of `cpus` processors has called it as often as this one.
pub(crate) fn wait_for_all(number: usize, cpus: usize) {
    let meeting = LEFT.load(Ordering::SeqCst);
    if ARRIVED.fetch_add(1, Ordering::SeqCst) + 1 == cpus {
        ARRIVED.store(0, Ordering::SeqCst);
        LEFT.fetch_add(1, Ordering::SeqCst);
        return;
    }
    while LEFT.load(Ordering::SeqCst) == meeting {
        shoot_down::wait(number);
    }
}
