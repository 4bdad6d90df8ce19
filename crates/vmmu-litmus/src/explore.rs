//! Every interleaving, the shortest first.
//!
//! Key function: [`explore`]. Key type: [`Outcome`].

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::machine::{State, Step, THREADS};
use crate::program::Program;
use crate::trace::Trace;

/// What an exploration found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// States that were visited.
    pub states: usize,
    /// The shortest way to a lost update, if there is one.
    pub lost: Option<Trace>,
    /// The shortest way to a state from which nobody can go on though not all threads are over.
    pub stuck: Option<Trace>,
}

/// Visits every state that the program can reach, breadth first, until an update is lost or all is visited.
#[must_use]
pub fn explore(program: &Program) -> Outcome {
    let first = State::first(program);
    let mut from = FxHashMap::default();
    from.insert(first, None);
    let mut queue = VecDeque::from([first]);
    let mut stuck = None;
    while let Some(state) = queue.pop_front() {
        if program.is_lost(&state) {
            let lost = Some(Trace::new(program, &way(&from, state)));
            return Outcome {
                states: from.len(),
                lost,
                stuck,
            };
        }
        let mut moved = false;
        for (step, next) in successors(program, &state) {
            moved = true;
            from.entry(next).or_insert_with(|| {
                queue.push_back(next);
                Some((state, step))
            });
        }
        let over = (0..program.threads.len()).all(|thread| state.is_over(program, thread));
        if !moved && !over && stuck.is_none() {
            stuck = Some(Trace::new(program, &way(&from, state)));
        }
    }
    Outcome {
        states: from.len(),
        lost: None,
        stuck,
    }
}

fn successors<'a>(
    program: &'a Program,
    state: &'a State,
) -> impl Iterator<Item = (Step, State)> + 'a {
    let threads = (0..THREADS as u8).take(program.threads.len());
    threads
        .flat_map(|thread| [Step::Execute(thread), Step::Leave(thread)])
        .filter_map(move |step| Some((step, state.after(program, step)?)))
}

type Origins = FxHashMap<State, Option<(State, Step)>>;

/// Returns the steps that led to a state, each with the state before it, and the state itself.
fn way(from: &Origins, last: State) -> (Vec<(State, Step)>, State) {
    let mut steps = Vec::new();
    let mut at = last;
    while let Some(Some((before, step))) = from.get(&at) {
        steps.push((*before, *step));
        at = *before;
    }
    steps.reverse();
    (steps, last)
}

#[cfg(test)]
mod store_buffering {
    use super::explore;
    use crate::machine::{Cell, Op, Register, Value};
    use crate::program::{Program, Shadow, Thread};

    const X: Cell = Cell(0);
    const Y: Cell = Cell(1);
    const SEEN: Cell = Cell(2);

    /// One thread stores X and notes whether it saw Y, the other the other way round; both see nothing exactly if the entry stays "stale".
    fn program(with: Option<Op>) -> Program {
        let thread = |name, own, other| {
            let mut thread = Thread::new(name);
            thread.op(Op::Store(own, Value::Constant(1)));
            with.into_iter().for_each(|op| thread.op(op));
            thread.op(Op::Load(Register(0), other));
            let saw = thread.branch(crate::machine::Test::NotZero(Register(0), 1));
            thread.op(Op::FetchAdd(Register(1), SEEN, 1));
            thread.land(saw);
            thread
        };
        Program {
            start: vec![(Cell(3), 1)],
            threads: vec![thread("a", X, Y), thread("b", Y, X)],
            // "Lost" if SEEN is 2: it is not 0 and differs from the guest's 1.
            guest: Cell(3),
            shadows: vec![Shadow {
                entry: SEEN,
                hashed: SEEN,
            }],
            writer: 0,
            names: Vec::new(),
        }
    }

    #[test]
    fn both_read_old_values_without_a_fence() {
        assert!(explore(&program(None)).lost.is_some());
    }

    #[test]
    fn one_of_them_sees_the_other_with_fences() {
        let outcome = explore(&program(Some(Op::Fence)));
        assert!(outcome.lost.is_none() && outcome.stuck.is_none());
    }
}
