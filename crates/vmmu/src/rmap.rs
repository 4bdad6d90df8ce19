//! Reverse maps: sets of SPTEs in four bytes when there is one member, in chained nodes when there are more.
//!
//! Key types: [`Head`] (one set), [`Nodes`] (the nodes of a stripe of frames, guarded by its gfn lock).
//! Neighbours: `frames` has a head per gfn, `page` one for its parents.
//!
//! Invariants:
//! 1. A set has no duplicates: a slot is inserted when its SPTE is stored, and removed before it is exchanged away.
//! 2. No operation allocates; `insert` says so when nodes are missing, and nothing has changed then.
//! 3. A node in use has at least one member.

use crate::Error;
use crate::page::SpteRef;
use alloc::vec::Vec;

/// Members of a node.
const FAN: usize = 7;
/// Marks a head that names a node.
const CHAINED: u32 = 1 << 31;

/// A set of SPTEs: empty, one member, or a chain of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Head(pub(crate) u32);

/// Some members of a set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    members: [u32; FAN],
    /// The next node, as number + 1.
    next: u32,
}

/// The nodes of one stripe.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// The first free node, as number + 1.
    free: u32,
}

/// `insert` needs a node and there is none.
#[derive(Debug)]
pub(crate) struct NoNode;

impl Nodes {
    /// How many nodes are added at once.
    const GROWTH: usize = 32;

    /// Allocates room for more nodes than `have`; called without locks.
    pub(crate) fn larger(have: usize) -> Result<Vec<Node>, Error> {
        let mut room = Vec::new();
        room.try_reserve_exact(have + Self::GROWTH.max(have / 2))?;
        Ok(room)
    }

    /// Returns how many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
    }

    /// Moves the nodes into `room` if that is larger, and returns the vector that is left over, to be dropped without locks.
    pub(crate) fn grow(&mut self, room: Vec<Node>) -> Vec<Node> {
        let mut room = room;
        if room.capacity() <= self.nodes.len() || self.free != 0 {
            return room;
        }
        room.append(&mut self.nodes);
        for i in room.len()..room.capacity() {
            room.push(Node {
                members: [0; FAN],
                next: self.free,
            });
            self.free = i as u32 + 1;
        }
        core::mem::replace(&mut self.nodes, room)
    }

    fn take(&mut self) -> Option<usize> {
        let at = self.free.checked_sub(1)? as usize;
        self.free = self.nodes[at].next;
        self.nodes[at] = Node::default();
        Some(at)
    }

    fn give(&mut self, at: usize) {
        self.nodes[at] = Node {
            members: [0; FAN],
            next: self.free,
        };
        self.free = at as u32 + 1;
    }

    /// Adds `member` to the set.
    #[inline]
    pub(crate) fn insert(&mut self, head: &mut Head, member: SpteRef) -> Result<(), NoNode> {
        debug_assert!(!self.contains(*head, member));
        if head.0 == 0 {
            *head = Head(member.raw());
            return Ok(());
        }
        self.insert_further(head, member)
    }

    /// Adds `member` to a set that has one.
    fn insert_further(&mut self, head: &mut Head, member: SpteRef) -> Result<(), NoNode> {
        if head.0 & CHAINED != 0 {
            let first = (head.0 & !CHAINED) as usize;
            if let Some(free) = self.nodes[first].members.iter().position(|m| *m == 0) {
                self.nodes[first].members[free] = member.raw();
                return Ok(());
            }
        }
        let at = self.take().ok_or(NoNode)?;
        if head.0 & CHAINED == 0 {
            self.nodes[at].members[1] = head.0;
        } else {
            self.nodes[at].next = (head.0 & !CHAINED) + 1;
        }
        self.nodes[at].members[0] = member.raw();
        *head = Head(CHAINED | at as u32);
        Ok(())
    }

    /// Takes `member` out of the set and tells whether it was there.
    pub(crate) fn remove(&mut self, head: &mut Head, member: SpteRef) -> bool {
        if head.0 & CHAINED == 0 {
            let hit = head.0 == member.raw();
            if hit {
                *head = Head(0);
            }
            return hit;
        }
        let mut before = None;
        let mut at = (head.0 & !CHAINED) as usize;
        loop {
            if let Some(i) = self.nodes[at]
                .members
                .iter()
                .position(|m| *m == member.raw())
            {
                self.nodes[at].members[i] = 0;
                self.shrink(head, before, at);
                return true;
            }
            before = Some(at);
            match self.nodes[at].next.checked_sub(1) {
                Some(next) => at = next as usize,
                None => return false,
            }
        }
    }

    /// Frees node `at` if it is empty, and unchains the head when one member is left.
    fn shrink(&mut self, head: &mut Head, before: Option<usize>, at: usize) {
        if self.nodes[at].members.iter().all(|m| *m == 0) {
            let next = self.nodes[at].next;
            match before {
                Some(before) => self.nodes[before].next = next,
                None => {
                    *head = if next == 0 {
                        Head(0)
                    } else {
                        Head(CHAINED | (next - 1))
                    }
                }
            }
            self.give(at);
        }
        if head.0 & CHAINED != 0 {
            let first = (head.0 & !CHAINED) as usize;
            let mut left = self.nodes[first].members.iter().filter(|m| **m != 0);
            if let (0, Some(only), None) =
                (self.nodes[first].next, left.next().copied(), left.next())
            {
                self.give(first);
                *head = Head(only);
            }
        }
    }

    /// Returns some member, or `None` if the set is empty.
    pub(crate) fn first(&self, head: Head) -> Option<SpteRef> {
        let mut found = None;
        self.any(head, |member| {
            found = Some(member);
            true
        });
        found
    }

    /// Visits members until `visit` says true, and tells whether it did.
    pub(crate) fn any(&self, head: Head, mut visit: impl FnMut(SpteRef) -> bool) -> bool {
        if head.0 & CHAINED == 0 {
            return SpteRef::from_raw(head.0).is_some_and(visit);
        }
        let mut at = (head.0 & !CHAINED) as usize;
        loop {
            let node = &self.nodes[at];
            if node
                .members
                .iter()
                .filter_map(|m| SpteRef::from_raw(*m))
                .any(&mut visit)
            {
                return true;
            }
            match node.next.checked_sub(1) {
                Some(next) => at = next as usize,
                None => return false,
            }
        }
    }

    /// Visits every member.
    pub(crate) fn for_each(&self, head: Head, mut visit: impl FnMut(SpteRef)) {
        self.any(head, |member| {
            visit(member);
            false
        });
    }

    /// Tells whether `member` is in the set.
    pub(crate) fn contains(&self, head: Head, member: SpteRef) -> bool {
        self.any(head, |m| m == member)
    }
}

#[cfg(all(test, not(loom)))]
mod a_set_keeps_its_members {
    use super::*;
    use crate::addr::Index;
    use crate::page::PageId;

    fn member(i: u32) -> SpteRef {
        SpteRef::new(PageId(i), Index::truncate(i as usize % 512))
    }

    #[test]
    fn through_growth_and_removal_in_any_order() {
        let mut nodes = Nodes::default();
        let (mut head, mut other) = (Head::default(), Head::default());
        for i in 0..100 {
            for h in [&mut head, &mut other] {
                while nodes.insert(h, member(i)).is_err() {
                    let room = Nodes::larger(nodes.len()).unwrap();
                    drop(nodes.grow(room));
                }
            }
        }
        for i in (0..100).step_by(3).chain((0..100).filter(|i| i % 3 != 0)) {
            assert!(nodes.contains(head, member(i)));
            assert!(nodes.remove(&mut head, member(i)));
            assert!(!nodes.remove(&mut head, member(i)));
        }
        assert_eq!(head, Head(0));
        let mut seen = 0;
        nodes.for_each(other, |_| seen += 1);
        assert_eq!(seen, 100);
    }

    #[test]
    fn a_failed_insert_changes_nothing() {
        let mut nodes = Nodes::default();
        let mut head = Head::default();
        nodes.insert(&mut head, member(1)).unwrap();
        assert!(nodes.insert(&mut head, member(2)).is_err());
        assert_eq!(head, Head(member(1).raw()));
    }
}
