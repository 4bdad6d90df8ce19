//! Host memory: the guest's frames and the library's tables, two flat arrays of words.
//!
//! Key types: [`Memory`], [`Apart`].
//!
//! Invariants:
//! 1. Nothing that a vCPU writes at each fault shares a cache line with what another one uses, but for what the library shares.
//! 2. A table is zeroed when it is handed out.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Entries of a table, words of a frame.
pub const WORDS: usize = 512;

/// A value with its cache line to itself (and the neighbour, which is fetched together with it).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// Guest frames and tables.
#[derive(Debug)]
pub struct Memory {
    guest: Box<[AtomicU64]>,
    tables: Box<[AtomicU64]>,
    free: Apart<Mutex<Vec<usize>>>,
}

fn zeroed(frames: usize) -> Box<[AtomicU64]> {
    (0..frames * WORDS).map(|_| AtomicU64::new(0)).collect()
}

impl Memory {
    /// Makes zeroed memory.
    #[must_use]
    pub fn new(guest_frames: usize, tables: usize) -> Self {
        Self {
            guest: zeroed(guest_frames),
            tables: zeroed(tables),
            free: Apart(Mutex::new((0..tables).rev().collect())),
        }
    }

    /// Returns how many guest frames there are.
    #[must_use]
    pub fn frames(&self) -> u64 {
        (self.guest.len() / WORDS) as u64
    }

    /// Returns a word of a guest frame.
    #[inline]
    #[must_use]
    pub fn word(&self, frame: u64, word: usize) -> &AtomicU64 {
        &self.guest[frame as usize * WORDS + word]
    }

    /// Returns the words of a guest frame.
    #[must_use]
    pub fn frame(&self, frame: u64) -> &[AtomicU64] {
        &self.guest[frame as usize * WORDS..][..WORDS]
    }

    /// Returns an entry of a table.
    #[inline]
    #[must_use]
    pub fn entry(&self, table: usize, slot: usize) -> &AtomicU64 {
        &self.tables[table * WORDS + slot]
    }

    /// Hands out a zeroed table, if there is one.
    #[must_use]
    pub fn take_table(&self) -> Option<usize> {
        let table = self.free().pop()?;
        for word in &self.tables[table * WORDS..][..WORDS] {
            word.store(0, Ordering::Relaxed);
        }
        Some(table)
    }

    /// Takes a table back.
    pub fn put_table(&self, table: usize) {
        self.free().push(table);
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
