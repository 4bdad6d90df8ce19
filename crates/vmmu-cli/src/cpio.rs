//! Writes cpio archives in the "newc" form, the one that Linux unpacks as an initramfs
//! (kernel documentation, "initramfs buffer format").
//!
//! Key type: [`Archive`]. Used by [`crate::initramfs`] only.
//!
//! Invariants:
//! 1. Every header and every body starts at a multiple of four bytes.
//! 2. The finished archive is padded to 512 bytes, so another one may follow it.

/// The kind of an entry, with what only that kind has.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// A folder, mode 0755.
    Folder,
    /// A file, mode 0644.
    File(&'a [u8]),
    /// A program, mode 0755.
    Program(&'a [u8]),
    /// A symbolic link to the path given.
    Link(&'a str),
    /// A character device, mode 0600, by major and minor number.
    Device(u32, u32),
}

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const BLOCK: usize = 512;

impl Archive {
    /// Adds an entry; folders come before what lies in them.
    pub fn add(&mut self, path: &str, entry: Entry<'_>) {
        self.entries += 1;
        let inode = self.entries;
        self.record(inode, path, entry);
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.record(0, "TRAILER!!!", Entry::File(&[]));
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.bytes
    }

    fn record(&mut self, inode: u32, path: &str, entry: Entry<'_>) {
        let (mode, body, device): (u32, &[u8], (u32, u32)) = match entry {
            Entry::Folder => (0o040_755, &[], (0, 0)),
            Entry::File(body) => (0o100_644, body, (0, 0)),
            Entry::Program(body) => (0o100_755, body, (0, 0)),
            Entry::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Entry::Device(major, minor) => (0o020_600, &[], (major, minor)),
        };
        // inode, mode, uid, gid, links, mtime, size, device (2), device node (2), name's size, checksum
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            body.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(body);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod newc_archives {
    use super::{Archive, Entry};

    /// Reads an archive back: path, mode, body of each record.
    fn records(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut at = 0;
        let mut out = Vec::new();
        loop {
            let header = &bytes[at..at + 110];
            assert_eq!(&header[..6], b"070701");
            assert_eq!(at % 4, 0);
            let field = |i: usize| {
                u32::from_str_radix(
                    core::str::from_utf8(&header[6 + i * 8..14 + i * 8]).unwrap(),
                    16,
                )
                .unwrap()
            };
            let (size, name) = (field(6) as usize, field(11) as usize);
            let path = String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap();
            assert_eq!(bytes[at + 110 + name - 1], 0);
            let body = (at + 110 + name).next_multiple_of(4);
            at = (body + size).next_multiple_of(4);
            if path == "TRAILER!!!" {
                assert!(bytes[at..].iter().all(|&b| b == 0));
                return out;
            }
            out.push((path, field(1), bytes[body..body + size].to_vec()));
        }
    }

    #[test]
    fn what_was_added_reads_back() {
        let mut archive = Archive::default();
        archive.add("bin", Entry::Folder);
        archive.add("bin/a", Entry::Program(b"12345"));
        archive.add("init", Entry::Link("bin/a"));
        archive.add("dev/console", Entry::Device(5, 1));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(
            records(&bytes),
            [
                ("bin".to_owned(), 0o040_755, vec![]),
                ("bin/a".to_owned(), 0o100_755, b"12345".to_vec()),
                ("init".to_owned(), 0o120_777, b"bin/a".to_vec()),
                ("dev/console".to_owned(), 0o020_600, vec![]),
            ]
        );
    }
}
