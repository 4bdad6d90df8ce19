//! Prints how long faults take while another thread zaps or protects everything.
#![forbid(unsafe_code)]

use core::time::Duration;

use vmmu_parallel::Trouble;
use vmmu_parallel::latency::{Scale, measure};

fn main() -> Result<(), Trouble> {
    let scale = Scale {
        pages: 1 << 20,
        repeats: 3,
        calm: Duration::from_millis(200),
    };
    for latencies in measure(&scale)? {
        println!("{latencies:?}");
    }
    Ok(())
}
