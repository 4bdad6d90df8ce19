//! A barrier on all threads of the process, so that others need none.

use core::time::Duration;
use std::sync::OnceLock;

use rustix::thread::{MembarrierCommand, membarrier};

/// Long enough for every processor to have emptied its store buffer.
const LONG: Duration = Duration::from_millis(1);

/// Returns after each thread of the process has executed a full barrier (membarrier(2)).
pub(crate) fn heavy() {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered =
        REGISTERED.get_or_init(|| membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok());
    if !registered || membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        // A system without it: stores become visible within nanoseconds anyway, though nothing promises when.
        std::thread::sleep(LONG);
    }
}
