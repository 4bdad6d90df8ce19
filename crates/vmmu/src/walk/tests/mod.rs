//! Unit tests of the walker: a small guest memory, and one module per promise.

mod guest;
mod long_mode;
