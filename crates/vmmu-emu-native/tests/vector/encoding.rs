//! Encodings of instructions under test, from a table of one line each.
//!
//! Key types: [`Template`], [`Kind`].
//!
//! A line: the mandatory prefix or `-`, the opcode, what the ModRM byte's register field is, what its other field may be, a letter `i` for an immediate
//! byte, and the name. Register fields: `x` XMM, `m` MMX, `g` general, `G` general of 64 bits, `/0` to `/7` an opcode's extension, `s` a stack register
//! in the opcode's ModRM byte, `.` no ModRM byte at all. Other fields: `x`, `m`, `g` registers, `M` memory, any of them.

/// What a field of a ModRM byte names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Xmm,
    Mmx,
    General,
    General64,
    Extension(u8),
}

/// A kind of instruction.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) name: &'static str,
    prefix: Option<u8>,
    opcode: Vec<u8>,
    reg: Option<Kind>,
    /// The register in the other field, if it may be one.
    rm: Option<Kind>,
    memory: bool,
    immediate: bool,
}

fn kind(letter: &str) -> Option<Kind> {
    match letter {
        "x" => Some(Kind::Xmm),
        "m" => Some(Kind::Mmx),
        "g" => Some(Kind::General),
        "G" => Some(Kind::General64),
        "." => None,
        _ => letter
            .strip_prefix('/')
            .and_then(|digit| digit.parse().ok())
            .map(Kind::Extension),
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("a hexadecimal byte");
    (0..text.len()).step_by(2).map(byte).collect()
}

impl Template {
    /// Parses a table.
    pub(crate) fn parse_all(table: &'static str) -> Vec<Self> {
        let lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(Self::parse).collect()
    }

    fn parse(line: &'static str) -> Self {
        let mut words = line.split_whitespace();
        let mut word = || words.next().expect("five or six words");
        let prefix = match word() {
            "-" => None,
            text => Some(hex(text)[0]),
        };
        let opcode = hex(word());
        let reg = kind(word());
        let places = word();
        let rm = places.chars().find(|c| "xmg".contains(*c));
        let mut name = word();
        let immediate = name == "i";
        if immediate {
            name = word();
        }
        Self {
            name,
            prefix,
            opcode,
            reg,
            rm: rm.and_then(|letter| kind(letter.encode_utf8(&mut [0; 4]))),
            memory: places.contains('M'),
            immediate,
        }
    }

    /// Says whether 32-bit code has it too: it needs no REX prefix.
    pub(crate) fn is_legacy(&self) -> bool {
        self.reg != Some(Kind::General64) && self.opcode[0] != 0x48
    }

    /// Encodes an instruction with random operands, of the first `registers` XMM registers; memory is at `[rbx + disp8]`, if it takes memory.
    pub(crate) fn encode(&self, random: &mut fastrand::Rng, registers: u8) -> Vec<u8> {
        let Some(reg) = self.reg else {
            return self.finish(0, None, random);
        };
        let (reg, mut rex) = match reg {
            Kind::Xmm => high(random.u8(..registers), 2),
            Kind::Mmx => (random.u8(..8), 0),
            // General registers: not RSP, RBP, RBX, which hold addresses.
            Kind::General => (random.u8(..3), 0),
            Kind::General64 => (random.u8(..3), 8),
            Kind::Extension(digit) => (digit, 0),
        };
        let memory = self.memory && (self.rm.is_none() || random.bool());
        let modrm = if memory {
            0x43 | reg << 3
        } else {
            let (rm, bit) = match self.rm {
                Some(Kind::Xmm) => high(random.u8(..registers), 0),
                Some(Kind::General | Kind::General64) => (random.u8(..3), 0),
                _ => (random.u8(..8), 0),
            };
            rex |= bit;
            0xc0 | reg << 3 | rm
        };
        self.finish(rex, Some(modrm), random)
    }

    fn finish(&self, rex: u8, modrm: Option<u8>, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.prefix.into_iter().collect();
        if rex != 0 {
            bytes.push(0x40 | rex);
        }
        bytes.extend(&self.opcode);
        bytes.extend(modrm);
        if modrm.is_some_and(|byte| byte >> 6 == 1) {
            bytes.push(0x10);
        }
        if self.immediate {
            bytes.push(if random.bool() {
                random.u8(..20)
            } else {
                random.u8(..)
            });
        }
        bytes
    }
}

/// Splits a register's number into its field and its bit of a REX prefix.
fn high(number: u8, bit: u8) -> (u8, u8) {
    (number & 7, number >> 3 << bit)
}
