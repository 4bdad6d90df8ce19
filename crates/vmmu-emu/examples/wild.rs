//! Executes random bytes in random states for a number of seconds: `cargo run --release --example wild -- SECONDS [SEED]`. Overflow checks are on in
//! the development profile only: run it there too.

#[path = "../tests/common/wild.rs"]
mod wild;

use core::time::Duration;
use std::time::Instant;

use wild::{Tally, Wild};

fn main() {
    let number = |n, default| {
        let argument = std::env::args().nth(n);
        argument.and_then(|a| a.parse().ok()).unwrap_or(default)
    };
    let (seconds, mut seed) = (number(1, 10), number(2, 1));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut tally = Tally::default();
    while Instant::now() < end {
        Wild::new(seed).run(20_000, &mut tally);
        seed += 1;
    }
    println!(
        "up to seed {seed}: {} executed, {} exits, {} unsupported, {} beyond the emulator's processor",
        tally.executed, tally.exits, tally.unsupported, tally.beyond
    );
    println!("exceptions by vector: {:?}", tally.exceptions);
    println!(
        "{} events delivered, {} shutdowns",
        tally.delivered, tally.shutdowns
    );
    let mut unknown: Vec<_> = tally.unknown.into_iter().collect();
    unknown.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
    println!("traces of what stopped: {:#?}", tally.traces);
    println!("unsupported: {unknown:?}");
}
