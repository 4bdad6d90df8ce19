//! The judge against the real library on software processors: nothing that is right is reported, and each wrong thing is.

mod random;
mod rig;
mod wrong;
