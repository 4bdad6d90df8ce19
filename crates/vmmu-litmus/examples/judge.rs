//! Judges every row and prints the verdicts, with the shortest interleaving of each wrong one.
use vmmu_litmus::{Model, ROWS, judge};

fn main() {
    for row in &ROWS {
        for model in [Model::Plain, Model::Atomic] {
            let Some(scheme) = row.scheme_in(model) else {
                continue;
            };
            let judged = judge(&scheme, model);
            println!(
                "{} ({model:?}): {:?}, {} states",
                row.name, judged.verdict, judged.states
            );
            if let Some((setting, trace)) = judged.lost {
                println!("  {setting:?}\n{trace}");
            }
        }
    }
}
