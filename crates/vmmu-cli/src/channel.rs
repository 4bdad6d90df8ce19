//! The hypervisor's channel on COM2: one JSON object a line; `docs/image-protocol.md` is the contract.
//!
//! Key types: [`Message`], [`Mark`].
//!
//! Invariants:
//! 1. A line that can't be read is an error of the channel, not of the program: it becomes [`Message::Garbled`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A line of the channel.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Message {
    /// The guest is about to be entered.
    Ready,
    /// The bench guest began or ended an operation.
    Mark(Mark),
    /// The counters, just before the end.
    Stats(Value),
    /// The guest wrote a value to port 0xf4.
    Exit {
        /// The value.
        value: u32,
    },
    /// The guest powered off. The image can't tell that; the software machine can.
    #[serde(skip)]
    PowerOff,
    /// The guest asked for a reset, or ended in another way that has no status.
    Shutdown {
        /// How.
        reason: String,
    },
    /// The guest can't go on.
    Crash {
        /// The report.
        text: String,
    },
    /// The guest needs what the hypervisor lacks.
    Refused {
        /// What.
        text: String,
    },
    /// A bug of the hypervisor.
    Panic {
        /// Its message.
        text: String,
    },
    /// Something that is none of these; kept for the message of a failure.
    #[serde(skip)]
    Garbled(String),
}

/// Where an operation of the bench guest begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// It begins.
    Start,
    /// It ends.
    End,
}

/// The exit counters at a mark.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Mark {
    /// The operation's number.
    pub phase: u64,
    /// Which edge.
    pub at: Edge,
    /// Exits since the start.
    pub exits: u64,
    /// The same by reason.
    #[serde(default)]
    pub by: BTreeMap<String, u64>,
}

impl Message {
    /// Reads a line.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        serde_json::from_str(line).unwrap_or_else(|_| Self::Garbled(line.to_owned()))
    }

    /// Tells whether the image leaves QEMU after this.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Ready | Self::Mark(_) | Self::Stats(_) | Self::Garbled(_)
        )
    }
}

#[cfg(test)]
mod lines {
    use super::{Edge, Mark, Message};
    use std::collections::BTreeMap;

    #[test]
    fn every_kind_of_the_contract_is_read() {
        assert_eq!(Message::parse("{\"type\":\"ready\"}"), Message::Ready);
        assert_eq!(
            Message::parse("{\"type\":\"exit\",\"value\":3}"),
            Message::Exit { value: 3 }
        );
        let mark =
            "{\"type\":\"mark\",\"phase\":12,\"at\":\"start\",\"exits\":7,\"by\":{\"npf\":7}}";
        let by = BTreeMap::from([("npf".to_owned(), 7)]);
        assert_eq!(
            Message::parse(mark),
            Message::Mark(Mark {
                phase: 12,
                at: Edge::Start,
                exits: 7,
                by
            })
        );
        let stats = Message::parse("{\"type\":\"stats\",\"tsc\":5,\"exits\":{\"npf\":1}}");
        assert!(
            matches!(&stats, Message::Stats(v) if v["tsc"] == 5),
            "{stats:?}"
        );
        for kind in ["crash", "refused", "panic"] {
            assert!(
                Message::parse(&format!("{{\"type\":\"{kind}\",\"text\":\"a\\nb\"}}")).is_final()
            );
        }
        assert!(Message::parse("{\"type\":\"shutdown\",\"reason\":\"0x64\"}").is_final());
    }

    #[test]
    fn other_lines_are_kept_as_they_are() {
        for line in [
            "",
            "hello",
            "{\"type\":\"exit\"}",
            "{\"type\":\"exit\",\"value\":-1}",
            "[1]",
        ] {
            assert_eq!(Message::parse(line), Message::Garbled(line.to_owned()));
        }
    }
}
