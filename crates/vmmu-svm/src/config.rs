//! The configuration that comes with the bundle: `key=value` lines.

use core::num::{NonZeroU8, NonZeroU64};
use core::str::FromStr;

use bitflags::bitflags;
use vmmu::paging::PhysBits;

/// How guest memory is virtualised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// Shadow page tables: the processor walks tables that combine the guest's and the host's.
    Shadow,
    /// Nested page tables: the processor walks the guest's and the host's.
    Nested,
}

bitflags! {
    /// Processor features that the guest isn't shown.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Hidden: u8 {
        /// Protection keys.
        const PKU = 1 << 0;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 1;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 2;
        /// No-execute.
        const NX = 1 << 3;
        /// 5-level paging.
        const LA57 = 1 << 4;
        /// 1 GiB pages.
        const PDPE1GB = 1 << 5;
    }
}

/// The configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// How memory is virtualised.
    pub paging: Paging,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// How many processors the guest has.
    pub cpus: NonZeroU8,
    /// The width of physical addresses that the guest is shown; the processor's own if absent.
    pub phys_bits: Option<PhysBits>,
    /// What the guest isn't shown.
    pub hidden: Hidden,
    /// The most shadow pages.
    pub max_pages: Option<u32>,
    /// After how many exits each the auditor runs.
    pub audit: Option<NonZeroU64>,
}

/// What is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// A line is no `key=value`, or its key is unknown.
    #[error("configuration line {0} has no known key")]
    Key(usize),
    /// A value makes no sense for its key.
    #[error("configuration line {0} has a value that its key doesn't take")]
    Value(usize),
    /// A key that must be there is not.
    #[error("the configuration lacks {0}")]
    Missing(&'static str),
}

/// The most processors.
const MOST_CPUS: u8 = 16;

impl FromStr for Configuration {
    type Err = ConfigurationError;

    fn from_str(text: &str) -> Result<Self, ConfigurationError> {
        let (mut paging, mut memory, mut cpus) = (None, None, NonZeroU8::MIN);
        let (mut phys_bits, mut hidden, mut max_pages, mut audit) =
            (None, Hidden::empty(), None, None);
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let (key, value) = line
                .trim()
                .split_once('=')
                .ok_or(ConfigurationError::Key(number))?;
            let wrong = ConfigurationError::Value(number);
            match key {
                "paging" => paging = Some(parse_paging(value).ok_or(wrong)?),
                "memory" => memory = Some(value.parse().map_err(|_| wrong)?),
                "cpus" => cpus = parse_cpus(value).ok_or(wrong)?,
                "phys-bits" => {
                    phys_bits = Some(value.parse().ok().and_then(PhysBits::new).ok_or(wrong)?)
                }
                "hide" => hidden = parse_hidden(value).ok_or(wrong)?,
                "max-pages" => max_pages = Some(value.parse().map_err(|_| wrong)?),
                "audit" => audit = Some(value.parse().map_err(|_| wrong)?),
                _ => return Err(ConfigurationError::Key(number)),
            }
        }
        Ok(Self {
            paging: paging.ok_or(ConfigurationError::Missing("paging"))?,
            memory: memory.ok_or(ConfigurationError::Missing("memory"))?,
            cpus,
            phys_bits,
            hidden,
            max_pages,
            audit,
        })
    }
}

fn parse_paging(value: &str) -> Option<Paging> {
    match value {
        "shadow" => Some(Paging::Shadow),
        "nested" => Some(Paging::Nested),
        _ => None,
    }
}

fn parse_cpus(value: &str) -> Option<NonZeroU8> {
    let cpus: NonZeroU8 = value.parse().ok()?;
    (cpus.get() <= MOST_CPUS).then_some(cpus)
}

fn parse_hidden(value: &str) -> Option<Hidden> {
    let names = value.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| {
            Hidden::all()
                .iter_names()
                .find(|(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, flag)| flag)
        })
        .collect()
}

#[cfg(test)]
mod a_configuration_is_read {
    use super::*;

    #[test]
    fn all_keys() {
        let text = "paging=shadow\nmemory=536870912\ncpus=4\nphys-bits=36\nhide=pku,nx\nmax-pages=64\naudit=1000\n";
        let configuration: Configuration = text.parse().unwrap();
        assert_eq!(configuration.paging, Paging::Shadow);
        assert_eq!(
            (configuration.memory, configuration.cpus.get()),
            (512 << 20, 4)
        );
        assert_eq!(configuration.phys_bits.map(PhysBits::get), Some(36));
        assert_eq!(configuration.hidden, Hidden::PKU | Hidden::NX);
        assert_eq!(
            (configuration.max_pages, configuration.audit),
            (Some(64), NonZeroU64::new(1000))
        );
    }

    #[test]
    fn what_it_does_not_know_is_an_error_with_its_line() {
        let parse = |text: &str| text.parse::<Configuration>().unwrap_err();
        assert_eq!(parse("paging=nested\nspeed=11"), ConfigurationError::Key(2));
        assert_eq!(parse("paging=none"), ConfigurationError::Value(1));
        assert_eq!(parse("hide=smep,magic"), ConfigurationError::Value(1));
        assert_eq!(parse("audit=0"), ConfigurationError::Value(1));
        assert_eq!(parse("cpus=0"), ConfigurationError::Value(1));
        assert_eq!(parse("cpus=17"), ConfigurationError::Value(1));
        assert_eq!(
            parse("paging=nested"),
            ConfigurationError::Missing("memory")
        );
    }
}
