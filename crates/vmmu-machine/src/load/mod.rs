//! Loading kernels: what guest memory and registers hold before the first instruction.
//!
//! Everything that both embedders of the library share is `vmmu-load`'s; here are a bzImage's structures, which are linux-loader's
//! ([`linux`]), and the tables that a firmware would leave in memory ([`tables`]), written before.
//!
//! Key function: [`load`].

pub mod linux;
pub mod tables;

pub use vmmu_load::{Entry, Guest, GuestRam, LoadError, NoMemory};

/// Loads a guest into RAM that holds zeros.
///
/// # Errors
/// See [`LoadError`]. RAM may have been written then.
pub fn load(guest: &Guest<'_>, ram: &mut impl GuestRam) -> Result<Entry, LoadError> {
    vmmu_load::load::<linux::Image<'_>>(guest, ram)
}
