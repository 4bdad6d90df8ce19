//! Prints instructions and time of library calls, operation by operation: `cargo bench -p vmmu-bench`.
//!
//! `cargo bench -p vmmu-bench -- cow demand` measures two operations, `-- --events cow` says what the library did, and `-- --profile cow` leaves a
//! file for callgrind_annotate.

use std::process::ExitCode;

use vmmu_bench::operation::Operation;
use vmmu_bench::report::{Failure, measure, play, print_head, print_row, profile};

/// What to do with the operations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Table,
    Events,
    Profile,
}

fn main() -> ExitCode {
    let mut task = None;
    let mut chosen = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo says so, and nothing in a test run: then there is nothing to do.
            "--bench" => task = task.or(Some(Task::Table)),
            "--events" => task = Some(Task::Events),
            "--profile" => task = Some(Task::Profile),
            "--play" => {
                let operation = args.next().as_deref().and_then(Operation::named);
                return operation.map_or(ExitCode::FAILURE, |op| end(play(op, false)));
            }
            name => match Operation::named(name) {
                Some(operation) => chosen.push(operation),
                None => {
                    let names = Operation::ALL.map(|op| op.names().0);
                    eprintln!("no operation {name}; there are {}", names.join(", "));
                    return ExitCode::FAILURE;
                }
            },
        }
    }
    if chosen.is_empty() {
        chosen = Operation::ALL[1..].to_vec();
    }
    end(task.map_or(Ok(()), |task| run(task, &chosen)))
}

fn end(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, operations: &[Operation]) -> Result<(), Failure> {
    match task {
        Task::Events => operations.iter().try_for_each(|op| play(*op, true)),
        Task::Profile => operations.iter().try_for_each(|op| {
            println!("callgrind_annotate {}", profile(*op)?.display());
            Ok(())
        }),
        Task::Table => {
            let empty = measure(Operation::Empty)?;
            print_head();
            operations.iter().try_for_each(|op| {
                print_row(&measure(*op)?, &empty);
                Ok(())
            })
        }
    }
}
