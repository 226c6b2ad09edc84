//! A cursor over msgpack bytes that is bounded by what is really there.

use rmp::Marker;

/// Bytes that are not what they should be. Positions are byte offsets; values are never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the payload ends at byte {at}, inside a value")]
    Truncated {
        /// Where the missing byte would be.
        at: usize,
    },
    /// A value has another type than the field it stands for.
    #[error("byte {at}: expected {expected}")]
    Unexpected {
        /// Where the value begins.
        at: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// An event lacks a field that its kind always has.
    #[error("an event has no field {field}")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A number does not fit its field.
    #[error("byte {at}: a number is out of range for {field}")]
    OutOfRange {
        /// Where the value begins.
        at: usize,
        /// Name of the field.
        field: &'static str,
    },
    /// The payload is larger than any that an engine sends.
    #[error("the payload has {bytes} bytes; at most {} are read", super::MAX_PAYLOAD_BYTES)]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
    },
}

/// Reads one value after the other. A failed read leaves the position undefined.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Header of a value: its type, and for strings, arrays and maps their length.
enum Head {
    Nil,
    Bool,
    Integer(i128),
    Float(f64),
    /// Strings, binaries and extensions: this many bytes follow.
    Bytes {
        len: usize,
        text: bool,
    },
    Array(usize),
    Map(usize),
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > super::MAX_PAYLOAD_BYTES {
            return Err(DecodeError::TooLarge { bytes: bytes.len() });
        }
        Ok(Self { bytes, at: 0 })
    }

    /// Bytes not read yet: an upper bound of the number of values still to come, whatever a length field says.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Length of the array that begins here.
    pub(super) fn array(&mut self) -> Result<usize, DecodeError> {
        let at = self.at;
        match self.head()? {
            Head::Array(len) => Ok(len),
            _ => Err(DecodeError::Unexpected { at, expected: "an array" }),
        }
    }

    /// Number of pairs of the map that begins here.
    pub(super) fn map(&mut self) -> Result<usize, DecodeError> {
        let at = self.at;
        match self.head()? {
            Head::Map(len) => Ok(len),
            _ => Err(DecodeError::Unexpected { at, expected: "a map" }),
        }
    }

    /// The next value is a map.
    pub(super) fn at_map(&self) -> bool {
        matches!(self.marker(), Some(Marker::FixMap(_) | Marker::Map16 | Marker::Map32))
    }

    /// The next value is an array.
    pub(super) fn at_array(&self) -> bool {
        matches!(self.marker(), Some(Marker::FixArray(_) | Marker::Array16 | Marker::Array32))
    }

    /// Reads nil and answers true, or reads nothing.
    pub(super) fn take_nil(&mut self) -> bool {
        let nil = self.marker() == Some(Marker::Null);
        self.at += usize::from(nil);
        nil
    }

    pub(super) fn integer(&mut self) -> Result<i128, DecodeError> {
        let at = self.at;
        match self.head()? {
            Head::Integer(value) => Ok(value),
            _ => Err(DecodeError::Unexpected { at, expected: "an integer" }),
        }
    }

    /// An integer that fits the type of `field`.
    pub(super) fn number<T: TryFrom<i128>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        let at = self.at;
        T::try_from(self.integer()?).map_err(|_| DecodeError::OutOfRange { at, field })
    }

    /// An integer or a floating-point number.
    pub(super) fn float(&mut self) -> Result<f64, DecodeError> {
        let at = self.at;
        match self.head()? {
            Head::Integer(value) => Ok(value as f64),
            Head::Float(value) => Ok(value),
            _ => Err(DecodeError::Unexpected { at, expected: "a number" }),
        }
    }

    /// The bytes of a string; whether they are UTF-8 is the caller's concern.
    pub(super) fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let at = self.at;
        match self.head()? {
            Head::Bytes { len, text: true } => self.take(len),
            _ => Err(DecodeError::Unexpected { at, expected: "a string" }),
        }
    }

    /// Reads over one value of any type, however deeply nested.
    pub(super) fn skip(&mut self) -> Result<(), DecodeError> {
        let mut values = 1_usize;
        while values > 0 {
            values -= 1;
            match self.head()? {
                Head::Nil | Head::Bool | Head::Integer(_) | Head::Float(_) => {}
                Head::Bytes { len, .. } => {
                    self.take(len)?;
                }
                Head::Array(len) => values = values.saturating_add(len),
                Head::Map(len) => values = values.saturating_add(len.saturating_mul(2)),
            }
        }
        Ok(())
    }

    fn marker(&self) -> Option<Marker> {
        self.bytes.get(self.at).map(|byte| Marker::from_u8(*byte))
    }

    fn head(&mut self) -> Result<Head, DecodeError> {
        let at = self.at;
        let marker = Marker::from_u8(self.take(1)?[0]);
        Ok(match marker {
            Marker::Null => Head::Nil,
            Marker::True | Marker::False => Head::Bool,
            Marker::FixPos(value) => Head::Integer(value.into()),
            Marker::FixNeg(value) => Head::Integer(value.into()),
            Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => self.unsigned(marker)?,
            Marker::I8 => Head::Integer(i8::from_be_bytes(self.fixed()?).into()),
            Marker::I16 => Head::Integer(i16::from_be_bytes(self.fixed()?).into()),
            Marker::I32 => Head::Integer(i32::from_be_bytes(self.fixed()?).into()),
            Marker::I64 => Head::Integer(i64::from_be_bytes(self.fixed()?).into()),
            Marker::F32 => Head::Float(f32::from_be_bytes(self.fixed()?).into()),
            Marker::F64 => Head::Float(f64::from_be_bytes(self.fixed()?)),
            Marker::FixArray(len) => Head::Array(len.into()),
            Marker::Array16 => Head::Array(u16::from_be_bytes(self.fixed()?).into()),
            Marker::Array32 => Head::Array(self.len32()?),
            Marker::FixMap(len) => Head::Map(len.into()),
            Marker::Map16 => Head::Map(u16::from_be_bytes(self.fixed()?).into()),
            Marker::Map32 => Head::Map(self.len32()?),
            Marker::FixStr(len) => Head::Bytes { len: len.into(), text: true },
            Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                Head::Bytes { len: self.len_of(marker)?, text: true }
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                Head::Bytes { len: self.len_of(marker)?, text: false }
            }
            // An extension has one byte more than it declares: its type.
            Marker::FixExt1 => Head::Bytes { len: 2, text: false },
            Marker::FixExt2 => Head::Bytes { len: 3, text: false },
            Marker::FixExt4 => Head::Bytes { len: 5, text: false },
            Marker::FixExt8 => Head::Bytes { len: 9, text: false },
            Marker::FixExt16 => Head::Bytes { len: 17, text: false },
            Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => {
                Head::Bytes { len: self.len_of(marker)?.saturating_add(1), text: false }
            }
            Marker::Reserved => return Err(DecodeError::Unexpected { at, expected: "a msgpack value" }),
        })
    }

    fn unsigned(&mut self, marker: Marker) -> Result<Head, DecodeError> {
        Ok(Head::Integer(match marker {
            Marker::U8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::U16 => u16::from_be_bytes(self.fixed()?).into(),
            Marker::U32 => u32::from_be_bytes(self.fixed()?).into(),
            _ => u64::from_be_bytes(self.fixed()?).into(),
        }))
    }

    fn len_of(&mut self, marker: Marker) -> Result<usize, DecodeError> {
        Ok(match marker {
            Marker::Str8 | Marker::Bin8 | Marker::Ext8 => u8::from_be_bytes(self.fixed()?).into(),
            Marker::Str16 | Marker::Bin16 | Marker::Ext16 => u16::from_be_bytes(self.fixed()?).into(),
            _ => self.len32()?,
        })
    }

    fn len32(&mut self) -> Result<usize, DecodeError> {
        let len = u32::from_be_bytes(self.fixed()?);
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Truncated { at: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipping_passes_over_every_type_and_stops_at_the_end_of_the_bytes() {
        // [nil, true, 1.5, {"a": [1, -1]}, bin, fixext4], then 7
        let bytes = [
            0x96, 0xc0, 0xc3, 0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0x81, 0xa1, b'a', 0x92, 1, 0xff, 0xc4, 2,
            9, 9, 0xd6, 1, 0, 0, 0, 0, 7,
        ];
        let mut reader = Reader::new(&bytes).unwrap();
        reader.skip().unwrap();
        assert_eq!(reader.integer(), Ok(7));
        assert_eq!(reader.skip(), Err(DecodeError::Truncated { at: bytes.len() }));
    }

    #[test]
    fn a_declared_length_is_not_believed() {
        // An array of 2^32 - 1 elements of which none is there.
        let mut reader = Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!(reader.skip(), Err(DecodeError::Truncated { at: 5 }));
        let mut reader = Reader::new(&[0xdb, 0xff, 0xff, 0xff, 0xff, b'x']).unwrap();
        assert_eq!(reader.text(), Err(DecodeError::Truncated { at: 6 }));
    }

    #[test]
    fn integers_of_every_width() {
        let bytes = [
            0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xd0, 0xfe,
        ];
        let mut reader = Reader::new(&bytes).unwrap();
        assert_eq!(reader.number::<i64>("a"), Ok(i64::MIN));
        assert_eq!(reader.clone().number::<u32>("b"), Err(DecodeError::OutOfRange { at: 9, field: "b" }));
        assert_eq!(reader.number::<u64>("b"), Ok(u64::MAX));
        assert_eq!(reader.number::<i64>("c"), Ok(-2));
    }
}
