//! Values of a chunk put together from their bytes.
//!
//! After shuffling, the n-th bytes of all values lie together in a plane. Counts and
//! indices are small numbers in wide types, so most planes hold nothing but zeros: they
//! are looked at once, and only the live ones are merged, which also narrows for free.

/// What kind of thing a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An integer without a sign.
    Unsigned,
    /// An integer with a sign.
    Signed,
    /// A floating-point number.
    Float,
    /// Bytes of a text, filled up with zeros.
    Text,
}

/// How a value is stored.
#[derive(Debug, Clone, Copy)]
pub struct Number {
    /// What it is.
    pub kind: Kind,
    /// Bytes of one.
    pub size: usize,
    /// Whether its first byte is the most significant.
    pub big_endian: bool,
}

/// What values become in the caller's array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The same type, in this machine's byte order.
    Same,
    /// An integer as wide as the array's, signed or not.
    Integer {
        /// Whether the array's integers have a sign.
        signed: bool,
    },
    /// float64, from float32.
    Double,
}

impl Target {
    /// Name that numpy gives the array's type.
    pub fn dtype<T: Bits>(self) -> &'static str {
        match (self, T::SIZE) {
            (Self::Integer { signed: true }, 1) => "int8",
            (Self::Integer { signed: true }, 2) => "int16",
            (Self::Integer { signed: true }, 4) => "int32",
            (Self::Integer { signed: true }, _) => "int64",
            (Self::Integer { signed: false }, 1) => "uint8",
            (Self::Integer { signed: false }, 2) => "uint16",
            (Self::Integer { signed: false }, 4) => "uint32",
            (Self::Integer { signed: false }, _) => "uint64",
            (Self::Same | Self::Double, _) => "float64",
        }
    }
}

/// An element of an output array, as bits.
pub trait Bits: Copy + Default + Send {
    /// Bytes of one.
    const SIZE: usize;
    /// The low bits of a word.
    fn low(word: u64) -> Self;
    /// From its bytes, the least significant first.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
    /// The bits moved up by a byte, and another byte below.
    fn push(self, byte: u8) -> Self;
    /// The largest of some, their bits as a number without a sign.
    fn most(values: &[Self]) -> u64;
}

macro_rules! bits {
    ($($t:ty as $unsigned:ty),*) => {$(
        impl Bits for $t {
            const SIZE: usize = size_of::<$t>();
            fn low(word: u64) -> Self {
                word as $t
            }
            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Some(<$t>::from_le_bytes(bytes.try_into().ok()?))
            }
            fn push(self, byte: u8) -> Self {
                self.unbounded_shl(8) | byte as $t
            }
            fn most(values: &[Self]) -> u64 {
                let most = values.iter().fold(0, |most, &v| (v as $unsigned).max(most));
                u64::from(most)
            }
        }
    )*};
}

bits!(
    u8 as u8, u16 as u16, u32 as u32, u64 as u64, i32 as u32, i64 as u64
);

impl Bits for f64 {
    const SIZE: usize = 8;
    fn low(word: u64) -> Self {
        Self::from_bits(word)
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_le_bytes(bytes.try_into().ok()?))
    }
    fn push(self, byte: u8) -> Self {
        Self::from_bits(self.to_bits().push(byte))
    }
    fn most(values: &[Self]) -> u64 {
        values.iter().map(|v| v.to_bits()).max().unwrap_or(0)
    }
}

/// The values of a decoded chunk.
pub(super) struct Values<'a> {
    bytes: &'a [u8],
    number: Number,
    /// Number of planes and of those, from the least significant on, that are not all
    /// zeros; `None` where values lie one after another.
    live: Option<usize>,
}

impl<'a> Values<'a> {
    pub(super) fn new(bytes: &'a [u8], number: Number, shuffled: bool) -> Self {
        let mut values = Self {
            bytes,
            number,
            live: None,
        };
        if shuffled && number.size > 1 {
            let dead = |&index: &usize| values.plane(index).iter().fold(0, |all, b| all | b) == 0;
            let zeros = (0..number.size).rev().take_while(dead).count();
            values.live = Some(number.size - zeros);
        }
        values
    }

    /// The bytes of one significance of all values, 0 for the least.
    fn plane(&self, index: usize) -> &'a [u8] {
        let count = self.bytes.len() / self.number.size;
        let at = match self.number.big_endian {
            true => self.number.size - 1 - index,
            false => index,
        };
        &self.bytes[at * count..][..count]
    }

    /// Copies values from `at` on; `None` if one does not fit, or is negative or not below
    /// the bound.
    ///
    /// Of two's complement, a negative number's bits are larger than any other's.
    pub(super) fn copy_below<T: Bits>(
        &self,
        at: usize,
        (target, below): (Target, Option<u64>),
        out: &mut [T],
    ) -> Option<()> {
        self.copy(at, target, out)?;
        match below {
            Some(bound) if !out.is_empty() => (T::most(out) < bound).then_some(()),
            _ => Some(()),
        }
    }

    fn copy<T: Bits>(&self, at: usize, target: Target, out: &mut [T]) -> Option<()> {
        match (self.number.kind, target) {
            (Kind::Text, _) => self.copy_texts(at, out),
            (Kind::Float, Target::Double) => self.convert(at, out, |word| {
                Some(f64::from(f32::from_bits(word as u32)).to_bits())
            })?,
            (_, Target::Integer { signed }) if !self.is_narrow::<T>() => {
                self.convert(at, out, |word| self.fit::<T>(word, signed))?;
            }
            _ if self.live.is_some() => self.merge_live(at, out),
            _ if self.number.big_endian => self.convert(at, out, Some)?,
            _ => {
                let size = self.number.size;
                let values = self.bytes[at * size..].chunks_exact(size);
                for (slot, bytes) in out.iter_mut().zip(values) {
                    *slot = T::from_bytes(bytes)?;
                }
            }
        }
        Some(())
    }

    /// Whether all values are small enough, by their planes alone, for a type of more bits.
    fn is_narrow<T: Bits>(&self) -> bool {
        let unsigned = self.number.kind == Kind::Unsigned;
        (self.live).is_some_and(|live| live < T::SIZE && (unsigned || live < self.number.size))
    }

    fn merge_live<T: Bits>(&self, at: usize, out: &mut [T]) {
        let n = out.len();
        let plane = |index: usize| &self.plane(index)[at..at + n];
        match self.live {
            Some(0) => out.fill(T::default()),
            Some(1) => merge([plane(0)], out),
            Some(2) => merge([plane(0), plane(1)], out),
            Some(3) => merge([0, 1, 2].map(plane), out),
            Some(4) => merge([0, 1, 2, 3].map(plane), out),
            Some(5) => merge([0, 1, 2, 3, 4].map(plane), out),
            Some(6) => merge([0, 1, 2, 3, 4, 5].map(plane), out),
            Some(7) => merge([0, 1, 2, 3, 4, 5, 6].map(plane), out),
            _ => merge([0, 1, 2, 3, 4, 5, 6, 7].map(plane), out),
        }
    }

    /// One value after another, as words that `change` may refuse.
    fn convert<T: Bits>(
        &self,
        at: usize,
        out: &mut [T],
        change: impl Fn(u64) -> Option<u64>,
    ) -> Option<()> {
        for (i, slot) in (at..).zip(out) {
            *slot = T::low(change(self.word(i))?);
        }
        Some(())
    }

    /// A value's bytes as the low bytes of a word.
    fn word(&self, i: usize) -> u64 {
        let (size, shuffled) = (self.number.size, self.live.is_some());
        let byte = |index: usize| match (shuffled, self.number.big_endian) {
            (true, _) => self.plane(index)[i],
            (false, false) => self.bytes[i * size + index],
            (false, true) => self.bytes[i * size + size - 1 - index],
        };
        (0..size)
            .rev()
            .fold(0, |word, index| word << 8 | u64::from(byte(index)))
    }

    /// The value as an integer of the array's type, if it is one.
    fn fit<T: Bits>(&self, word: u64, signed: bool) -> Option<u64> {
        let (unused, bits) = (64 - 8 * self.number.size as u32, 8 * T::SIZE as u32);
        let value = match self.number.kind {
            Kind::Signed => i128::from((word << unused) as i64 >> unused),
            _ => i128::from(word),
        };
        let range = match signed {
            true => -(1i128 << (bits - 1))..1i128 << (bits - 1),
            false => 0..1i128 << bits,
        };
        range.contains(&value).then_some(value as u64)
    }

    /// Texts: their bytes in order, in blocks that stay in the cache.
    fn copy_texts<T: Bits>(&self, at: usize, out: &mut [T]) {
        let size = self.number.size;
        let count = self.bytes.len() / size;
        if self.live.is_none() {
            for (to, &byte) in out.iter_mut().zip(&self.bytes[at * size..]) {
                *to = T::low(byte.into());
            }
            return;
        }
        for (texts, first) in out.chunks_mut(256 * size).zip((at..).step_by(256)) {
            let n = texts.len() / size;
            for index in 0..size {
                let plane = &self.bytes[index * count + first..][..n];
                for (to, &byte) in texts[index..].iter_mut().step_by(size).zip(plane) {
                    *to = T::low(byte.into());
                }
            }
        }
    }
}

/// Puts values together from their planes.
fn merge<T: Bits, const N: usize>(planes: [&[u8]; N], out: &mut [T]) {
    let planes = planes.map(|plane| &plane[..out.len()]);
    for (i, slot) in out.iter_mut().enumerate() {
        let from_the_top = planes.iter().rev();
        *slot = from_the_top.fold(T::default(), |bits, plane| bits.push(plane[i]));
    }
}
