//! A spinner on standard error while something takes time.
//!
//! Key type: [`Progress`]. On a terminal it turns and shows the tool's last line; elsewhere one plain line is
//! printed when a step begins, so logs stay readable.

use core::time::Duration;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::screen;

/// A step that takes time; it disappears when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins a step.
    #[must_use]
    pub fn begin(what: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            screen::note(what);
        }
        Self { bar }
    }

    /// Begins a step that is not worth a line when nobody watches.
    #[must_use]
    pub fn quiet(what: &str) -> Self {
        if std::io::stderr().is_terminal() {
            Self::begin(what)
        } else {
            Self {
                bar: ProgressBar::hidden(),
            }
        }
    }

    /// Shows the latest line of the tool at work.
    pub fn line(&self, line: &str) {
        self.bar.set_message(line.trim().to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
