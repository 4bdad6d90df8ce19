//! The operations that the bench guest performs, the peer's figures for them, the goals.
//!
//! Key type: [`Operation`], [`TABLE`].
//!
//! The peer is Linux 6.1.192's KVM in the same QEMU (`-cpu EPYC`, `-icount shift=0`) with the same guest
//! program; figures are instructions per operation and exits per operation.

/// A figure of the peer: instructions and exits per operation.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Peer {
    /// Instructions, the whole cost as the guest sees it.
    pub instructions: f64,
    /// Exits.
    pub exits: f64,
}

/// Instructions per operation to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Goal {
    /// Under shadow paging.
    pub shadow: u64,
    /// Under nested paging.
    pub nested: u64,
}

/// An operation of the bench guest.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Its number in the guest.
    pub phase: u64,
    /// What it does.
    pub name: &'static str,
    /// The peer under shadow paging.
    pub peer_shadow: Peer,
    /// The peer under nested paging.
    pub peer_nested: Peer,
    /// The goals, for those operations that have them.
    pub goal: Option<Goal>,
}

const fn row(
    phase: u64,
    name: &'static str,
    shadow: (f64, f64),
    nested: (f64, f64),
    goal: Option<(u64, u64)>,
) -> Operation {
    Operation {
        phase,
        name,
        peer_shadow: Peer {
            instructions: shadow.0,
            exits: shadow.1,
        },
        peer_nested: Peer {
            instructions: nested.0,
            exits: nested.1,
        },
        goal: match goal {
            Some((shadow, nested)) => Some(Goal { shadow, nested }),
            None => None,
        },
    }
}

/// Every operation, in the table's order; those without a goal come last.
#[rustfmt::skip]
pub const TABLE: &[Operation] = &[
    row(2, "CPUID exit", (2631.1, 1.0), (2663.3, 1.0), Some((500, 500))),
    row(3, "touch fresh page, sequential, A/D set", (2281.0, 0.12), (3337.9, 1.0), Some((250, 300))),
    row(5, "touch fresh page, A/D clear", (5308.1, 1.0), (3326.9, 1.0), Some((800, 300))),
    row(6, "touch fresh page, one in eight", (18265.7, 1.0), (3334.6, 1.0), Some((800, 400))),
    row(7, "touch known page by a new address", (4937.9, 1.0), (4.0, 0.0), Some((700, 4))),
    row(8, "CR3 reload, same root", (3226.2, 1.0), (4.0, 0.0), Some((450, 4))),
    row(10, "CR3 switch, 8 roots + touch", (3877.7, 1.0), (8.0, 0.0), Some((500, 8))),
    row(18, "INVLPG only", (3586.1, 1.0), (3.0, 0.0), Some((550, 3))),
    row(11, "leaf write + INVLPG + touch", (6388.2, 1.0), (11.0, 0.0), Some((1_200, 11))),
    row(20, "leaf write + CR3 + touch, 1 entry", (19660.6, 3.0), (11.0, 0.0), Some((2_000, 11))),
    row(12, "leaf write + CR3 + touch, 512 entries", (274_838.2, 3.0), (11.0, 0.0), Some((4_000, 11))),
    row(13, "PDE write + INVLPG + touch", (15237.9, 3.0), (9.0, 0.0), Some((2_500, 9))),
    row(14, "rewrite 512 entries + CR3 + touch all, per page", (1999.8, 0.11), (11.0, 0.0), Some((250, 11))),
    row(15, "copy-on-write fault (2 INVLPG)", (16901.1, 3.0), (20.0, 0.0), Some((2_800, 20))),
    row(16, "demand fault (1 INVLPG)", (11612.8, 3.0), (18.0, 0.0), Some((2_000, 18))),
    row(17, "address-space life, 64 pages", (511_440.4, 79.02), (11500.1, 0.02), Some((60_000, 11_500))),
    row(0, "empty operation", (2983.0, 1.0), (2985.0, 1.0), None),
    row(1, "loop without exits, per turn", (3.0, 0.0), (3.0, 0.0), None),
    row(4, "touch fresh page by a write, A/D set", (2264.9, 0.12), (3329.4, 1.0), None),
    row(9, "CR3 switch, 2 roots + touch", (3342.0, 1.0), (8.0, 0.0), None),
    row(19, "CR4.PGE off and on", (6724.6, 2.0), (6560.4, 2.0), None),
    row(21, "RDMSR exit", (2697.3, 1.0), (2730.9, 1.0), None),
];

#[cfg(test)]
mod completeness {
    use super::TABLE;

    #[test]
    fn each_of_the_22_operations_has_one_row() {
        let mut phases: Vec<_> = TABLE.iter().map(|operation| operation.phase).collect();
        phases.sort_unstable();
        assert_eq!(phases, (0..22).collect::<Vec<_>>());
    }

    #[test]
    fn sixteen_operations_have_a_goal_below_the_peer() {
        let goals = TABLE
            .iter()
            .filter_map(|operation| Some((operation, operation.goal?)));
        for (operation, goal) in goals.clone() {
            assert!(
                (goal.shadow as f64) < operation.peer_shadow.instructions,
                "{}",
                operation.name
            );
        }
        assert_eq!(goals.count(), 16);
    }
}
