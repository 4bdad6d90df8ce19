//! Nothing that a guest can do makes the emulator panic, what stops leaves no trace, and no instruction of its processor is unknown.

#[path = "common/wild.rs"]
mod wild;

use wild::{Tally, Wild};

#[test]
fn any_bytes_in_any_state_end_in_one_of_four_ways() {
    let mut tally = Tally::default();
    for seed in 0..8 {
        Wild::new(seed).run(150_000, &mut tally);
    }
    println!("{tally:#?}");
    assert!(tally.traces.is_empty(), "{:#?}", tally.traces);
    // An alias of FSTP that no manual lists.
    tally.unknown.remove("Fstpnce");
    assert!(
        tally.unknown.is_empty(),
        "instructions of the baseline that are not known: {:?}",
        tally.unknown
    );
    assert!(tally.executed > 100_000, "too little was executed");
    assert!(tally.exceptions.len() > 8, "too few kinds of exceptions");
    assert!(tally.exits > 1000, "too few exits");
}
