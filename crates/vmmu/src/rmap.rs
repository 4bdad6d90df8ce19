//! Reverse maps: sets of SPTEs in four bytes when there is one member, in eight when there are two, in pairs chained to that when there are more.
//!
//! Key types: [`Head`] (one set), [`Nodes`] (the pairs of a stripe of frames, guarded by its gfn lock).
//! Neighbours: `region` has a head per gfn, `page` one for its parents.
//!
//! The first word of a head is a member. The other is 0, the second member, or the number of a node; a node's words are a member and in turn a member
//! or a node's number.
//!
//! Invariants:
//! 1. A set has no duplicates: a slot is inserted when its SPTE is stored, and removed before it is exchanged away.
//! 2. No operation allocates; `insert` says so when nodes are missing, and nothing has changed then.
//! 3. A node in use has two words in use; a head's other word is 0 if its first one is.

use crate::Error;
use crate::page::SpteRef;
use alloc::vec::Vec;

/// Marks a word that names a node.
const CHAINED: u32 = 1 << 31;

/// A set of SPTEs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Head {
    pub(crate) first: u32,
    pub(crate) rest: u32,
}

/// A member, and another one or the next node; a free node has the number of the next free one, plus 1, in its other word.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    member: u32,
    rest: u32,
}

/// The nodes of one stripe.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// The first free node, as number + 1.
    free: u32,
    /// The node to look at next for a member that makes room.
    hand: u32,
}

/// `insert` needs a node and there is none.
#[derive(Debug)]
pub(crate) struct NoNode;

impl Head {
    /// Tells whether the set has no member.
    pub(crate) fn is_empty(self) -> bool {
        self.first == 0
    }
}

/// Returns the number of the node that a word names, if it names one.
#[inline]
const fn node_of(word: u32) -> Option<usize> {
    if word & CHAINED == 0 {
        None
    } else {
        Some((word & !CHAINED) as usize)
    }
}

impl Nodes {
    /// The least number of nodes added at once, and what every stripe may have whatever the bound on memory: more than one instruction of a guest
    /// needs at once, or it would make no progress.
    pub(crate) const GROWTH: usize = 16;

    /// Returns how many nodes to have instead of `have`.
    pub(crate) fn larger(have: usize) -> usize {
        have + Self::GROWTH.max(have / 4)
    }

    /// Allocates room for `count` nodes; called without locks.
    pub(crate) fn room(count: usize) -> Result<Vec<Node>, Error> {
        let mut room = Vec::new();
        room.try_reserve_exact(count)?;
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
        // In ascending order, as the hand goes round: who came first makes room first.
        self.free = room.len() as u32 + 1;
        for i in room.len()..room.capacity() {
            let next = i as u32 + 2;
            room.push(Node {
                member: 0,
                rest: if i + 1 < room.capacity() { next } else { 0 },
            });
        }
        core::mem::replace(&mut self.nodes, room)
    }

    /// Moves the first nodes into `room`, if the others are free, and returns the vector that is left over, to be dropped without locks.
    pub(crate) fn shrink(&mut self, room: Vec<Node>) -> Vec<Node> {
        let (mut room, keep) = (room, Self::GROWTH.min(self.nodes.len()));
        if self.member_from(keep).is_some() || room.capacity() < keep {
            return room;
        }
        room.extend_from_slice(&self.nodes[..keep]);
        let old = core::mem::replace(&mut self.nodes, room);
        self.free = 0;
        for at in (0..keep).rev() {
            if self.nodes[at].member == 0 {
                self.give(at);
            }
        }
        old
    }

    /// Returns the first node from number `from` on that is in use, and a member whose removal frees it.
    pub(crate) fn member_from(&self, from: usize) -> Option<(usize, SpteRef)> {
        let nodes = self.nodes.iter().enumerate().skip(from);
        nodes
            .filter_map(|(at, node)| Some((at, SpteRef::from_raw(node.member)?)))
            .next()
    }

    fn take(&mut self, node: Node) -> Option<u32> {
        let at = self.free.checked_sub(1)?;
        self.free = self.nodes[at as usize].rest;
        self.nodes[at as usize] = node;
        Some(CHAINED | at)
    }

    fn give(&mut self, at: usize) {
        self.nodes[at] = Node {
            member: 0,
            rest: self.free,
        };
        self.free = at as u32 + 1;
    }

    /// Adds `member` to the set.
    pub(crate) fn insert(&mut self, head: &mut Head, member: SpteRef) -> Result<(), NoNode> {
        debug_assert!(!self.contains(*head, member));
        let member = member.raw();
        if head.first == 0 {
            head.first = member;
        } else if head.rest == 0 {
            head.rest = member;
        } else {
            let rest = head.rest;
            head.rest = self.take(Node { member, rest }).ok_or(NoNode)?;
        }
        Ok(())
    }

    /// Takes `member` out of the set and tells whether it was there.
    pub(crate) fn remove(&mut self, head: &mut Head, member: SpteRef) -> bool {
        let member = member.raw();
        if head.first == member {
            self.remove_first(head);
            return true;
        }
        if head.rest == member {
            head.rest = 0;
            return true;
        }
        let mut before = None;
        let mut next = node_of(head.rest);
        while let Some(at) = next {
            let node = self.nodes[at];
            let left = match member {
                _ if node.member == member => node.rest,
                _ if node.rest == member => node.member,
                _ => {
                    (before, next) = (Some(at), node_of(node.rest));
                    continue;
                }
            };
            match before {
                Some(before) => self.nodes[before].rest = left,
                None => head.rest = left,
            }
            self.give(at);
            return true;
        }
        false
    }

    /// Takes the first member out; the next one takes its place.
    fn remove_first(&mut self, head: &mut Head) {
        *head = match node_of(head.rest) {
            None => Head {
                first: head.rest,
                rest: 0,
            },
            Some(at) => {
                let node = self.nodes[at];
                self.give(at);
                Head {
                    first: node.member,
                    rest: node.rest,
                }
            }
        };
    }

    /// Returns a member whose removal frees a node, each node in its turn; `None` if a node is free or there is none.
    pub(crate) fn victim(&mut self) -> Option<SpteRef> {
        if self.free != 0 {
            return None;
        }
        let at = self.hand as usize % self.nodes.len().max(1);
        self.hand = at as u32 + 1;
        SpteRef::from_raw(self.nodes.get(at)?.member)
    }

    /// Returns some member, or `None` if the set is empty.
    pub(crate) fn first(&self, head: Head) -> Option<SpteRef> {
        SpteRef::from_raw(head.first)
    }

    /// Visits members until `visit` says true, and tells whether it did.
    pub(crate) fn any(&self, head: Head, mut visit: impl FnMut(SpteRef) -> bool) -> bool {
        if SpteRef::from_raw(head.first).is_some_and(&mut visit) {
            return true;
        }
        let mut word = head.rest;
        while let Some(at) = node_of(word) {
            let node = self.nodes[at];
            if SpteRef::from_raw(node.member).is_some_and(&mut visit) {
                return true;
            }
            word = node.rest;
        }
        SpteRef::from_raw(word).is_some_and(visit)
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

    fn insert(nodes: &mut Nodes, head: &mut Head, i: u32) {
        while nodes.insert(head, member(i)).is_err() {
            let room = Nodes::room(Nodes::larger(nodes.len())).unwrap();
            drop(nodes.grow(room));
        }
    }

    #[test]
    fn through_growth_and_removal_in_any_order() {
        let mut nodes = Nodes::default();
        let (mut head, mut other) = (Head::default(), Head::default());
        for i in 0..100 {
            for h in [&mut head, &mut other] {
                insert(&mut nodes, h, i);
            }
        }
        for i in (0..100).step_by(3).chain((0..100).filter(|i| i % 3 != 0)) {
            assert!(nodes.contains(head, member(i)));
            assert!(nodes.remove(&mut head, member(i)));
            assert!(!nodes.remove(&mut head, member(i)));
        }
        assert_eq!(head, Head::default());
        let mut seen = 0;
        nodes.for_each(other, |_| seen += 1);
        assert_eq!(seen, 100);
    }

    #[test]
    fn a_failed_insert_changes_nothing() {
        let mut nodes = Nodes::default();
        let mut head = Head::default();
        nodes.insert(&mut head, member(1)).unwrap();
        nodes.insert(&mut head, member(2)).unwrap();
        let before = head;
        assert!(nodes.insert(&mut head, member(3)).is_err());
        assert_eq!(head, before);
    }

    #[test]
    fn a_victim_frees_a_node_and_the_next_insert_finds_it() {
        let mut nodes = Nodes::default();
        let mut heads = [Head::default(); 4];
        for i in 0..200 {
            let head = i as usize % 4;
            while nodes.insert(&mut heads[head], member(i)).is_err() {
                if nodes.len() == 0 {
                    drop(nodes.grow(Nodes::room(Nodes::GROWTH).unwrap()));
                    continue;
                }
                let victim = nodes.victim().unwrap();
                // It is not among the last that were inserted.
                assert!(victim.page().0 + Nodes::GROWTH as u32 <= i);
                let hits = heads
                    .iter_mut()
                    .map(|h| usize::from(nodes.remove(h, victim)));
                assert_eq!(hits.sum::<usize>(), 1);
            }
            assert!(nodes.free == 0 || nodes.victim().is_none());
        }
        assert_eq!(nodes.len(), Nodes::GROWTH);
    }
}
