//! What a line of the machine brought, or the last part of it.
//!
//! Key type: [`Tail`].

/// Bytes kept from a stream: all of them, or the last few thousand.
#[derive(Debug, Clone)]
pub struct Tail {
    bytes: Vec<u8>,
    limit: usize,
}

const TAIL_LIMIT: usize = 16 << 10;
const QUOTED_LINES: usize = 12;
/// The line that a dying Linux prints before a long trace.
const PANIC: &str = "Kernel panic";

impl Tail {
    /// Keeps the last 16 KiB.
    #[must_use]
    pub const fn lines() -> Self {
        Self {
            bytes: Vec::new(),
            limit: TAIL_LIMIT,
        }
    }

    /// Keeps everything.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            bytes: Vec::new(),
            limit: usize::MAX,
        }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Cut rarely: only when twice the limit is reached.
        if self.bytes.len() > self.limit.saturating_mul(2) {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
    }

    /// Returns the text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Returns what follows `words` on the last line that has them.
    #[must_use]
    pub fn after(&self, words: &str) -> Option<String> {
        let text = self.text();
        let line = text.lines().rev().find(|line| line.contains(words))?;
        let (_, rest) = line.split_once(words)?;
        Some(rest.trim().to_owned())
    }

    /// Returns the last lines, marked and on lines of their own; nothing if there are none.
    #[must_use]
    pub fn quoted(&self) -> String {
        let text = self.text();
        let lines: Vec<_> = text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        let (before, last) = lines.split_at(lines.len().saturating_sub(QUOTED_LINES));
        let panic = before.iter().rfind(|line| line.contains(PANIC));
        if last.is_empty() {
            return "; its console stayed silent".to_owned();
        }
        let shown = panic
            .into_iter()
            .chain(last)
            .map(|line| format!("  | {}", printable(line)));
        let shown: Vec<_> = shown.collect();
        format!("; the last lines of its console:\n{}", shown.join("\n"))
    }
}

fn printable(line: &str) -> String {
    line.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}

#[cfg(test)]
mod keeping {
    use super::Tail;

    #[test]
    fn the_last_bytes_survive_any_amount() {
        let mut tail = Tail::lines();
        for i in 0..20_000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        assert!(tail.bytes.len() <= 32 << 10);
        assert!(tail.text().ends_with("line 19999\n"));
        assert_eq!(tail.quoted().lines().count(), 13);
    }

    #[test]
    fn a_panics_headline_is_quoted_however_long_the_trace() {
        let mut tail = Tail::lines();
        tail.push(b"boot\nKernel panic - not syncing\n");
        tail.push(&b"trace\n".repeat(50));
        assert!(tail.quoted().contains("| Kernel panic - not syncing\n"));
        assert!(!tail.quoted().contains("boot"));
    }

    #[test]
    fn the_last_match_is_the_one_that_counts() {
        let mut tail = Tail::all();
        tail.push(b"vmmu: status 1 tsc 5\r\nvmmu: status 3 tsc 9\r\nbye\r\n");
        assert_eq!(tail.after("vmmu: status ").as_deref(), Some("3 tsc 9"));
        assert_eq!(tail.after("absent"), None);
    }
}
