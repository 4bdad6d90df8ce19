//! Asks a processor to leave its guest, or its thread to stop sleeping.
//!
//! Key type: [`Kick`].

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// A way to a processor for other threads; copies lead to the same one.
#[derive(Clone, Debug, Default)]
pub struct Kick(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    due: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Kick {
    /// Makes the processor leave its guest soon.
    pub fn kick(&self) {
        // Release: what is to be seen after the exit was stored before.
        self.0.due.store(true, Ordering::Release);
    }

    /// Makes the processor leave its guest soon, or its thread wake up.
    pub fn wake(&self) {
        self.kick();
        if let Some(thread) = self.0.thread.get() {
            thread.unpark();
        }
    }

    /// Notes that this thread runs the processor.
    pub fn is_here(&self) {
        // A second thread would be a second run of the same machine, which there is not.
        let _ = self.0.thread.set(std::thread::current());
    }

    /// Sleeps until somebody kicks, no longer than told.
    pub fn sleep(&self, longest: Duration) {
        if !self.take() {
            std::thread::park_timeout(longest);
        }
    }

    #[inline(always)]
    pub(super) fn is_due(&self) -> bool {
        self.0.due.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> bool {
        self.0.due.swap(false, Ordering::Acquire)
    }
}

#[cfg(test)]
mod a_sleeper {
    use super::Kick;
    use core::time::Duration;
    use std::time::Instant;

    #[test]
    fn is_woken_by_whoever_kicks_before_or_meanwhile() {
        let kick = Kick::default();
        kick.is_here();
        let begin = Instant::now();
        kick.wake();
        kick.sleep(Duration::from_secs(60));
        let other = kick.clone();
        let waker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.wake();
        });
        while !kick.is_due() {
            kick.sleep(Duration::from_secs(60));
        }
        waker.join().expect("the waker");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
