//! The library's own code under loom: every interleaving, and every value that a C11 load may return, within a bound on preemptions.
mod clean;
mod dirty;
mod entry;
mod faults;
mod gate;
mod host;
mod install;
mod invalidation;
mod world;
