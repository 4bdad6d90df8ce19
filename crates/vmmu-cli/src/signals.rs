//! Signals that ask the command to stop: they raise a flag, and whoever waits looks at it; or, for work that looks at nothing, they end the process.
//!
//! Key functions: [`watch`], [`raised`], [`end_soon`].
//!
//! Invariants:
//! 1. After [`watch`], and without [`end_soon`], no such signal ends the process by itself: every way out cleans up.
//! 2. Only work that leaves nothing behind calls [`end_soon`]; who looks at the flag still has `GRACE` to clean up.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::screen;

/// How long who looks at the flag has for ending what it started.
const GRACE: Duration = Duration::from_secs(1);

static RAISED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Starts to catch SIGINT, SIGTERM and SIGHUP.
///
/// # Errors
///
/// [`Error::System`] if the system refuses.
pub fn watch() -> Result<()> {
    let flag = RAISED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(Error::system("catch signals"))?;
    }
    Ok(())
}

/// Ends the process a moment after such a signal came, for work that does not look at the flag and leaves nothing behind.
///
/// # Errors
///
/// [`Error::System`] if the system refuses.
pub fn end_soon() -> Result<()> {
    let mut signals =
        Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(Error::system("catch signals"))?;
    let wait = move || {
        if signals.forever().next().is_some() {
            thread::sleep(GRACE);
            let interrupted = Error::Interrupted { by: "a signal" };
            screen::note(&interrupted.to_string());
            std::process::exit(interrupted.status().into());
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(Error::system("start a thread"))?;
    Ok(())
}

/// Tells whether one came.
#[must_use]
pub fn raised() -> bool {
    RAISED
        .get()
        .is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails if one came.
///
/// # Errors
///
/// [`Error::Interrupted`].
pub fn check() -> Result<()> {
    if raised() {
        Err(Error::Interrupted { by: "a signal" })
    } else {
        Ok(())
    }
}
