//! Which symbols a hash is part of.
//!
//! A hash is part of symbol `i` with probability `1 / (1 + α i)`: of the first one always, of about `ln(α m) / α` among the first
//! `m`. The probability that it is part of none from `i + 1` to `i + x` is the product of `j / (j + 1/α)` over them, which is about
//! `((i + c) / (i + x + c))^(1/α)` with `c = (1 + 1/α) / 2`. So with `u` uniform in (0, 1) the gap to the next symbol is the integer
//! above `(i + c) · (u^-α − 1)`.
//!
//! The paper takes `α = 1/2`, whose power is a square root. Here it is 2/3: a table makes all powers cost the same, and a thousand
//! differences then take 4 % fewer symbols and a fifth less work (`docs/adr/0004-reconciliation.md`). All arithmetic is of integers,
//! so that every machine maps alike.

/// Binary digits of `u` that choose an entry of the table.
const TABLE_BITS: u32 = 10;
/// Binary digits after the point of a stretch.
const STRETCH_BITS: u32 = 20;

/// `u^(-2/3) − 1` where `u` is a multiple of `2^-10`, and how much less that is at the next one. The first entry is not used.
static STRETCHES: [(u32, u32); 1 << TABLE_BITS] = stretches();

/// A hash, scrambled with the round's salt, from which its symbols follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping(u64);

impl Mapping {
    /// Two rounds: one product is nearly linear, so that tags of hashes that are small numbers, or near each other, would add up as
    /// the hashes do, and sums of several be taken for one.
    #[inline]
    pub(super) fn new(salt: u64, hash: u64) -> Self {
        let once = fold(hash ^ salt ^ 0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
        Self(fold(once ^ hash.rotate_left(32), 0x8EBC_6AF0_9C88_C6E3))
    }

    /// What the hash adds to a symbol beside itself: one to the number in the low 8 bits, and a check to those above. As sums of
    /// whole words wrap, carries between the two do no harm.
    #[inline]
    pub(super) fn tag(self) -> u32 {
        (self.0 as u32) << 8 | 1
    }

    /// The symbol after `index` that the hash is part of.
    #[inline]
    pub(super) fn after(self, index: u32) -> u32 {
        let random =
            fold(self.0 ^ u64::from(index).wrapping_mul(0xA24B_AED4_963E_E407), 0x9FB2_1C65_1E98_DF25);
        let (from, less) = STRETCHES[(random >> (64 - TABLE_BITS)) as usize];
        let stretch = match from {
            0 => long_stretch(random),
            _ => u64::from(from) - ((u64::from(less) * (random & u64::from(u32::MAX))) >> 32),
        };
        // c is 5/4.
        let gap = ((4 * u64::from(index) + 5) * stretch) >> (STRETCH_BITS + 2);
        u32::try_from(u64::from(index) + gap + 1).unwrap_or(u32::MAX)
    }

    /// Whether the hash is part of a symbol.
    pub(super) fn includes(self, index: u32) -> bool {
        let mut at = 0;
        while at < index {
            at = self.after(at);
        }
        at == index
    }
}

/// The probability that a hash is part of a symbol.
pub(super) fn density(index: u32) -> f64 {
    1.0 / (1.0 + f64::from(index) * 2.0 / 3.0)
}

/// Where the table is too coarse: `u` is below `2^-10`.
#[cold]
fn long_stretch(random: u64) -> u64 {
    // As a fraction of 2^32, and at least 1, so that no product with an index overflows.
    stretch_at(((random >> 32) as u128).max(1), 32)
}

const fn stretches() -> [(u32, u32); 1 << TABLE_BITS] {
    let mut all = [(0, 0); 1 << TABLE_BITS];
    let mut entry = 1;
    while entry < all.len() {
        let (here, next) = (stretch_at(entry as u128, TABLE_BITS), stretch_at(entry as u128 + 1, TABLE_BITS));
        all[entry] = (here as u32, (here - next) as u32);
        entry += 1;
    }
    all
}

/// `u^(-2/3) − 1` for `u = part / 2^bits`: the cube root of the inverse square, less one.
const fn stretch_at(part: u128, bits: u32) -> u64 {
    let inverse_square = (1_u128 << (2 * bits + 3 * STRETCH_BITS)) / (part * part);
    let (mut root, mut bit) = (0_u128, 1_u128 << 42);
    while bit > 0 {
        let more = root | bit;
        if more * more * more <= inverse_square {
            root = more;
        }
        bit >>= 1;
    }
    root as u64 - (1 << STRETCH_BITS)
}

/// A folded product, as in wyhash.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
