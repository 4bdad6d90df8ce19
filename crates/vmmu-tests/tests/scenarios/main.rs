//! The scenarios: bugs that real hypervisors had, step by step through the library's public interface.
//!
//! A test's name begins with its scenario's id; `docs/scenarios.md` lists them with the rules that they exercise. The machine judges every access and
//! runs the auditor after each step, so that many tests say little themselves.

mod bookkeeping;
mod dirty;
mod limits;
mod rights;
mod staleness;
mod timing;
