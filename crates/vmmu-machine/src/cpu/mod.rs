//! The processor: an interpreter with a TLB in front of a walker over the tables that the library wrote.
