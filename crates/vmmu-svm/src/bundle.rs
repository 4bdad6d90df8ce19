//! The bundle: what the command packs into the boot loader's one module.
//!
//! The format stands in `docs/image-protocol.md`. A bundle is an allegation until it is parsed: nothing here panics on its content.

use alloc::vec::Vec;

const MAGIC: &[u8; 8] = b"VMMUBDL1";
const ENTRY: usize = 24;
const ENTRIES: usize = 16;

/// The parts of a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bundle<'a> {
    /// The configuration.
    pub configuration: &'a str,
    /// The guest's kernel file.
    pub kernel: &'a [u8],
    /// The modules, in order.
    pub modules: Vec<&'a [u8]>,
    /// The guest's command line.
    pub command_line: &'a str,
}

/// Why a bundle is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It starts otherwise.
    #[error("the module is no bundle")]
    Magic,
    /// An entry, or what it names, lies outside the bundle.
    #[error("the bundle ends before entry {0} or what it names")]
    Truncated(u32),
    /// An entry of a kind that this image doesn't know.
    #[error("bundle entry {index} has the unknown kind {kind}")]
    Kind {
        /// The entry's number.
        index: u32,
        /// Its kind.
        kind: u32,
    },
    /// A text is not UTF-8.
    #[error("bundle entry {0} is not UTF-8")]
    Text(u32),
    /// There is no kernel.
    #[error("the bundle has no kernel")]
    NoKernel,
}

impl<'a> Bundle<'a> {
    /// Parses a bundle.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        if bytes.get(..8) != Some(MAGIC) {
            return Err(BundleError::Magic);
        }
        let count = number(bytes, 8, 4).ok_or(BundleError::Truncated(0))? as u32;
        let mut bundle = Self::default();
        for index in 0..count {
            let (kind, content) = entry(bytes, index).ok_or(BundleError::Truncated(index))?;
            let text = || core::str::from_utf8(content).map_err(|_| BundleError::Text(index));
            match kind {
                1 => bundle.configuration = text()?,
                2 => bundle.kernel = content,
                3 => bundle.modules.push(content),
                4 => bundle.command_line = text()?,
                kind => return Err(BundleError::Kind { index, kind }),
            }
        }
        if bundle.kernel.is_empty() {
            Err(BundleError::NoKernel)
        } else {
            Ok(bundle)
        }
    }
}

/// Returns an entry's kind and content.
fn entry(bytes: &[u8], index: u32) -> Option<(u32, &[u8])> {
    let at = ENTRIES + index as usize * ENTRY;
    let (offset, length) = (number(bytes, at + 8, 8)?, number(bytes, at + 16, 8)?);
    let end = offset.checked_add(length)?;
    Some((
        number(bytes, at, 4)? as u32,
        bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)?,
    ))
}

/// Reads a little-endian number of up to 8 bytes.
pub(crate) fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod a_bundle_is_an_allegation {
    use super::*;

    pub(crate) fn pack(entries: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((entries.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        let mut offset = 4096u64;
        for (kind, content) in entries {
            bytes.extend(u64::from(*kind).to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend((content.len() as u64).to_le_bytes());
            offset += (content.len() as u64).next_multiple_of(4096);
        }
        for (_, content) in entries {
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            bytes.extend(*content);
        }
        bytes
    }

    #[test]
    fn every_kind_arrives_where_it_belongs() {
        let bytes = pack(&[
            (1, b"paging=nested"),
            (2, b"kernel"),
            (3, b"one"),
            (3, b"two"),
            (4, b"quiet"),
        ]);
        let bundle = Bundle::parse(&bytes).unwrap();
        assert_eq!(
            (bundle.configuration, bundle.kernel, bundle.command_line),
            ("paging=nested", &b"kernel"[..], "quiet")
        );
        assert_eq!(bundle.modules, [&b"one"[..], b"two"]);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error_or_a_bundle_and_never_a_panic() {
        let bytes = pack(&[(1, b"a"), (2, b"kernel")]);
        for length in 0..bytes.len() {
            let _ = Bundle::parse(&bytes[..length]);
        }
        for at in 0..64 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            let _ = Bundle::parse(&bytes);
        }
        assert_eq!(
            Bundle::parse(&bytes[..bytes.len() - 1]),
            Err(BundleError::Truncated(1))
        );
        assert_eq!(Bundle::parse(b"VMMUBDL2........"), Err(BundleError::Magic));
    }
}
