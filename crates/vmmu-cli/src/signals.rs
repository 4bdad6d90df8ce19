//! Signals that ask the command to stop: they raise a flag, and whoever waits looks at it.
//!
//! Key functions: [`watch`], [`raised`].
//!
//! Invariants:
//! 1. After [`watch`] no such signal ends the process by itself: every way out cleans up.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, Result};

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
