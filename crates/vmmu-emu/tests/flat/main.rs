//! Instructions on a processor with flat memory: one program, since every one has to compile the whole emulator for its processor.

#[path = "../common/mod.rs"]
mod common;

mod events;
mod floats;
mod integer;
mod status;
mod steps;
mod system;
mod vectors;
