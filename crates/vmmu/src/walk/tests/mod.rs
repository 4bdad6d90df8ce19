//! Unit tests of the walker: a small guest memory, and one module per promise.

mod access_and_dirty;
mod guest;
mod legacy;
mod long_mode;
mod permissions;
mod single_entries;
