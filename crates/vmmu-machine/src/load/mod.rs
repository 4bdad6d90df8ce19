//! Loading kernels: what guest memory and registers hold before the first instruction.
