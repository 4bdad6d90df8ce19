//! A writer of one-line JSON objects that needs no memory, so that a bug report gets out even when the heap is what is broken.

use core::fmt::{self, Display, Write};

/// An object being written.
#[allow(
    missing_debug_implementations,
    reason = "a writer need not be printable"
)]
pub struct Object<'a, W: Write + ?Sized> {
    to: &'a mut W,
    first: bool,
}

impl<'a, W: Write + ?Sized> Object<'a, W> {
    /// Writes an object, whose members `members` adds.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(
        to: &'a mut W,
        members: impl FnOnce(&mut Object<'_, W>) -> fmt::Result,
    ) -> fmt::Result {
        to.write_char('{')?;
        let mut object = Object { to, first: true };
        members(&mut object)?;
        object.to.write_char('}')
    }
    /// Adds a number.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn number(&mut self, key: &str, value: u64) -> fmt::Result {
        self.key(key)?;
        write!(self.to, "{value}")
    }
    /// Adds a string.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn text(&mut self, key: &str, value: impl Display) -> fmt::Result {
        self.key(key)?;
        self.to.write_char('"')?;
        write!(Escaped(self.to), "{value}")?;
        self.to.write_char('"')
    }
    /// Adds an object, whose members `members` adds.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn object(
        &mut self,
        key: &str,
        members: impl FnOnce(&mut Object<'_, W>) -> fmt::Result,
    ) -> fmt::Result {
        self.key(key)?;
        Object::write(self.to, members)
    }

    fn key(&mut self, key: &str) -> fmt::Result {
        if !core::mem::take(&mut self.first) {
            self.to.write_char(',')?;
        }
        self.to.write_char('"')?;
        write!(Escaped(self.to), "{key}")?;
        self.to.write_str("\":")
    }
}

/// Escapes what is written through it, as a JSON string needs it.
struct Escaped<'a, W: Write + ?Sized>(&'a mut W);

impl<W: Write + ?Sized> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                character if character < ' ' => write!(self.0, "\\u{:04x}", character as u32)?,
                character => self.0.write_char(character)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod objects_are_json {
    use super::*;
    use alloc::string::String;

    #[test]
    fn members_are_separated_and_strings_escaped() {
        let mut text = String::new();
        Object::write(&mut text, |object| {
            object.text("type", "crash")?;
            object.text("text", format_args!("a \"b\"\\\n\u{1}{}", 'ä'))?;
            object.object("exits", |exits| exits.number("cpuid", 3))
        })
        .unwrap();
        assert_eq!(
            text,
            r#"{"type":"crash","text":"a \"b\"\\\n\u0001ä","exits":{"cpuid":3}}"#
        );
    }
}
